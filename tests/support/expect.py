"""Expect a UserError by its code and by parts of its place, what was found and its hint; never by its prose."""

from __future__ import annotations

from typing import Any

import pytest

from potstill.errors import UserError


def user_error(code: str, **parts: str) -> Any:
    """A context in which a UserError of this code is raised; parts: where, found or hint contain these texts."""

    def matches(error: UserError) -> bool:
        return error.code == code and all(text in getattr(error, name) for name, text in parts.items())

    return pytest.raises(UserError, check=matches)
