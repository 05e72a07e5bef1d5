"""Several processes share a stage: their shards merge to the bytes of one process, whatever dies on the way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import tiny
from crashing import Crash, crash
from expect import user_error
from potstill import evaluation, run_status, runner, shared_work, stages
from potstill.cli.stage_commands import SHARDED
from potstill.errors import UserError
from potstill.evaluation import answers, decoding
from potstill.stages import align
from potstill.stages import filter as filter_stage
from potstill.storage import atomic, run_folder
from potstill.storage.segments import Shard
from process_group import together

# More batches than one in each file, sampled answers, and interpolations.
CHANGES = ("evaluate.decodings=[greedy, vote-3]", "evaluate.batch_tokens=150", "evaluate.interpolate=[0.5]")
SHARED = ("filter", "align", "evaluate", "test")


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of two questions, so that the few questions of the tiny run have several."""
    monkeypatch.setattr(filter_stage, "BLOCK_QUESTIONS", 2)
    monkeypatch.setattr(align, "BLOCK_QUESTIONS", 2)


@pytest.fixture(scope="module")
def whole(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make(world, tmp_path_factory.mktemp("whole") / "run", *CHANGES, until="test")


def before(whole: Path, stage: str, folder: Path) -> Path:
    return tiny.before(whole, folder, stage)


def of_stage(run_dir: Path, stage: str) -> dict[str, bytes]:
    return {name: data for name, data in tiny.contents(run_dir).items() if name.startswith(f"{stage}/")}


def test_the_option_exists_for_every_shared_stage() -> None:
    assert [name for name in stages.ALL_STAGES if stages.open_stage(name).shared] == list(SHARDED)


@pytest.mark.parametrize("stage", SHARED)
def test_shards_make_the_files_of_one_process(world: Path, whole: Path, tmp_path: Path, stage: str) -> None:
    run_dir, recipe = before(whole, stage, tmp_path / "run"), tiny.recipe(world, *CHANGES)
    for number in (3, 1):
        runner.run_shard(recipe, Shard(number, 3), stage, run_dir=run_dir)
        assert not (run_dir / stage / "manifest.json").exists()
        assert list(run_dir.glob(f"{stage}/**/shards/*"))
    runner.run_shard(recipe, Shard(1, 3), stage, run_dir=run_dir)  # again: nothing is left to do
    runner.run_shard(recipe, Shard(2, 3), stage, run_dir=run_dir)  # the last one merges
    assert of_stage(run_dir, stage) == of_stage(whole, stage)
    runner.run_shard(recipe, Shard(1, 3), stage, run_dir=run_dir)  # too late: nothing changes
    assert of_stage(run_dir, stage) == of_stage(whole, stage)


@pytest.mark.parametrize("stage", SHARED)
def test_one_process_completes_the_shards_that_are_there(world: Path, whole: Path, tmp_path: Path, stage: str) -> None:
    run_dir, recipe = before(whole, stage, tmp_path / "run"), tiny.recipe(world, *CHANGES)
    runner.run_shard(recipe, Shard(2, 3), stage, run_dir=run_dir)
    runner.run_shard(recipe, Shard(1, 2), stage, run_dir=run_dir)  # another number of shards uses what is stored
    runner.run(recipe, run_dir, until=stage)
    assert of_stage(run_dir, stage) == of_stage(whole, stage)


@pytest.mark.parametrize("moment", [3, 9, 20])
def test_a_crash_loses_no_batch(world: Path, whole: Path, tmp_path: Path, moment: int) -> None:
    run_dir, recipe = before(whole, "evaluate", tmp_path / "run"), tiny.recipe(world, *CHANGES)
    with pytest.raises(Crash), crash(moment):
        runner.run_shard(recipe, Shard(1, 2), "evaluate", run_dir=run_dir)
    runner.run_shard(recipe, Shard(2, 2), "evaluate", run_dir=run_dir)
    runner.run_shard(recipe, Shard(1, 2), "evaluate", run_dir=run_dir)
    assert of_stage(run_dir, "evaluate") == of_stage(whole, "evaluate")


def test_what_one_process_began_shards_continue(world: Path, whole: Path, tmp_path: Path) -> None:
    run_dir, recipe = before(whole, "evaluate", tmp_path / "run"), tiny.recipe(world, *CHANGES)
    with pytest.raises(Crash), crash(9):
        runner.run(recipe, run_dir, until="evaluate")
    begun = run_dir / "evaluate" / "0" / "zero-shot-rationale.greedy.jsonl"
    assert 0 < begun.read_bytes().count(b"\n") < (whole / begun.relative_to(run_dir)).read_bytes().count(b"\n")
    for number in (1, 2):
        runner.run_shard(recipe, Shard(number, 2), "evaluate", run_dir=run_dir)
    assert of_stage(run_dir, "evaluate") == of_stage(whole, "evaluate")


@pytest.mark.parametrize("stage, split", [("evaluate", "validation"), ("test", "test")])
def test_the_status_counts_the_answers_of_shards(
    world: Path, whole: Path, tmp_path: Path, stage: str, split: str
) -> None:
    """Also while a checkpoint is evaluated; nothing is counted twice when another number of shards continues."""
    run_dir, recipe = before(whole, stage, tmp_path / "run"), tiny.recipe(world, *CHANGES)
    specs = decoding.list_sampling_specs(recipe.evaluate.decodings)
    expected = {f"{form}.{spec.name}": spec.samples for form in recipe.evaluate.formats for spec in specs}
    assert run_status.generated_answers(recipe, stage) == expected

    def count() -> tuple[int, int]:
        counts = run_status.count_so_far(run_dir, recipe, stage)
        return counts["answers"], counts["answers_in_all"]

    whole_files = [path for path in whole.glob(f"{stage}/[0-9]*/*.jsonl") if path.stem in expected]
    total = sum(path.read_bytes().count(b"\n") for path in whole_files)
    assert count() == (0, total)
    found = [0]
    for shard in (Shard(2, 3), Shard(1, 2)):
        runner.run_shard(recipe, shard, stage, run_dir=run_dir)
        lines = sum(path.read_bytes().count(b"\n") for path in run_dir.glob(f"{stage}/[0-9]*/shards/*.jsonl"))
        found.append(lines)
        assert count() == (lines, total)
    assert 0 < found[1] < found[2] < total
    text = run_status.describe_progress(run_status.count_so_far(run_dir, recipe, stage))
    assert f"{found[2]} of {total} answers" in text
    runner.run(recipe, run_dir, until=stage)
    (run_dir / stage / "manifest.json").unlink()
    assert count() == (total, total)


def test_refused_shards(world: Path, whole: Path, tmp_path: Path) -> None:
    run_dir, recipe = before(whole, "evaluate", tmp_path / "run"), tiny.recipe(world, *CHANGES)
    with user_error("E-run-stage-missing"):  # the earlier stages are not finished
        runner.run_shard(recipe, Shard(1, 2), "test", run_dir=run_dir)
    with run_folder.lock_shard(run_dir, 1, 2):
        with user_error("E-run-locked"):
            runner.run_shard(recipe, Shard(1, 2), "evaluate", run_dir=run_dir)
        with user_error("E-run-locked"):  # it would do the same work as the other
            runner.run_shard(recipe, Shard(1, 3), "evaluate", run_dir=run_dir)
        runner.run_shard(recipe, Shard(2, 2), "evaluate", run_dir=run_dir)
    with user_error("E-run-stage-differs"):
        runner.run_shard(
            tiny.recipe(world, *CHANGES, "evaluate.max_tokens=5"), Shard(1, 2), "evaluate", run_dir=run_dir
        )


def run_to(rank: int, world: Path, run_dir: Path, stage: str, victim: int | None) -> None:
    """The command of a launcher; the victim is killed after its second batch."""
    stored = 0
    batches = evaluation.answer_batches

    def killed(*arguments, **keywords):
        nonlocal stored
        for batch in batches(*arguments, **keywords):
            if rank == victim and stored == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            stored += 1
            yield batch

    evaluation.answer_batches = killed
    tiny.make(world, run_dir, *CHANGES, until=stage)


@pytest.mark.parametrize("stage", ["sample", *SHARED])
def test_a_launcher_shares_the_stage(world: Path, whole: Path, tmp_path: Path, stage: str) -> None:
    run_dir = before(whole, stage, tmp_path / "run")
    assert together(2, run_to, world, run_dir, stage, None) == [0, 0]
    assert of_stage(run_dir, stage) == of_stage(whole, stage)


@pytest.mark.parametrize("victim", [0, 1])
def test_nobody_waits_for_a_process_that_was_killed(
    world: Path, whole: Path, tmp_path: Path, victim: int, capfd: pytest.CaptureFixture[str]
) -> None:
    run_dir = before(whole, "evaluate", tmp_path / "run")
    codes = together(2, run_to, world, run_dir, "evaluate", victim, timeout=60)
    assert codes == ([-signal.SIGKILL, 1] if victim == 0 else [1, -signal.SIGKILL])
    errors = capfd.readouterr().err
    assert "E-run-process-ended" in errors
    if victim == 1:
        assert shared_work.completing_command("evaluate", run_dir) in errors
    assert not (run_dir / "evaluate" / "manifest.json").exists()
    stored = list(run_dir.glob(f"evaluate/*/{answers.SHARDS_FOLDER}/*.jsonl"))
    assert any(path.stat().st_size for path in stored)
    runner.run(tiny.recipe(world, *CHANGES), run_dir, until="evaluate")
    assert of_stage(run_dir, "evaluate") == of_stage(whole, "evaluate")


def fail_in(rank: int, world: Path, run_dir: Path, changes: tuple[str, ...]) -> None:
    """The command of a launcher; the second process has other changes of the recipe, and cannot store its answers."""

    def refuse(operation: str, moment: str, path: Path) -> None:
        if operation == "append" and path.parent.name == answers.SHARDS_FOLDER:
            raise UserError("the disk is full", code="E-storage-os-error", where=path)

    if rank == 1:
        atomic.crash = refuse
    tiny.make(world, run_dir, *CHANGES, *(changes if rank == 1 else ()), until="evaluate")


@pytest.mark.parametrize(
    "changes, code", [((), "E-storage-os-error"), (("report.examples=4",), "E-train-different-recipes")]
)
def test_an_error_of_one_process_is_told_by_the_first(
    world: Path, whole: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], changes: tuple[str, ...], code: str
) -> None:
    run_dir = before(whole, "evaluate", tmp_path / "run")
    assert together(2, fail_in, world, run_dir, changes, timeout=60) == [1, 1]
    errors = capfd.readouterr().err
    assert errors.count(code) >= 2 and "E-run-process-ended" in errors


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds the process in /proc")
def test_torchrun_shares_a_stage_and_a_killed_process_is_named(world: Path, whole: Path, tmp_path: Path) -> None:
    run_dir = before(whole, "evaluate", tmp_path / "run")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "potstill"]
    started = subprocess.Popen([*command, "evaluate", str(run_dir)], stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    end = time.monotonic() + 120
    while not (stored := list(run_dir.glob("evaluate/*/shards/*.0002-of-0002.jsonl"))) and time.monotonic() < end:
        time.sleep(0.01)
    assert stored, "the second process has not begun"
    workers = Path(f"/proc/{started.pid}/task/{started.pid}/children").read_text().split()
    [second] = [pid for pid in workers if b"\0RANK=1\0" in Path(f"/proc/{pid}/environ").read_bytes()]
    os.kill(int(second), signal.SIGKILL)
    _, errors = started.communicate(timeout=120)
    assert started.returncode != 0 and shared_work.completing_command("evaluate", run_dir) in errors, errors
    subprocess.run([*command, "evaluate", str(run_dir)], check=True, timeout=120, cwd=tmp_path)
    assert of_stage(run_dir, "evaluate") == of_stage(whole, "evaluate")
