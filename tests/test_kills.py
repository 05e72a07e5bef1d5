"""Real kills: `kill -9` at random moments of sample, train and evaluate; the resumed run holds the same bytes.

`POTSTILL_KILLS` says how many kills a stage gets (2 if not set: each costs a process that loads torch).
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import tiny

pytestmark = pytest.mark.slow
KILLS = int(os.environ.get("POTSTILL_KILLS", "2"))
# Longer than the tiny run of other tests, so that a kill falls into the stage and not behind it.
CHANGES = ("teacher.samples=40", "train.steps=60", "train.checkpoint_every=10", "evaluate.max_tokens=24")


@pytest.fixture(scope="module")
def whole(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make(world, tmp_path_factory.mktemp("whole") / "run", *CHANGES, until="evaluate")


@pytest.mark.parametrize("stage", ["sample", "train", "evaluate"])
def test_a_killed_run_comes_to_the_same_bytes(world: Path, whole: Path, tmp_path: Path, stage: str) -> None:
    wanted = {name: content for name, content in tiny.contents(whole).items() if name.startswith(f"{stage}/")}
    draw = random.Random(stage)
    kills, at, number = 0, tmp_path / "0", 0
    while kills < KILLS:
        if _killed_within(world, at, stage, draw):
            kills += 1
        else:  # the stage ended first: it must be right, and the kills go on in a new run
            _compare(at, wanted, stage)
            number += 1
            at = tmp_path / str(number)
    tiny.make(world, at, *CHANGES, until=stage)
    _compare(at, wanted, stage)


def _compare(at: Path, wanted: dict[str, bytes], stage: str) -> None:
    found = {name: content for name, content in tiny.contents(at).items() if name.startswith(f"{stage}/")}
    assert found.keys() == wanted.keys()
    assert [name for name in wanted if wanted[name] != found[name]] == []


def _killed_within(world: Path, at: Path, stage: str, draw: random.Random) -> bool:
    """Run up to a stage in a process of its own and kill it a random moment after the stage began to write."""
    program = (
        "import tiny; from pathlib import Path; "
        f"tiny.make(Path({str(world)!r}), Path({str(at)!r}), *{CHANGES!r}, until={stage!r})"
    )
    before = _written(at / stage)
    process = subprocess.Popen([sys.executable, "-c", program], cwd=Path(__file__).parent, stderr=subprocess.DEVNULL)
    while process.poll() is None and _written(at / stage) == before:
        time.sleep(0.002)
    time.sleep(draw.uniform(0, 0.5))
    if process.poll() is not None:
        assert process.returncode == 0
        return False
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    return True


def _written(folder: Path) -> list[tuple[str, int]]:
    """Names and sizes of the files of a stage: what changes when it works. Files may vanish while we look."""
    found = []
    for path in sorted(folder.rglob("*")) if folder.is_dir() else []:
        try:
            found.append((path.name, path.stat().st_size))
        except FileNotFoundError:
            continue
    return found
