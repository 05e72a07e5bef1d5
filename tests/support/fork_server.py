"""Functions and commands of potstill in processes of their own, forked from one that has loaded torch already.

To import torch and transformers costs three seconds of processor time, and the tests start dozens of processes.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path

CONTEXT = multiprocessing.get_context("forkserver")
# Modules that a run loads. The server does not know the folder of this file, so it cannot load `tiny`.
CONTEXT.set_forkserver_preload(
    ["potstill.cli", "potstill.runner", "potstill.models", "potstill.training", "potstill.report.figures", "pandas"]
)


def start(
    function: Callable[..., object], *arguments: object, output: Path | None = None, **keywords: object
) -> BaseProcess:
    """Call a function of a module in a new process. What it prints goes to the file `output`, or nowhere."""
    process = CONTEXT.Process(target=_call, args=(function, arguments, keywords, output))
    process.start()
    return process


def start_command(
    *arguments: object, cwd: Path, output: Path | None = None, environment: Mapping[str, str] | None = None
) -> BaseProcess:
    """The command `potstill` in a new process, whose standard input is empty."""
    return start(_command, list(map(str, arguments)), cwd, dict(environment or {}), output=output)


def exit_code(process: BaseProcess, timeout: float = 120) -> int | None:
    """Wait for a process; None where it did not end in time."""
    process.join(timeout)
    return process.exitcode


def _call(function: Callable[..., object], arguments: tuple, keywords: dict, output: Path | None) -> None:
    handle = os.open(output or os.devnull, os.O_WRONLY | os.O_CREAT, 0o644)
    for stream in (1, 2):
        os.dup2(handle, stream)
    function(*arguments, **keywords)


def _command(arguments: list[str], cwd: Path, environment: dict[str, str]) -> None:
    from potstill.cli import main

    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    os.environ.update(environment)
    os.chdir(cwd)
    sys.argv = ["potstill", *arguments]
    main()


__all__ = ["exit_code", "start", "start_command"]
