"""The built-in sets as the data folder has them. A set whose files are absent skips its tests, and no other ones."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Literal

import pytest

from potstill.data import SETS, load_set
from potstill.errors import UserError
from potstill.records import Question


@functools.cache
def real_set(name: str, data: Path, how: Literal["digest", "paper"] = "digest") -> list[Question]:
    """The questions of a set. Skips the test if the data folder lacks its files."""
    try:
        return load_set(name, data, splits=how)
    except UserError as error:
        if error.code not in ("E-data-missing-file", "E-data-no-set"):
            raise
        pytest.skip(f"the data folder lacks a file of {name}: {error.where}")


def present_sets(data: Path) -> list[str]:
    """The sets whose files the data folder has."""
    present = []
    for name in SETS:
        try:
            real_set(name, data)
        except pytest.skip.Exception:
            continue
        present.append(name)
    return present
