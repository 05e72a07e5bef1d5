"""Real kills: `kill -9` at random moments of sample, train and evaluate; the resumed run holds the same bytes.

`POTSTILL_KILLS` says how many kills a stage gets (2 if not set: each costs a process that loads torch; then a training
that evaluates as it goes is left out, whose crashes `test_early_stopping` has).
"""

from __future__ import annotations

import lzma
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import tiny
from fork_server import start
from potstill.demo import DATA

pytestmark = pytest.mark.slow
KILLS = int(os.environ.get("POTSTILL_KILLS", "2"))
# Longer than the tiny run of other tests, so that a kill falls into the stage and not behind it.
CHANGES = (
    "teacher.samples=40",
    "train.steps=60",
    "train.checkpoint_every=10",
    "evaluate.max_tokens=24",
    "evaluate.decodings=[greedy, vote-3]",
)


@pytest.fixture(scope="module")
def whole(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make(world, tmp_path_factory.mktemp("whole") / "run", *CHANGES, until="evaluate")


ONLY_MANY = pytest.mark.skipif("POTSTILL_KILLS" not in os.environ, reason="POTSTILL_KILLS is not set")


@pytest.mark.parametrize(
    "stage, more",
    [
        ("sample", ()),
        ("train", ()),
        pytest.param("train", ("train.evaluate=true",), marks=ONLY_MANY),
        ("evaluate", ()),
    ],
)
def test_a_killed_run_comes_to_the_same_bytes(
    world: Path, whole: Path, tmp_path: Path, stage: str, more: tuple[str, ...]
) -> None:
    wanted = {name: content for name, content in tiny.contents(whole).items() if name.startswith(f"{stage}/")}
    draw = random.Random(stage)
    kills, at, number = 0, tmp_path / "0", 0
    while kills < KILLS:
        if _killed_within(world, at, stage, draw, more):
            kills += 1
        else:  # the stage ended first: it must be right, and the kills go on in a new run
            _compare(at, wanted, stage)
            number += 1
            at = tmp_path / str(number)
    tiny.make(world, at, *CHANGES, *more, until=stage)
    _compare(at, wanted, stage)
    if more:
        tiny.make(world, at, *CHANGES, *more, until="evaluate")
        answers = {name: content for name, content in tiny.contents(whole).items() if name.startswith("evaluate/")}
        _compare(at, answers, "evaluate")


def a_tenth_of_the_demo(folder: Path) -> Path:
    """The demo's data with every tenth question: reading all of them takes most of the time of a demo with few steps."""
    shutil.copytree(DATA / "models", folder / "models")
    (folder / "sets").mkdir()
    for path in (DATA / "sets").iterdir():
        lines = lzma.decompress(path.read_bytes()).splitlines(keepends=True)
        (folder / "sets" / path.name).write_bytes(lzma.compress(b"".join(lines[::10])))
    return folder


def test_a_killed_demo_comes_to_the_same_bytes(tmp_path: Path) -> None:
    """With everything beside it: the laid-out world, and the controls in a process that ends with its parent."""
    data = a_tenth_of_the_demo(tmp_path / "data")
    program = f"from pathlib import Path; from potstill import demo; demo.DATA = Path({str(data)!r})"
    program += f"; demo.run_demo(*{tiny.DEMO!r})"
    draw = random.Random("demo")

    def demo(folder: Path, stderr: int = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
        folder.mkdir(exist_ok=True)
        return subprocess.Popen([sys.executable, "-c", program], cwd=folder, stderr=stderr)

    began = time.monotonic()
    whole = demo(tmp_path / "whole", subprocess.PIPE)
    _, messages = whole.communicate()
    assert whole.returncode == 0
    assert b"control runs in the background" in messages and b"has not finished" not in messages
    took = time.monotonic() - began
    kills = 0
    while kills < KILLS:
        process = demo(tmp_path / "killed")
        time.sleep(draw.uniform(0.1, 0.9) * took)
        if process.poll() is not None:
            assert process.returncode == 0
            break  # it came through
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        kills += 1
        time.sleep(1.0)  # the process beside it sees that it is alone
    assert demo(tmp_path / "killed").wait() == 0
    for name in ("demo", "demo-answers", "demo-rationales"):
        wanted, found = (tiny.contents(tmp_path / each / "runs" / name) for each in ("whole", "killed"))
        assert found.keys() == wanted.keys()
        assert [path for path in wanted if wanted[path] != found[path]] == []


def _compare(run_dir: Path, wanted: dict[str, bytes], stage: str) -> None:
    found = {name: content for name, content in tiny.contents(run_dir).items() if name.startswith(f"{stage}/")}
    assert found.keys() == wanted.keys()
    assert [name for name in wanted if wanted[name] != found[name]] == []


def _killed_within(world: Path, run_dir: Path, stage: str, draw: random.Random, more: tuple[str, ...]) -> bool:
    """Run up to a stage in a process of its own and kill it a random moment after the stage began to write."""
    before = _written(run_dir / stage)
    process = start(tiny.make, world, run_dir, *CHANGES, *more, until=stage)
    while process.is_alive() and _written(run_dir / stage) == before:
        time.sleep(0.002)
    time.sleep(draw.uniform(0, 0.5))
    if not process.is_alive():
        assert process.exitcode == 0
        return False
    process.kill()
    process.join()
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
