"""Power losses: whatever was not flushed is lost or torn, and the resumed run still comes to the same bytes.

`POTSTILL_POWER` says how many moments a stage gets (12 if not set, spread over all there are; 0: every one).
"""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import pytest

import tiny
from potstill import stages, storage
from potstill.report import figures
from potstill.training.checkpoints import find_newest_checkpoint
from power_loss import PowerLoss, cut_at
from tiny import ON_POLICY, REPLAY

LOSSES = int(os.environ.get("POTSTILL_POWER", "12"))
LONGER = ("train.steps=12", REPLAY, ON_POLICY.replace("steps: 3", "steps: 6"))
NEVER = 1 << 60


@pytest.fixture(scope="module")
def whole(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nothing stopped."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "draw_figures", lambda told: {})
        return tiny.make(world, tmp_path_factory.mktemp("whole") / "run", *LONGER)


@pytest.mark.slow
@pytest.mark.parametrize("stage", stages.ALL_STAGES)
def test_a_power_loss_at_any_moment_costs_no_byte(
    world: Path, whole: Path, tmp_path: Path, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(figures, "draw_figures", lambda told: {})
    wanted = {name: content for name, content in tiny.contents(whole).items() if tiny.belongs(name, stage)}
    with cut_at(tiny.before(whole, tmp_path / "count", stage), NEVER, tmp_path / "none") as moments:
        tiny.make(world, tmp_path / "count", *LONGER, until=stage)
    losses = len(moments) if not LOSSES else LOSSES if stage in ("train", "repair") else max(1, LOSSES // 4)
    for turn in range(losses):
        number, at = turn * len(moments) // losses, tmp_path / str(turn)
        draw = random.Random(f"{stage} {turn}") if turn % 3 else None
        before = tiny.before(whole, tmp_path / f"{turn}-before", stage)
        try:
            with cut_at(before, number, at, draw):
                tiny.make(world, before, *LONGER, until=stage)
        except PowerLoss:
            pass
        assert at.exists(), "the power went"
        tiny.make(world, at, *LONGER, until=stage)
        found = {name: content for name, content in tiny.contents(at).items() if tiny.belongs(name, stage)}
        different = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
        assert not different, f"{stage}: {moments[number]}: {different}"
        shutil.rmtree(at)
        shutil.rmtree(before)


@pytest.mark.slow
def test_power_loss_upon_power_loss(world: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "draw_figures", lambda told: {})
    at, losses = tmp_path / "0", 0
    at.mkdir()
    while True:
        after = tmp_path / str(losses + 1)
        try:
            with cut_at(at, 40 + 25 * losses, after, random.Random(losses)):
                tiny.make(world, at, *LONGER)
            break
        except PowerLoss:
            losses, at = losses + 1, after
    assert losses > 5
    assert tiny.contents(at) == tiny.contents(whole)


@pytest.mark.parametrize("lost", ["all rows", "the last row", "a row in the middle", "a page", "half a row"])
def test_a_checkpoint_without_its_metrics_is_not_one_to_continue_from(
    world: Path, whole: Path, tmp_path: Path, lost: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a disk that says that it has flushed and has not leaves it, or a run of an older version."""
    run_dir = tiny.before(whole, tmp_path / "run", "evaluate")
    storage.remove(run_dir / "train" / "manifest.json")
    path = run_dir / "train" / "metrics.jsonl"
    rows = path.read_bytes().splitlines(keepends=True)
    left = {
        "all rows": [],
        "the last row": rows[:-1],
        "a row in the middle": rows[:5] + rows[6:],
        "a page": [*rows[:4], b"\0" * len(rows[4] + rows[5]) + b"\n", *rows[6:]],
        "half a row": [*rows[:4], rows[4][:20] + b"\n", *rows[5:]],
    }
    path.write_bytes(b"".join(left[lost]))
    tiny.make(world, run_dir, *LONGER, until="train")
    assert "training continues from step 0" in capsys.readouterr().err
    found = tiny.contents(run_dir)
    assert found == {name: content for name, content in tiny.contents(whole).items() if name in found}


def test_the_newest_checkpoint_whose_metrics_are_complete(tmp_path: Path) -> None:
    folder, metrics = tmp_path / "checkpoints", tmp_path / "metrics.jsonl"
    for step in (10, 20, 30):
        storage.write_file(folder / str(step) / "engine.safetensors", b"")
    storage.write_jsonl(metrics, [{"step": step} for step in range(1, 26)])
    assert find_newest_checkpoint(folder, metrics) == 20
    assert [(folder / name / "engine.safetensors").exists() for name in ("10", "20", "30")] == [False, True, True]


def test_a_row_is_certain_after_a_sync_and_no_row_before_it_is_lost(tmp_path: Path) -> None:
    """Of the double itself: that it forgets what was not flushed, and keeps what was."""
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    with (
        pytest.raises(PowerLoss),
        cut_at(run_dir, 12, tmp_path / "left") as moments,
        storage.Appender(run_dir / "a.jsonl") as rows,
    ):
        rows.append([{"x": 1}])
        rows.sync()
        for number in range(9):
            rows.append([{"x": number}])
    assert (tmp_path / "left" / "a.jsonl").read_bytes() == b'{"x":1}\n' and len(moments) == 13


def test_a_rename_whose_folder_was_not_flushed_may_be_lost(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    storage.write_file(run_dir / "a", b"old")
    for number, expected in ((3, b"old"), (4, b"new")):
        with pytest.raises(PowerLoss), cut_at(run_dir, number, tmp_path / str(number)) as moments:
            storage.write_file(run_dir / "a", b"new")
            storage.write_file(run_dir / "b", b"")
        assert (tmp_path / str(number) / "a").read_bytes() == expected, moments
        storage.write_file(run_dir / "a", b"old")


def test_new_folders_are_certain_with_what_is_in_them(tmp_path: Path) -> None:
    def write(run_dir: Path) -> None:
        storage.write_file(run_dir / "a" / "b" / "c", b"c")
        storage.write_file(run_dir / "gone", b"")
        with storage.write_folder(run_dir / "d" / "e") as inside:
            (inside / "f").mkdir()
            (inside / "f" / "g").write_bytes(b"g")
        with storage.Appender(run_dir / "h" / "i.jsonl") as rows:
            rows.append([{}])
        storage.remove(run_dir / "gone")

    def left(run_dir: Path) -> set[str]:
        return {path.relative_to(run_dir).as_posix() for path in run_dir.rglob("*") if path.is_file()}

    for folder in ("counted", "run"):
        (tmp_path / folder).mkdir()
    with cut_at(tmp_path / "counted", NEVER, tmp_path / "none") as moments:
        write(tmp_path / "counted" / "x")
    with pytest.raises(PowerLoss), cut_at(tmp_path / "run", len(moments), tmp_path / "left"):
        write(tmp_path / "run" / "x")
        storage.write_file(tmp_path / "run" / "late", b"")
    storage.delete_partial_files(tmp_path / "left" / "x")
    assert left(tmp_path / "left" / "x") == {"a/b/c", "d/e/f/g", "h/i.jsonl"}
