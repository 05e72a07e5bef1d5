"""The commands of clusters, as far as the scripts in `examples/` use them. Each writes down how it was called.

    calls = FakeCluster(tmp_path).run("examples/slurm/submit.sh", "recipe.yaml")

A job runs at once: `sbatch` and `kubectl apply` start its processes with the variables that SLURM and Kubernetes set, and
the processes call `potstill`, which only writes down its arguments and these variables.
"""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pathlib import Path

COMMANDS = ("potstill", "sbatch", "srun", "scontrol", "vllm", "torchrun", "kubectl")
OF_LAUNCHERS = ("SLURM_", "JOB_COMPLETION_INDEX", "SKYPILOT_", "RANK", "WORLD_SIZE")


class Call(NamedTuple):
    """A call of a command: its name, its arguments, the variables of launchers, and its standard input."""

    command: str
    arguments: list[str]
    variables: dict[str, str]
    text: str = ""


class FakeCluster:
    """A folder with the commands, and the file in which they write down their calls."""

    def __init__(self, folder: Path) -> None:
        self.commands, self.log = folder / "bin", folder / "calls.jsonl"
        self.commands.mkdir()
        for name in COMMANDS:
            path = self.commands / name
            path.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "{os.path.abspath(__file__)}" {name} "$@"\n')
            path.chmod(0o755)

    def run(self, *command: str, text: str | None = None, **variables: str) -> list[Call]:
        """Run a script; its calls, in order. Fails if the script does."""
        import subprocess

        self.log.write_text("")
        environment = {name: value for name, value in os.environ.items() if not name.startswith(OF_LAUNCHERS)}
        environment |= {
            "PATH": f"{self.commands}:{environment['PATH']}",
            "FAKE_CLUSTER_LOG": str(self.log),
            **variables,
        }
        subprocess.run(command, check=True, env=environment, cwd=self.log.parent, input=text, text=True, timeout=60)
        return [Call(**json.loads(line)) for line in self.log.read_text().splitlines()]


def _main(command: str, arguments: list[str]) -> None:
    text = sys.stdin.read() if command == "kubectl" and arguments[:1] == ["apply"] else ""
    variables = {name: value for name, value in os.environ.items() if name.startswith(OF_LAUNCHERS)}
    row = {"command": command, "arguments": arguments, "variables": variables, "text": text}
    with open(os.environ["FAKE_CLUSTER_LOG"], "a") as file:
        file.write(json.dumps(row) + "\n")
    if command == "sbatch":
        _sbatch(arguments)
    elif command in ("srun", "torchrun"):
        after = arguments[arguments.index("-m") + 1 :] if command == "torchrun" else _without_options(arguments)
        _start(after, {})
    elif command == "scontrol":
        print("node1\nnode2")
    elif command == "kubectl" and text:
        _apply(text)
    elif command == "kubectl" and arguments[0] == "get":
        print("Complete")


def _without_options(arguments: list[str]) -> list[str]:
    """The arguments after the options, each of which is one word."""
    return arguments[next(i for i, word in enumerate(arguments) if not word.startswith("-")) :]


def _start(command: list[str], variables: dict[str, str], script: bool = False) -> None:
    """Run a command. script: whether what it prints goes into a log, as that of a job."""
    with open(os.devnull, "w") as log:
        child = os.fork()
        if child == 0:
            if script:
                os.dup2(log.fileno(), 1)
            os.execvpe(command[0], command, {**os.environ, **variables})
        if os.waitpid(child, 0)[1]:
            sys.exit(1)


def _sbatch(arguments: list[str]) -> None:
    with open(os.environ["FAKE_CLUSTER_LOG"]) as file:
        number = str(100 + sum(json.loads(line)["command"] == "sbatch" for line in file))
    tasks = next((word.partition("=")[2] for word in arguments if word.startswith("--array=")), "")
    places = [{}]
    if tasks:
        first, last = tasks.split("-")
        fixed = {"MIN": first, "MAX": last, "STEP": "1", "COUNT": str(int(last) - int(first) + 1)}
        named = {f"SLURM_ARRAY_TASK_{name}": value for name, value in fixed.items()}
        places = [{**named, "SLURM_ARRAY_TASK_ID": str(i)} for i in range(int(first), int(last) + 1)]
    for place in places:
        script = {"SLURM_JOB_ID": number, "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_JOB_NUM_NODES": "2", **place}
        _start(["bash", *_without_options(arguments)], script, script=True)
    print(f"{number};cluster")


def _apply(text: str) -> None:
    import site

    site.main()  # -S has left it out, because the other commands start faster without it
    from ruamel.yaml import YAML

    for document in YAML(typ="safe").load_all(text):
        if document["kind"] != "Job":
            continue
        [container] = document["spec"]["template"]["spec"]["containers"]
        for index in range(document["spec"].get("completions", 1)):
            place = {"JOB_COMPLETION_INDEX": str(index)} if document["spec"].get("completionMode") == "Indexed" else {}
            words = [*container.get("command", ["potstill"]), *container["args"]]
            _start([word.replace("$(JOB_COMPLETION_INDEX)", str(index)) for word in words], place)


if __name__ == "__main__":
    _main(sys.argv[1], sys.argv[2:])
