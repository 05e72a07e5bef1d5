"""The notebook `docs/tutorials/library.ipynb`, made from the page `library.md`, which is the only source of its text.

    python tools/docs/library_notebook.py      # runs the cells, then writes their outputs into the page and the notebook

A block of Python on the page is a cell, a block of text right after it is its output, and the rest is Markdown:

    >>> for cell in read_page(PAGE_EXAMPLE):
    ...     print(cell)
    Cell(kind='markdown', source='# Sums', output='')
    Cell(kind='code', source='1 + 1', output='2')

The outputs are those of a real kernel. Only their plain text is on the page, and what a cell writes to standard error
(progress, warnings) is left out.
"""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path
from typing import Any, Final, NamedTuple

from names import ROOT

PAGE: Final = ROOT / "docs" / "tutorials" / "library.md"
NOTEBOOK: Final = PAGE.with_suffix(".ipynb")
FENCE: Final = "`" * 3
BLOCK: Final = re.compile(
    rf"^{FENCE}python\n(?P<source>.*?)^{FENCE}\n(?:\n{FENCE}text\n(?P<output>.*?)^{FENCE}\n)?", re.M | re.S
)
HEADER: Final = re.compile(r"\A---\n.*?^---\n", re.M | re.S)
VARIES: Final = "# differs between machines"  # a comment in a cell whose output no test compares
PAGE_EXAMPLE: Final = f"---\ntitle: Sums\n---\n\n# Sums\n\n{FENCE}python\n1 + 1\n{FENCE}\n\n{FENCE}text\n2\n{FENCE}\n"
METADATA: Final = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
SECONDS: Final = 600  # for one cell


class Cell(NamedTuple):
    """A cell of the notebook: `kind` is `markdown` or `code`; `output` is plain text without a line end."""

    kind: str
    source: str
    output: str


def read_page(text: str) -> list[Cell]:
    """The cells of a page, in order."""
    cells, end = [], 0
    text = HEADER.sub("", text)
    for block in BLOCK.finditer(text):
        cells += _markdown(text[end : block.start()])
        cells.append(Cell("code", block["source"].rstrip("\n"), (block["output"] or "").rstrip("\n")))
        end = block.end()
    return cells + _markdown(text[end:])


def read_notebook(notebook: Any) -> list[Cell]:
    """The cells of a notebook, with the plain text of their outputs."""
    return [Cell(cell.cell_type, cell.source, _plain_output(cell.get("outputs", ()))) for cell in notebook.cells]


def make_notebook(cells: list[Cell]) -> Any:
    """A notebook of these cells, without outputs."""
    from nbformat import v4

    made = v4.new_notebook(metadata=METADATA)
    for number, cell in enumerate(cells):
        new = v4.new_markdown_cell if cell.kind == "markdown" else v4.new_code_cell
        made.cells.append(new(cell.source, id=f"cell-{number}"))
    return made


def execute(cells: list[Cell], folder: Path, **environment: str) -> Any:
    """The notebook of these cells with the outputs of a new kernel.

    folder       an existing folder, in which the kernel starts and the cells make their temporary folder
    environment  variables of the kernel, in addition to those of this process

    Raises `nbclient.exceptions.CellExecutionError` for a cell that fails.
    """
    from nbclient import NotebookClient

    own = {"TMPDIR": str(folder), "IPYTHONDIR": str(folder / "ipython")}
    made = make_notebook(cells)
    client = NotebookClient(
        made,
        kernel_name="python3",
        timeout=SECONDS,
        coalesce_streams=True,
        store_widget_state=False,
        record_timing=False,
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute(env={**os.environ, **own, **environment})
    made.metadata = METADATA
    for cell in made.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    return made


def write_outputs(text: str, cells: list[Cell]) -> str:
    """The page with the outputs of these cells, which have the page's sources."""
    outputs = iter([cell.output for cell in cells if cell.kind == "code"])

    def block(found: re.Match[str]) -> str:
        output = next(outputs)
        shown = f"\n{FENCE}text\n{output}\n{FENCE}\n" if output else ""
        return f"{FENCE}python\n{found['source']}{FENCE}\n{shown}"

    return BLOCK.sub(block, text)


def _markdown(text: str) -> list[Cell]:
    return [Cell("markdown", text.strip("\n"), "")] if text.strip() else []


def _plain_output(outputs: Any) -> str:
    parts = []
    for output in outputs:
        if output.output_type == "stream":
            parts.append(output.text)
        elif output.output_type in ("execute_result", "display_data"):
            parts.append(output.data["text/plain"] + "\n")
    return "\n".join(line.rstrip() for line in "".join(parts).splitlines())


def main() -> None:
    import nbformat

    text = PAGE.read_text("utf-8")
    with tempfile.TemporaryDirectory() as folder:
        made = execute(read_page(text), Path(folder))
    PAGE.write_text(write_outputs(text, read_notebook(made)), "utf-8")
    NOTEBOOK.write_text(nbformat.writes(made) + "\n", "utf-8")
    print(f"{PAGE.name}, {NOTEBOOK.name}: {len(made.cells)} cells")


if __name__ == "__main__":
    main()
