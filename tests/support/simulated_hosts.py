"""Hosts of a simulated cluster: each has a host name and a network of its own, and all see the same folders.

    with Hosts(4) as hosts:
        first = hosts.start(1, "evaluate", "recipe.yaml", "--shard", "1/4", cwd=folder)
        assert hosts.wait(first) == 0

A program in namespaces of its own (`unshare`) joins the networks of the hosts by a bridge: host i has the name host{i} and
the address 10.55.0.{i}. Nothing of it is visible outside, and it ends with the process that started it. The program has
loaded the libraries of potstill, and forks a process for each command.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

NAMESPACES = ("unshare", "--user", "--map-root-user", "--net", "--mount", "--kill-child", "--fork")
CLONE_NEWNET, CLONE_NEWUTS = 0x40000000, 0x04000000
SETUP = """
set -e
mount -t tmpfs tmpfs /run
mkdir /run/netns
ip link set lo up
ip link add bridge type bridge
ip link set bridge up
echo 127.0.0.1 localhost > /run/hosts
for i in $(seq COUNT); do
    echo "10.55.0.$i host$i" >> /run/hosts
    ip netns add "host$i"
    ip link add "port$i" type veth peer name eth0 netns "host$i"
    ip link set "port$i" master bridge up
    ip -n "host$i" addr add "10.55.0.$i/24" dev eth0
    ip -n "host$i" link set eth0 up
    ip -n "host$i" link set lo up
done
mount --bind /run/hosts /etc/hosts
"""


def why_not() -> str:
    """Why this machine cannot simulate hosts; empty if it can."""
    for command in ("unshare", "ip", "mount"):
        if not shutil.which(command):
            return f"the command {command} is missing"
    tried = subprocess.run([*NAMESPACES, "bash", "-c", _setup(1)], capture_output=True, text=True)
    return "" if tried.returncode == 0 else f"no namespaces here: {tried.stderr.strip()[:200]}"


def _setup(count: int) -> str:
    return SETUP.replace("COUNT", str(count))


class Hosts:
    """The hosts of a simulated cluster, with the numbers from 1 to `count`."""

    def __init__(self, count: int) -> None:
        command = [sys.executable, str(Path(__file__).resolve()), _setup(count)]
        self._program = subprocess.Popen(
            [*NAMESPACES, *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        assert self._read() == "ready"

    def __enter__(self) -> Hosts:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._program.kill()
        self._program.communicate()

    def start(
        self,
        host: int,
        *arguments: object,
        cwd: Path,
        output: Path | None = None,
        dies_after: int = 0,
        **variables: str,
    ) -> int:
        """Start a command of potstill on a host; the number of its process.

        output      the file of what it prints
        dies_after  batches of answers after which it is killed (SIGKILL); 0: it is not
        """
        words = [str(word) for word in arguments]
        return self._ask(
            "start",
            host=host,
            words=words,
            cwd=str(cwd),
            output=str(output or os.devnull),
            dies=dies_after,
            env=variables,
        )

    def wait(self, process: int) -> int:
        """Wait for a process; its exit code, negative for a signal."""
        return self._ask("wait", process=process)

    def run(self, host: int, *arguments: object, **keywords: Any) -> int:
        return self.wait(self.start(host, *arguments, **keywords))

    def _ask(self, action: str, **values: object) -> int:
        assert self._program.stdin is not None
        self._program.stdin.write(json.dumps({"action": action, **values}) + "\n")
        self._program.stdin.flush()
        return self._read()

    def _read(self) -> Any:
        assert self._program.stdout is not None
        line = self._program.stdout.readline()
        assert line, "the hosts have ended"
        return json.loads(line)


def _serve() -> None:
    """The program: builds the networks, then answers the requests in standard input."""
    subprocess.run(["bash", "-c", sys.argv[1]], check=True)
    import potstill.cli
    import potstill.models
    import potstill.report.figures
    import potstill.runner
    import potstill.training  # noqa: F401

    print('"ready"', flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if request.pop("action") == "wait":
            answer = os.waitstatus_to_exitcode(os.waitpid(request["process"], 0)[1])
        elif not (answer := os.fork()):
            with contextlib.suppress(SystemExit):
                _run(**request)
        print(answer, flush=True)


def _run(host: int, words: list[str], cwd: str, output: str, dies: int, env: dict[str, str]) -> None:
    """Run a command in this process, on a host, and end."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open(f"/run/netns/host{host}") as network:
        assert libc.setns(network.fileno(), CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
    assert libc.unshare(CLONE_NEWUTS) == 0, os.strerror(ctypes.get_errno())
    socket.sethostname(f"host{host}")
    vars(platform)["_uname_cache"] = None  # the program has asked for its own name
    handles = [os.open(os.devnull, os.O_RDONLY)] + [os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)] * 2
    for stream, handle in enumerate(handles):
        os.dup2(handle, stream)
    os.environ.update(env)
    os.chdir(cwd)
    sys.argv = ["potstill", *words]
    code = 1
    try:
        if dies:
            _die_after(dies)
        from potstill.cli import main

        main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _die_after(count: int) -> None:
    import signal

    from potstill import evaluation

    batches = evaluation.answer_batches

    def killed(*arguments: Any, **keywords: Any) -> Any:
        nonlocal count
        for batch in batches(*arguments, **keywords):
            if count == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            count -= 1
            yield batch

    evaluation.answer_batches = killed


if __name__ == "__main__":
    _serve()

__all__ = ["Hosts", "why_not"]
