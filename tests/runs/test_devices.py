"""Students, engines and training on a device other than the CPU, which `pretended_device.py` imitates."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_nothing_meets_a_tensor_of_another_device():
    command = [sys.executable, str(Path(__file__).parents[1] / "support" / "pretended_device.py")]
    completed = subprocess.run(command, capture_output=True, text=True)
    assert completed.returncode == 0, completed.stdout + completed.stderr[-3000:]
    assert len(completed.stdout.splitlines()) == 15, completed.stdout
