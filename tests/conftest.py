"""What all tests share: no hub, one thread, and the real data where it is."""

from __future__ import annotations

import logging
import os
import warnings
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Programs that tests start import `tools.toy_models` as the tests do.
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
)

import pytest
from beartype.claw import beartype_packages
from hypothesis import settings

# The same examples every time, so that a change is judged by what it changed; `make search` looks for new ones. No
# example has a time to keep.
settings.register_profile("fixed", derandomize=True, deadline=None)
settings.register_profile("search", max_examples=1000, deadline=None)
settings.load_profile("fixed")

# Annotations are checked at every call, under tests only, in the packages that everything else stands on.
CHECKED = (
    "errors",
    "prompts",
    "grading",
    "alignment",
    "tokenization.vocabulary",
    "tokenization.encoder",
    "data.splits",
    "data.chain_filter",
    "evaluation.selection",
    "training.data_order",
    "report.model",
)


class Announced(logging.Handler):
    """What transformers says in its log of a thing that will go, as a warning, which pyproject.toml makes an error: a
    later version would otherwise be met by our users first."""

    def emit(self, record: logging.LogRecord) -> None:
        if "deprecat" in record.getMessage():
            warnings.warn(record.getMessage(), FutureWarning, stacklevel=2)


logging.getLogger("transformers").addHandler(Announced(logging.WARNING))

collect_ignore = ["support/pretended_device.py"]  # it makes a device for the whole process, so it has one of its own

beartype_packages(tuple(f"potstill.{name}" for name in CHECKED))


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


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data folder of the tiny run (see `tiny`). Nobody writes into it."""
    import tiny

    return tiny.world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="session")
def finished(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny run from recipe to page. Nobody writes into it."""
    import tiny

    return tiny.make(world, tmp_path_factory.mktemp("finished") / "run")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Fast tests first: those marked slow come last, otherwise the order stays."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is not None)
