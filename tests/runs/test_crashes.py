"""Resume is exact: a crash before, in the middle of, and after every operation of `storage` in every stage.

Before an operation the disk is as it was after the one before, so "before" is tried for a stage's first operation only.

Each stage is run on a copy of a run whose earlier stages are finished, stopped at one moment of one operation, and run
again; then every digested file must hold the bytes of the run that nothing stopped.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import tiny
from crashing import Crash, crash
from potstill import stages
from potstill.report import figures
from potstill.storage import atomic

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def whole(_no_figures: None, world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nothing stopped."""
    return tiny.make(world, tmp_path_factory.mktemp("whole") / "run")


@pytest.fixture(scope="module", autouse=True)
def _no_figures() -> Iterator[None]:
    """Drawing takes a second and writes nothing: the report stage is crashed some sixty times without it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "draw_figures", lambda told: {})
        yield


@pytest.mark.parametrize("stage", stages.STAGES)
def test_a_crash_at_any_operation_leaves_nothing_that_a_resume_does_not_mend(
    world: Path, whole: Path, tmp_path: Path, stage: str
) -> None:
    wanted = {name: content for name, content in tiny.contents(whole).items() if tiny.belongs(name, stage)}
    moments = _moments(world, tiny.before(whole, tmp_path / "count", stage), stage)
    assert len(moments) >= 6, "a stage writes at least its beginning and its manifest"
    for number, (operation, moment, name) in enumerate(moments):
        if moment == "before" and number > 0:
            continue
        run_dir = tiny.before(whole, tmp_path / str(number), stage)
        with pytest.raises(Crash), crash(number):
            tiny.make(world, run_dir, until=stage)
        tiny.make(world, run_dir, until=stage)
        found = {name: content for name, content in tiny.contents(run_dir).items() if tiny.belongs(name, stage)}
        different = sorted(n for n in wanted.keys() | found.keys() if wanted.get(n) != found.get(n))
        assert not different, f"{stage}: {operation} of {name}, {moment}: {different}"
        shutil.rmtree(run_dir)


def test_crash_upon_crash(world: Path, whole: Path, tmp_path: Path) -> None:
    """A machine that stops again and again, each time a little later, comes to the same end."""
    run_dir, crashes = tmp_path / "run", 0
    while True:
        try:
            with crash(10 + 3 * crashes):  # later each time: a stage needs room to come to its next lasting file
                tiny.make(world, run_dir)
            break
        except Crash:
            crashes += 1
    assert crashes > 5
    assert tiny.contents(run_dir) == tiny.contents(whole)


def test_two_runs_of_one_recipe_are_equal(world: Path, whole: Path, tmp_path: Path) -> None:
    assert tiny.contents(tiny.make(world, tmp_path / "again")) == tiny.contents(whole)


def _moments(world: Path, run_dir: Path, stage: str) -> list[tuple[str, str, str]]:
    """Run a stage and note every moment of every operation, those of the log left out: it is not resumed."""
    seen = []

    def note(operation: atomic.Operation, moment: atomic.Moment, path: Path) -> None:
        if path.name != "log.jsonl":
            seen.append((operation, moment, path.relative_to(run_dir).as_posix()))

    atomic.crash = note
    try:
        tiny.make(world, run_dir, until=stage)
    finally:
        atomic.crash = atomic._no_crash
    return seen
