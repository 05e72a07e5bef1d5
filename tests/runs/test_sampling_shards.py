"""Sampling shards: many processes sample one run, and together they store the bytes of an unsharded run."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from types import ModuleType

import pytest

import tiny
from fork_server import exit_code, start_command
from potstill import runner, teachers
from potstill.cli.shards import parse_shard
from potstill.errors import UserError
from potstill.records import Question
from potstill.storage import atomic, parquet, run_folder, segments, write_jsonl
from potstill.storage.segments import Shard
from potstill.teachers import SamplingState, reference_solutions, replay


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def whole(world: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return tiny.contents(tiny.make(world, tmp_path_factory.mktemp("whole") / "run", until="sample"))


def sampled(folder: Path) -> dict[str, bytes]:
    found = tiny.contents(folder)
    return {name: content for name, content in found.items() if not name.startswith(".shard-")}


class Crash(BaseException):
    pass


def test_shards_make_the_unsharded_result(world: Path, whole: dict[str, bytes], tmp_path: Path) -> None:
    run_dir, recipe = tmp_path / "run", tiny.recipe(world)
    for number in (3, 1):
        runner.run_shard(recipe, Shard(number, 3), run_dir=run_dir)
    stored = [path.name for path in segments.segment_paths(run_dir / "sample")]
    assert stored == [segments.segment_name(Shard(number, 3)) for number in (1, 3)]
    assert len(segments.stored_keys(segments.segment_paths(run_dir / "sample"))) == sum(
        len(segments.stored_keys([path])) for path in segments.segment_paths(run_dir / "sample")
    )
    runner.run_shard(recipe, Shard(1, 3), run_dir=run_dir)  # again: nothing is left to do
    runner.run_shard(recipe, Shard(2, 3), run_dir=run_dir)  # the last one merges all of them
    assert sampled(run_dir) == whole
    runner.run_shard(recipe, Shard(1, 3), run_dir=run_dir)  # too late: nothing changes
    assert sampled(run_dir) == whole


def test_what_shards_leave_out_or_store_twice_is_mended(
    world: Path, whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir, recipe = tmp_path / "run", tiny.recipe(world)

    def crash(operation: str, moment: str, path: Path) -> None:
        if (operation, moment) == ("append", "middle") and path.name.startswith("segment"):
            raise Crash

    monkeypatch.setattr(atomic, "crash", crash)
    with pytest.raises(Crash):
        runner.run_shard(recipe, Shard(2, 2), run_dir=run_dir)
    monkeypatch.undo()
    torn = run_dir / "sample" / segments.segment_name(Shard(2, 2))
    assert not torn.read_bytes().endswith(b"\n")
    (run_dir / "sample" / segments.segment_name(Shard(5, 7))).write_bytes(torn.read_bytes())  # from a run cut otherwise
    runner.run(recipe, run_dir, until="sample")
    assert sampled(run_dir) == whole


def test_nobody_takes_a_run_away_from_its_shards(world: Path, tmp_path: Path) -> None:
    run_dir, recipe = tmp_path / "run", tiny.recipe(world)
    tiny.make(world, run_dir, until="collect")
    with run_folder.lock_shard(run_dir, 1, 2):
        with pytest.raises(UserError, match=r"\(shard-1-of-2\)(.|\n)*E-run-locked"):
            runner.run(recipe, run_dir, until="sample")
        with pytest.raises(UserError, match=r"working on shard 1/2 of this run(.|\n)*E-run-locked"):
            runner.run_shard(recipe, Shard(1, 2), run_dir=run_dir)
        runner.run_shard(recipe, Shard(2, 2), run_dir=run_dir)  # another one is welcome
    runner.run(recipe, run_dir, until="sample")


def test_other_settings_are_refused_beside_stored_chains(world: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    runner.run_shard(tiny.recipe(world), Shard(1, 2), run_dir=run_dir)
    with pytest.raises(UserError, match=r"teacher\.temperature: 1\.0 -> 0\.5"):
        runner.run_shard(tiny.recipe(world, "teacher.temperature=0.5"), Shard(2, 2), run_dir=run_dir)


def test_processes_at_the_same_time(world: Path, whole: dict[str, bytes], tmp_path: Path) -> None:
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(tiny.RECIPE + f"data: {world}\n")
    settings = {"NO_COLOR": "1", "COLUMNS": "100"}
    outputs = [tmp_path / f"shard-{rank}.txt" for rank in "01"]
    shards = [
        start_command(
            "sample", recipe, cwd=tmp_path, output=output, environment={**settings, "RANK": rank, "WORLD_SIZE": "2"}
        )
        for rank, output in zip("01", outputs, strict=True)
    ]
    for rank, (shard, output) in enumerate(zip(shards, outputs, strict=True), 1):
        assert exit_code(shard) == 0, output.read_text()
        assert f"shard {rank}/2 done " in output.read_text()
    texts = [output.read_text() for output in outputs]
    merged = ["sampled 0 chains that the shards lacked; merged all into chains.parquet" in text for text in texts]
    told = ["potstill sample runs/tiny" in text for text in texts]
    assert sorted(merged) == [False, True] and not told[merged.index(True)]
    run_dir = tmp_path / "runs" / "tiny"
    assert sampled(run_dir)["sample/chains.parquet"] == whole["sample/chains.parquet"]


@pytest.mark.parametrize(
    ("teacher", "module"),
    [("kind: human", reference_solutions), ("kind: replay, chains: {stored}", replay)],
    ids=["human", "replay"],
)
def test_shards_of_chains_that_exist_share_them_out(
    teacher: str, module: ModuleType, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BATCH_SIZE", 3)
    questions = [Question(f"s/{i}", f"What is {i}?", "4", "s", "train", "number", "It is 4.") for i in range(11)]
    stored = tmp_path / "old.jsonl"
    write_jsonl(stored, [{"question": f"s/{i % 11}", "text": f"{i}"} for i in range(30)])
    recipe = tiny.recipe(world, f"teacher={{{teacher.format(stored=stored)}}}")
    source = teachers.from_recipe(recipe)
    parts = [
        [each for batch in source.sample(questions, SamplingState(shard=Shard(number, 3))) for each in batch]
        for number in (1, 2, 3)
    ]
    together = [each for batch in source.sample(questions) for each in batch]
    assert all(parts) and sorted(chain(*parts), key=lambda c: c.key) == sorted(together, key=lambda c: c.key)


ARRAY = {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_MIN": "0", "SLURM_ARRAY_TASK_MAX": "7"}
TORCHRUN = {"RANK": "5", "WORLD_SIZE": "8", "GROUP_WORLD_SIZE": "2"}


@pytest.mark.parametrize(
    ("text", "environment", "shard"),
    [
        ("2/8", {"RANK": "5", "WORLD_SIZE": "6"}, Shard(2, 8)),
        ("1/1", {"RANK": "5", "WORLD_SIZE": "6"}, None),
        (None, {}, None),
        (None, {"RANK": "0", "WORLD_SIZE": "4"}, Shard(1, 4)),
        (None, {"RANK": "0", "WORLD_SIZE": "1"}, None),
        (None, {"SLURM_PROCID": "7", "SLURM_STEP_NUM_TASKS": "8"}, Shard(8, 8)),
        (None, {"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, None),
        (None, {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_MIN": "0", "SLURM_ARRAY_TASK_MAX": "7"}, None),
        ("auto", {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_MIN": "0", "SLURM_ARRAY_TASK_MAX": "7"}, Shard(4, 8)),
        ("auto", {"SLURM_ARRAY_TASK_ID": "8", "SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_MAX": "8"}, Shard(8, 8)),
        (
            "auto",
            {
                "SLURM_ARRAY_TASK_ID": "5",
                "SLURM_ARRAY_TASK_MIN": "1",
                "SLURM_ARRAY_TASK_MAX": "7",
                "SLURM_ARRAY_TASK_STEP": "2",
            },
            Shard(3, 4),
        ),
        ("auto", {"RANK": "1", "WORLD_SIZE": "2"}, Shard(2, 2)),
        ("auto", {"RANK": "0", "WORLD_SIZE": "1"}, None),
        ("auto", {"SLURM_PROCID": "7", "SLURM_STEP_NUM_TASKS": "8"}, Shard(8, 8)),
        ("auto", {"SKYPILOT_NODE_RANK": "1", "SKYPILOT_NUM_NODES": "3"}, Shard(2, 3)),
        ("auto/4", {"JOB_COMPLETION_INDEX": "0"}, Shard(1, 4)),
        ("auto/2", {"RANK": "1", "WORLD_SIZE": "2"}, Shard(2, 2)),
        # A launcher of one process inside of another one, or torchrun on every machine of another one.
        ("auto", {**ARRAY, "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"}, Shard(4, 8)),
        ("auto", {**TORCHRUN, "SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2"}, Shard(6, 8)),
        ("auto", {**TORCHRUN, "SKYPILOT_NODE_RANK": "1", "SKYPILOT_NUM_NODES": "2"}, Shard(6, 8)),
        ("auto", {**TORCHRUN, "JOB_COMPLETION_INDEX": "1"}, Shard(6, 8)),
    ],
)
def test_which_shard(text: str | None, environment: dict[str, str], shard: Shard | None) -> None:
    assert parse_shard(text, environment) == shard


@pytest.mark.parametrize("text", ["0/8", "9/8", "1", "a/b", "1/0", "1/8 ", "-1/8", "auto/", "auto/x"])
def test_what_is_no_shard_is_one_message(text: str) -> None:
    with pytest.raises(UserError) as raised:
        parse_shard(text, {})
    assert (raised.value.code, raised.value.where, raised.value.found) == ("E-cli-shard", "--shard", text)


@pytest.mark.parametrize(
    ("text", "environment", "found"),
    [
        ("auto", {}, "none of their variables"),
        ("auto", {"RANK": "x", "WORLD_SIZE": "2"}, "RANK=x"),
        ("auto", {"JOB_COMPLETION_INDEX": "2"}, "JOB_COMPLETION_INDEX=2"),
        ("auto/2", {"JOB_COMPLETION_INDEX": "2"}, "2, but this is process 3"),
        ("auto/0", {"JOB_COMPLETION_INDEX": "2"}, "0, but this is process 3"),
        ("auto/8", {"RANK": "1", "WORLD_SIZE": "2"}, "8, but this is process 2 of 2"),
        ("auto", {**ARRAY, "SLURM_ARRAY_TASK_COUNT": "3"}, "3 tasks from 0 to 7"),
        ("auto", {**ARRAY, "RANK": "1", "WORLD_SIZE": "2"}, "a SLURM array: 4/8; torchrun: 2/2"),
        # One torchrun in each task of an array.
        (
            "auto",
            {**ARRAY, "RANK": "1", "WORLD_SIZE": "4", "GROUP_WORLD_SIZE": "1"},
            "a SLURM array: 4/8; torchrun: 2/4",
        ),
        ("auto/8", {**ARRAY, "JOB_COMPLETION_INDEX": "4"}, "Kubernetes: 5/?; a SLURM array: 4/8"),
    ],
)
def test_auto_without_a_place_is_one_message(text: str, environment: dict[str, str], found: str) -> None:
    with pytest.raises(UserError) as raised:
        parse_shard(text, environment)
    assert (raised.value.code, raised.value.found) == ("E-cli-shard-launcher", found)


def test_the_table_of_a_run_without_chains_has_no_rows(tmp_path: Path) -> None:
    parquet.write_chains(tmp_path / "c.parquet", segments.merge_segments(tmp_path))
    assert parquet.count_rows(tmp_path / "c.parquet") == 0 and list(parquet.read_chains(tmp_path / "c.parquet")) == []
