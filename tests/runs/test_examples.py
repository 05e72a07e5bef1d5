"""The examples for clusters: their files are valid, and the commands of potstill that they start exist, in the right order,
with every shard once.

The clusters are fakes that start each job at once, with the variables that SLURM, Kubernetes, SkyPilot and Ray set.
"""

from __future__ import annotations

import os
import runpy
import shutil
import subprocess
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import typer.main
from ruamel.yaml import YAML

from fake_cluster import Call, FakeCluster
from potstill import stages
from potstill.cli import app
from potstill.cli.shards import parse_shard
from potstill.cli.stage_commands import SHARDED

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
SCRIPTS = sorted([*EXAMPLES.rglob("*.sh"), *EXAMPLES.rglob("*.sbatch"), ROOT / "benchmarks" / "gpu.sh"])
MANIFESTS = sorted((EXAMPLES / "kubernetes").glob("*.yaml"))
PIPELINE = EXAMPLES / "skypilot" / "pipeline.yaml"
WORKING = [name for name, entry in stages.TABLE.items() if not entry.section and name != "collect"]


def names(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def documents(path: Path) -> list[dict[str, Any]]:
    return list(YAML(typ="safe").load_all(path.read_text("utf-8")))


def check_shell(text: str) -> None:
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)
    if shutil.which("shellcheck"):
        done = subprocess.run(["shellcheck", "--shell=bash", "-"], input=text, text=True, capture_output=True)
        assert done.returncode == 0, done.stdout
    else:
        pytest.skip("shellcheck is not installed: only `bash -n` was run")


@pytest.mark.parametrize("path", SCRIPTS, ids=names)
def test_a_script_is_valid(path: Path) -> None:
    assert os.access(path, os.X_OK) == (path.suffix == ".sh")
    check_shell(path.read_text("utf-8"))


@pytest.mark.parametrize("task", [task for task in documents(PIPELINE) if "run" in task], ids=lambda task: task["name"])
def test_the_script_of_a_task_of_skypilot_is_valid(task: dict[str, Any]) -> None:
    check_shell(task["run"])


@pytest.mark.parametrize("path", MANIFESTS, ids=names)
def test_a_manifest_is_valid(path: Path) -> None:
    library = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    for document in documents(path):
        library.validate(document, "1.32", strict=True)


@pytest.fixture
def cluster(tmp_path: Path) -> FakeCluster:
    (tmp_path / "recipe.yaml").write_text("name: tiny\n")
    return FakeCluster(tmp_path)


def potstill_calls(calls: Sequence[Call]) -> list[Call]:
    """The calls of potstill. Fails if the command line would not accept one of them."""
    group: Any = typer.main.get_command(app)
    found = [call for call in calls if call.command == "potstill"]
    for call in found:
        stage, *arguments = call.arguments
        group.commands[stage].make_context(stage, arguments)
    return found


def check_stages(calls: Sequence[Call], shards: int, sharded: Sequence[str] = SHARDED) -> None:
    """Fails unless the calls make all stages in order, and the sharded ones in every shard once."""
    found = potstill_calls(calls)
    order = list(dict.fromkeys(call.arguments[0] for call in found))
    assert order == [stage for stage in WORKING if stage in order] and order[-1] == "report"
    assert {"sample", "align", "train", "evaluate", "test", "report"} <= {*order}
    for stage in sharded:
        made = []
        for call in found:
            if call.arguments[0] == stage:
                text = call.arguments[call.arguments.index("--shard") + 1]
                shard = parse_shard(text, call.variables)
                assert shard is not None and shard.count == shards
                made.append(shard.number)
        assert made == list(range(1, shards + 1)), stage


def test_slurm_makes_all_stages_one_after_another(cluster: FakeCluster) -> None:
    calls = cluster.run(str(EXAMPLES / "slurm" / "submit.sh"), "recipe.yaml", SHARDS="3")
    check_stages(calls, 3)
    submitted = [call.arguments for call in calls if call.command == "sbatch"]
    waits = [next((word for word in words if word.startswith("--dependency=")), "") for words in submitted]
    assert waits == ["", *(f"--dependency=afterok:{101 + i}" for i in range(len(submitted) - 1))]
    assert all("--kill-on-invalid-dep=yes" in words for words in submitted)
    on_gpus = {words[words.index("recipe.yaml") - 1] for words in submitted if "--gpus-per-node=1" in words}
    assert on_gpus == {"sample", "evaluate", "test"}


def test_slurm_samples_from_the_servers_that_it_starts(cluster: FakeCluster) -> None:
    submit = str(EXAMPLES / "slurm" / "submit.sh")
    calls = cluster.run(submit, "recipe.yaml", SHARDS="2", TEACHER_MODEL="Qwen/Qwen2.5-7B", REPLICAS="4")
    check_stages(calls, 2, sharded=[stage for stage in SHARDED if stage != "sample"])
    [server] = [call.arguments for call in calls if call.command == "vllm"]
    assert server[:2] == ["serve", "Qwen/Qwen2.5-7B"] and server[server.index("--data-parallel-size") + 1] == "4"
    sample = next(call.arguments for call in potstill_calls(calls) if call.arguments[0] == "sample")
    assert "teacher.server.urls=[http://node1:8000/v1,http://node2:8000/v1]" in sample


def test_slurm_distils_on_policy_if_the_recipe_does(cluster: FakeCluster) -> None:
    recipe = cluster.log.parent / "own.yaml"
    recipe.write_text("name: tiny\non_policy: {steps: 3}\n")
    calls = potstill_calls(cluster.run(str(EXAMPLES / "slurm" / "submit.sh"), "own.yaml", SHARDS="1"))
    assert [call.arguments[0] for call in calls] == [stage for stage in stages.TABLE if stage != "collect"]


def test_kubernetes_makes_all_stages_one_after_another(cluster: FakeCluster) -> None:
    calls = cluster.run(str(EXAMPLES / "kubernetes" / "run.sh"), POLL_SECONDS="0")
    check_stages(calls, 8)
    applied = [call.text for call in calls if call.command == "kubectl" and call.text]
    jobs = [document for text in applied for document in YAML(typ="safe").load_all(text) if document["kind"] == "Job"]
    assert [job["metadata"]["name"] for job in jobs] == [f"potstill-{stage}" for stage in WORKING]
    on_gpus = [job["metadata"]["name"].removeprefix("potstill-") for job in jobs if "nvidia.com/gpu" in str(job)]
    assert on_gpus == ["sample", "train", "evaluate", "test"]
    for job in jobs:
        if library := sys.modules.get("kubernetes_validate"):
            library.validate(job, "1.32", strict=True)


def test_skypilot_makes_all_stages_one_after_another(cluster: FakeCluster) -> None:
    calls = []
    for task in documents(PIPELINE)[1:]:
        script = task["run"].replace("cd /shared", f"cd {cluster.log.parent}")
        for node in range(task.get("num_nodes", 1)):
            variables = {"NODE_RANK": str(node), "NUM_NODES": str(task.get("num_nodes", 1))}
            variables |= {"NODE_IPS": "10.0.0.1\n10.0.0.2", "NUM_GPUS_PER_NODE": "8"}
            named = {f"SKYPILOT_{name}": value for name, value in variables.items()}
            calls += cluster.run("bash", "-euc", script, **named)
    check_stages(calls, 4, sharded=["sample", "evaluate", "test"])  # `align` also makes `filter`, with torchrun


class Remote:
    """A function that Ray would call in a process of its own."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.remote = function

    def options(self, **_: object) -> Remote:
        return self


@pytest.fixture
def fake_ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    ray = types.ModuleType("ray")
    util, group, strategies = (types.ModuleType(f"ray.util{name}") for name in ("", ".placement_group", "._"))
    ray.__dict__.update(
        remote=lambda *functions, **_: Remote(*functions) if functions else Remote, get=lambda value: value, util=util
    )
    ray.__dict__["init"] = lambda: None
    util.__dict__["get_node_ip_address"] = lambda: "10.0.0.1"
    group.__dict__["placement_group"] = lambda *_, **__: types.SimpleNamespace(ready=lambda: None)
    group.__dict__["remove_placement_group"] = lambda _: None
    strategies.__dict__["PlacementGroupSchedulingStrategy"] = lambda *_, **__: None
    made = {
        "ray": ray,
        "ray.util": util,
        "ray.util.placement_group": group,
        "ray.util.scheduling_strategies": strategies,
    }
    for name, module in made.items():
        monkeypatch.setitem(sys.modules, name, module)
    yield


def test_ray_makes_all_stages_one_after_another(
    tmp_path: Path, fake_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Call] = []

    def record(command: list[str], cwd: str, check: bool) -> None:
        assert cwd == str(tmp_path) and check
        calls.append(Call("potstill", command[command.index("potstill") + 1 :], {}))

    monkeypatch.setattr(subprocess, "run", record)
    monkeypatch.setattr(sys, "argv", ["run.py", str(tmp_path / "recipe.yaml"), "--shards", "2"])
    runpy.run_path(str(EXAMPLES / "ray" / "run.py"), run_name="__main__")
    check_stages(calls, 2)
