"""What all tests share: no hub, one thread, and the real data where it is."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real data; tests that need it skip where it is absent."""
    folder = os.environ.get("POTSTILL_DATA")
    if not folder:
        pytest.skip("POTSTILL_DATA is not set: this test needs the real data")
    path = Path(folder)
    if not path.is_dir():
        pytest.skip(f"POTSTILL_DATA names no folder ({path}): this test needs the real data")
    return path
