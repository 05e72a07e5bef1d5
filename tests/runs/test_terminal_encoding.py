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
def test_commands_in_the_c_locale(finished: Path) -> None:
    """Each command, and what `run` and `demo` print at their end. All in one process: each that loads torch costs
    seconds."""
    commands = [
        ["status", finished], ["show", finished], ["show", finished, "--chain", "sums/0"],
        ["show", finished, "--batch", "1"], ["compare", finished, f"{finished}@2"], ["check", finished],
    ]  # fmt: skip
    program = (
        "import sys, potstill.cli\n"
        "from pathlib import Path\n"
        "from potstill.cli import results\n"
        f"for arguments in {[[*map(str, command)] for command in commands]!r}:\n"
        "    sys.argv = ['potstill', *arguments]\n"
        "    try:\n"
        "        potstill.cli.main()\n"
        "    except SystemExit as end:\n"
        "        assert end.code in (0, 2, None), (arguments, end.code)\n"
        "    print('ended', *arguments)\n"
        f"results.print_summary(Path({str(finished)!r}))\n"
    )
    completed = subprocess.run([sys.executable, "-c", program], capture_output=True, env={**os.environ, **ASCII})
    assert completed.returncode == 0 and b"Traceback" not in completed.stderr, completed.stderr.decode()
    assert completed.stdout.count(b"ended ") == len(commands) and b"right answers on test" in completed.stdout
    assert completed.stdout.isascii() and completed.stderr.isascii()
