"""Terminals that cannot show every character: no command ends in a traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from potstill import progress

ASCII = {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "COLUMNS": "100"}
EVERY = "".join(chr(code) for code in (*range(0x3000), 0x732B, 0xD83D, 0xFFFF, 0x1F600))


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_every_character_has_a_nearest_one(encoding: str) -> None:
    assert EVERY.encode(encoding, progress.NEAREST_HANDLER).decode(encoding)
    plain = "-0.5 x 1"
    assert "\N{MINUS SIGN}0.5 \N{MULTIPLICATION SIGN} 1".encode("ascii", progress.NEAREST_HANDLER) == plain.encode()
    assert plain.encode(encoding, progress.NEAREST_HANDLER) == plain.encode()


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [["status"], ["show"], ["show", "--chain", "sums/0"], ["show", "--batch", "1"], ["compare"], ["check"]],
)
def test_commands_in_the_c_locale(finished: Path, arguments: list[str]) -> None:
    given = [arguments[0], str(finished), *arguments[1:], *([f"{finished}@2"] if arguments == ["compare"] else [])]
    environment = {**os.environ, **ASCII}
    completed = subprocess.run([sys.executable, "-m", "potstill", *given], capture_output=True, env=environment)
    assert b"Traceback" not in completed.stderr and completed.returncode in (0, 2), completed.stderr.decode()
    assert completed.stdout.isascii() and completed.stderr.isascii()


@pytest.mark.slow
def test_the_last_table_in_the_c_locale(finished: Path) -> None:
    """What `run` and `demo` print at their end."""
    program = (
        "from potstill import progress; from potstill.cli import status; from pathlib import Path; "
        f"progress.replace_unencodable(); status.print_summary(Path({str(finished)!r}))"
    )
    environment = {**os.environ, **ASCII}
    completed = subprocess.run([sys.executable, "-c", program], capture_output=True, env=environment)
    assert completed.returncode == 0, completed.stderr.decode()
    assert b"right answers on test" in completed.stdout and completed.stdout.isascii()
