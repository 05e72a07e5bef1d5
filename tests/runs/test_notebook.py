"""The tutorial notebook is made from its page; `test_wheel` runs it from top to bottom."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "tools" / "docs"))

import library_notebook as notebook


def test_the_notebook_has_the_cells_and_the_outputs_of_the_page() -> None:
    nbformat = pytest.importorskip("nbformat", reason="the extra `test` installs nbformat")
    stored = nbformat.read(notebook.NOTEBOOK, nbformat.NO_CONVERT)
    nbformat.validate(stored)
    page = notebook.read_page(notebook.PAGE.read_text("utf-8"))
    assert notebook.read_notebook(stored) == page
    assert [cell.execution_count for cell in stored.cells if cell.cell_type == "code"] == list(
        range(1, sum(cell.kind == "code" for cell in page) + 1)
    )


def test_no_output_names_a_folder_of_a_machine() -> None:
    assert not any(
        folder in notebook.NOTEBOOK.read_text("utf-8") for folder in ("/tmp", "/home", "/root", "site-packages")
    )


def test_a_page_becomes_cells_and_takes_their_outputs() -> None:
    cells = notebook.read_page(notebook.PAGE_EXAMPLE)
    assert cells == [notebook.Cell("markdown", "# Sums", ""), notebook.Cell("code", "1 + 1", "2")]
    assert notebook.write_outputs(notebook.PAGE_EXAMPLE, cells) == notebook.PAGE_EXAMPLE
    three = [cell._replace(output="3" if cell.output else "") for cell in cells]
    assert notebook.read_page(notebook.write_outputs(notebook.PAGE_EXAMPLE, three)) == three
    without = [cell._replace(output="") for cell in cells]
    assert notebook.read_page(notebook.write_outputs(notebook.PAGE_EXAMPLE, without)) == without


def test_every_public_name_that_the_page_uses_exists() -> None:
    import potstill as ps

    code = "\n".join(
        cell.source for cell in notebook.read_page(notebook.PAGE.read_text("utf-8")) if cell.kind == "code"
    )
    used = {
        node.attr
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "ps"
    }
    assert used and used <= set(ps.__all__)
