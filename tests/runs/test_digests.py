"""Digests are verified: one changed byte in the input of a stage stops it, and `potstill check` finds every change."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

import tiny
from expect import user_error
from potstill import cli, runner, stages, storage
from potstill.errors import UserError
from potstill.storage import atomic, manifest, read
from tiny import ON_POLICY, REPLAY

ALL = (REPLAY, ON_POLICY)


@pytest.fixture(scope="module")
def whole(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make(world, tmp_path_factory.mktemp("whole") / "run", *ALL)


@pytest.fixture
def run_dir(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "run"))


def change(path: Path) -> None:
    """One bit of one byte in the middle; size and times stay."""
    before = path.stat()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def cut_before(run_dir: Path, stage: str) -> None:
    for later in stages.stages_from(stage):
        storage.remove(run_dir / later)
    storage.remove(run_dir / "student")


def checked(run_dir: Path) -> tuple[int, str]:
    found = CliRunner().invoke(cli.app, ["check", str(run_dir)])
    return found.exit_code, found.output


@pytest.mark.parametrize(
    "changed, stage",
    [
        ("collect/sums.train.jsonl", "sample"),  # a gold answer
        ("collect/sums.train.jsonl", "filter"),
        ("sample/chains.parquet", "filter"),
        ("sample/chains.parquet", "align"),
        ("filter/verdicts.parquet", "align"),
        ("align/student-tokenizer-text/ids.npy", "train"),
        ("train/checkpoints/2/model.safetensors", "evaluate"),
        ("train/checkpoints/4/config.json", "evaluate"),
        ("evaluate/scores.json", "select"),
        ("select/choice.json", "test"),
        ("select/choice.json", "repair"),
        ("repair/checkpoints/3/model.safetensors", "test"),
        ("train/metrics.jsonl", "report"),
    ],
)
def test_a_changed_byte_stops_the_stage_that_would_read_it(
    world: Path, run_dir: Path, changed: str, stage: str
) -> None:
    cut_before(run_dir, stage)
    path = run_dir / changed if not changed.startswith("evaluate") else run_dir / "evaluate" / "2" / "scores.json"
    path = path if path.exists() else next(path.parent.glob("*.npy"))
    change(path)
    before = tiny.contents(run_dir)
    with pytest.raises(UserError, match="E-run-file-changed") as fault:
        tiny.make(world, run_dir, *ALL, until=stage)
    assert fault.value.where == str(path) and fault.value.found.startswith("sha256 ")
    assert "potstill check RUN" in fault.value.hint
    after = tiny.contents(run_dir)
    after.pop(f"{stage}/begun.json", None)
    assert after == before, "nothing was made, and nothing removed"
    assert checked(run_dir)[0] == 2 and f"{path}: sha256 " in checked(run_dir)[1]


def test_what_a_later_stage_does_not_open_does_not_stop_it(world: Path, whole: Path, run_dir: Path) -> None:
    """Of ten checkpoints `test` opens one. `check` reads them all."""
    cut_before(run_dir, "test")
    chosen = manifest.read_manifest(run_dir / "select" / "manifest.json").counts["step"]
    change(run_dir / "train" / "checkpoints" / ("2" if chosen == 4 else "4") / "model.safetensors")
    tiny.make(world, run_dir, *ALL, until="test")
    name = "test/manifest.json"
    assert (run_dir / name).read_bytes() == (whole / name).read_bytes() and checked(run_dir)[0] == 2


def test_an_interrupted_evaluation_does_not_take_over_a_changed_answer(world: Path, run_dir: Path) -> None:
    cut_before(run_dir, "select")
    storage.remove(run_dir / "evaluate" / "manifest.json")
    [answers] = (run_dir / "evaluate" / "2").glob("zero-shot-rationale.*.jsonl")
    change(answers)
    with pytest.raises(UserError, match="E-run-file-changed"):
        tiny.make(world, run_dir, *ALL, until="evaluate")


@pytest.mark.parametrize("file", ["model.safetensors", "engine.safetensors", "config.json"])
@pytest.mark.parametrize("stage", ["train", "repair"])
def test_training_does_not_continue_from_a_changed_checkpoint(
    world: Path, run_dir: Path, stage: str, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stop(BaseException):
        pass

    def stop(operation: atomic.Operation, moment: atomic.Moment, path: Path) -> None:
        if (operation, moment, path.name) == ("remove", "before", "digests"):
            raise Stop

    cut_before(run_dir, stage)
    monkeypatch.setattr(atomic, "crash", stop)
    with pytest.raises(Stop):
        tiny.make(world, run_dir, *ALL, until=stage)
    monkeypatch.undo()
    last = run_dir / stage / "checkpoints" / ("4" if stage == "train" else "3")
    change(last / file)
    with user_error("E-train-checkpoint-changed") as fault:
        tiny.make(world, run_dir, *ALL, until=stage)
    assert fault.value.where == str(last / file)
    storage.remove(last)
    tiny.make(world, run_dir, *ALL, until=stage)
    assert not (run_dir / stage / "digests").exists()


def test_the_same_bytes_come_after_a_checkpoint_is_removed(world: Path, whole: Path, run_dir: Path) -> None:
    cut_before(run_dir, "evaluate")
    storage.remove(run_dir / "train" / "manifest.json")
    storage.remove(run_dir / "train" / "checkpoints" / "4")
    tiny.make(world, run_dir, *ALL, until="train")
    found = tiny.contents(run_dir)
    assert found == {name: content for name, content in tiny.contents(whole).items() if name in found}


def test_a_training_that_grows_is_verified_first(world: Path, run_dir: Path) -> None:
    change(run_dir / "train" / "checkpoints" / "4" / "model.safetensors")
    before = tiny.contents(run_dir)
    with pytest.raises(UserError, match="E-run-file-changed"):
        tiny.make(world, run_dir, *ALL, "train.steps=6")
    assert tiny.contents(run_dir) == before


def test_redo_verifies_what_the_stage_reads_before_it_removes_anything(world: Path, run_dir: Path) -> None:
    change(run_dir / "sample" / "chains.parquet")
    before = tiny.contents(run_dir)
    with pytest.raises(UserError, match="E-run-file-changed"):
        runner.run(tiny.recipe(world, *ALL), run_dir=run_dir, redo="filter")
    assert tiny.contents(run_dir) == before


def test_a_damaged_stage_can_be_made_again(world: Path, whole: Path, run_dir: Path) -> None:
    change(run_dir / "filter" / "verdicts.parquet")
    storage.remove(next((run_dir / "align").glob("*/ids.npy")))
    runner.run(tiny.recipe(world, *ALL), run_dir=run_dir, redo="filter")
    assert tiny.contents(run_dir) == tiny.contents(whole)


def test_a_stage_that_is_done_is_not_read_again(world: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("read")

    monkeypatch.setattr(manifest, "find_damaged_files", never)
    before = tiny.contents(run_dir)
    tiny.make(world, run_dir, *ALL)
    assert tiny.contents(run_dir) == before


def test_a_file_is_read_once_in_a_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read, "RACE_WINDOW_NS", -1)
    (tmp_path / "a").write_bytes(b"a" * 10)
    seen: list[int] = []
    first = storage.file_digest(tmp_path / "a", seen.append)
    assert (
        read.is_digest_cached(tmp_path / "a")
        and storage.file_digest(tmp_path / "a", seen.append) == first
        and sum(seen) == 10
    )
    change(tmp_path / "a")
    assert storage.file_digest(tmp_path / "a", seen.append) != first and sum(seen) == 20


@pytest.mark.parametrize("stage", ["collect", "sample"])
def test_nobody_is_told_to_make_paid_chains_again(stage: str) -> None:
    kinds = {"teacher.kind": "openai"} if stage == "sample" else {}
    for identity in (None, manifest.Identity(stage, {}, kinds, {})):
        assert "--redo" not in manifest.damage_hint(stage, identity)


def test_check_lists_everything_and_changes_nothing(run_dir: Path) -> None:
    assert checked(run_dir)[0] == 0 and checked(run_dir)[1].endswith("no difference\n")
    change(run_dir / "collect" / "sums.test.jsonl")
    (run_dir / "train" / "metrics.jsonl").write_bytes(b"")
    storage.remove(run_dir / "student" / "README.md")
    (run_dir / "align" / "manifest.json").write_text('{"format": 1, "stage": [')
    (run_dir / "notes.txt").write_text("mine")
    before = tiny.contents(run_dir)
    code, said = checked(run_dir)
    lines = said.splitlines()
    assert code == 2 and lines[-1].endswith(": 4 differences")
    assert f"{run_dir}/student/README.md: no such file" in lines
    assert [line for line in lines if line.startswith(f"{run_dir}/train/metrics.jsonl: 0 bytes, not ")]
    assert [line for line in lines if line.startswith(f"{run_dir}/collect/sums.test.jsonl: sha256 ")]
    assert [line for line in lines if line.startswith(f"{run_dir}/align/manifest.json: not valid JSON")]
    assert tiny.contents(run_dir) == before


def test_check_of_a_run_that_is_under_way(world: Path, run_dir: Path) -> None:
    cut_before(run_dir, "train")
    storage.write_json(
        run_dir / "train" / "begun.json", manifest.read_manifest(run_dir / "align" / "manifest.json").identity.as_json()
    )
    code, said = checked(run_dir)
    assert code == 0 and "train: not finished" in said


def test_check_sees_a_stage_from_another_run(world: Path, run_dir: Path, tmp_path: Path) -> None:
    other = tiny.make(world, tmp_path / "other", "seed=4", until="filter")
    storage.remove(run_dir / "filter")
    shutil.copytree(other / "filter", run_dir / "filter")
    code, said = checked(run_dir)
    assert code == 2 and "filter/manifest.json: was made from other files of sample" in said


def test_check_of_what_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="E-run-not-a-run"):
        CliRunner().invoke(cli.app, ["check", str(tmp_path)], catch_exceptions=False)


@pytest.mark.parametrize(
    "arguments", [["show", "--chain", "sums/0"], ["show", "--batch", "1"], ["export", "--as", "messages"]]
)
def test_records_of_a_damaged_run_are_not_shown(run_dir: Path, arguments: list[str]) -> None:
    (run_dir / "collect" / "sums.train.jsonl").write_bytes(b"")
    with pytest.raises(UserError, match="E-run-file-changed"):
        CliRunner().invoke(cli.app, [arguments[0], str(run_dir), *arguments[1:]], catch_exceptions=False)


@pytest.mark.parametrize("content", ["[]", "null", "{}", '"x"', "7", '{"": 3}', '{"": {"style": {}}}'])
def test_a_damaged_file_of_collect_is_one_message(run_dir: Path, content: str) -> None:
    from potstill.data import run_questions

    for name, read_file in (
        (run_questions.TASK_PROMPTS_FILE, run_questions.read_task_prompts),
        (run_questions.OVERLAPS_FILE, run_questions.read_overlaps),
    ):
        (run_dir / "collect" / name).write_text(content)
        if name == run_questions.TASK_PROMPTS_FILE or content not in ("{}", '{"": 3}'):
            with pytest.raises(UserError, match="E-storage-invalid-format"):
                read_file(run_dir)
