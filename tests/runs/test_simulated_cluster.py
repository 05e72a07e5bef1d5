"""Four hosts with a common folder make a whole run in shards; one is killed; the files are those of one process.

Each host has a host name and a network of its own (see `simulated_hosts`).
"""

from __future__ import annotations

import re
import shlex
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import tiny
from potstill.cli.stage_commands import SHARDED
from potstill.storage import read, run_folder
from simulated_hosts import Hosts, why_not

pytestmark = pytest.mark.slow
COUNT = 4
# Small batches, so that each host has several in each stage.
CHANGES = (
    "teacher.batch_tokens=60",
    "evaluate.decodings=[greedy, vote-3]",
    "evaluate.batch_tokens=60",
    "evaluate.interpolate=[0.5]",
)


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    if reason := why_not():
        pytest.skip(reason)
    with Hosts(COUNT) as made:
        yield made


@pytest.fixture(scope="module")
def shared(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The common folder, with the recipe."""
    folder = tmp_path_factory.mktemp("shared")
    keys = [word for change in CHANGES for word in ("--set", change)]
    (folder / "recipe.yaml").write_text(f"{tiny.RECIPE}data: {world}\n")
    (folder / "changes").write_text(shlex.join(keys))
    return folder


@pytest.fixture(scope="module")
def whole(hosts: Hosts, world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make(world, tmp_path_factory.mktemp("whole") / "run", *CHANGES)


def changes(shared: Path) -> list[str]:
    return shlex.split((shared / "changes").read_text())


def output(shared: Path, stage: str, host: int) -> Path:
    return shared / f"{stage}-{host}.txt"


def make_shards(hosts: Hosts, shared: Path, stage: str, killed: int = 0) -> list[int]:
    """Make a stage on all hosts at once; their exit codes. killed: a host that dies after three batches of answers."""
    processes = [
        hosts.start(
            host,
            *(stage, "recipe.yaml", *changes(shared), "--shard", f"{host}/{COUNT}"),
            cwd=shared,
            output=output(shared, stage, host),
            dies_after=3 if host == killed else 0,
        )
        for host in range(1, COUNT + 1)
    ]
    return [hosts.wait(process) for process in processes]


def test_a_run_on_four_hosts_of_which_one_is_killed(hosts: Hosts, shared: Path, whole: Path) -> None:
    run_dir = shared / "runs" / "tiny"
    for stage in ("sample", "filter", "align"):
        assert make_shards(hosts, shared, stage) == [0] * COUNT, stage
    assert hosts.run(2, "train", run_dir, cwd=shared) == 0

    codes = make_shards(hosts, shared, "evaluate", killed=3)
    assert codes == [0, 0, -signal.SIGKILL, 0]
    assert not (run_dir / "evaluate" / "manifest.json").exists()
    assert run_folder.running_shards(run_dir) == []  # the lock of the dead host is free
    messages = "".join(output(shared, "evaluate", host).read_text() for host in (1, 2, 4))
    [command] = set(re.findall(r"if a process has died: potstill (.+) makes", messages))
    assert hosts.run(4, *shlex.split(command), cwd=shared) == 0

    assert hosts.run(1, "select", run_dir, cwd=shared) == 0
    assert make_shards(hosts, shared, "test") == [0] * COUNT
    assert hosts.run(1, "report", run_dir, cwd=shared) == 0
    rows = [row for _, row in read.read_jsonl(run_dir / "log.jsonl") if row["event"] == "start"]
    assert {row["host"] for row in rows} == {f"host{i}" for i in range(1, COUNT + 1)}
    assert {row["stage"] for row in rows if "stage" in row} == {*SHARDED}
    made, expected = tiny.contents(run_dir), tiny.contents(whole)
    assert [name for name in expected if made.get(name) != expected[name]] == []
    assert made.keys() - expected.keys() <= {name for name in made if name.endswith(".lock")}


def test_four_hosts_train_together_over_their_network(hosts: Hosts, shared: Path, whole: Path, tmp_path: Path) -> None:
    run_dir = tiny.before(whole, tmp_path / "run", "train")
    place = {"WORLD_SIZE": str(COUNT), "LOCAL_RANK": "0", "MASTER_ADDR": "host1", "MASTER_PORT": "29500"}  # of torchrun
    processes = [
        hosts.start(rank + 1, "train", run_dir, cwd=tmp_path, output=tmp_path / f"{rank}.txt", RANK=str(rank), **place)
        for rank in range(COUNT)
    ]
    assert [hosts.wait(process) for process in processes] == [0] * COUNT, (tmp_path / "0.txt").read_text()
    step = max(run_folder.list_saved_steps(whole / "train" / "checkpoints"))
    made, expected = (weights(folder / "train" / "checkpoints" / str(step)) for folder in (run_dir, whole))
    assert made.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(made[name], values, atol=1e-4, err_msg=name)
    shutil.rmtree(run_dir)


def weights(folder: Path) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    return load_file(next(folder.rglob("*.safetensors")))
