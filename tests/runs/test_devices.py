"""Students, engines and training on a device that is not the CPU: `pretended_device.py` pretends one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_nothing_meets_a_tensor_of_another_device():
    command = [sys.executable, str(Path(__file__).parents[1] / "support" / "pretended_device.py")]
    told = subprocess.run(command, capture_output=True, text=True)
    assert told.returncode == 0, told.stdout + told.stderr[-3000:]
    assert len(told.stdout.splitlines()) == 15, told.stdout
