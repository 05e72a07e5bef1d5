"""The examples in docs/, as they stand there."""

from __future__ import annotations

import doctest
from pathlib import Path

import pytest

import evaluation_page

DOCS = Path(__file__).parent.parent / "docs"


@pytest.mark.parametrize("name", ["alignment.md"])
def test_examples_give_what_the_page_says(name: str) -> None:
    failed, tried = doctest.testfile(str(DOCS / name), module_relative=False, encoding="utf-8")
    assert tried > 20 and failed == 0


def test_the_prompts_of_the_page_are_those_of_the_code() -> None:
    text = evaluation_page.PAGE.read_text("utf-8")
    assert evaluation_page.page(text) == text, "python tests/evaluation_page.py"
    assert evaluation_page.made().count("```") == 2 * 12
