"""`potstill recipes`: lists the recipes that come with potstill, and copies them, with the files that they need.

    >>> [name for name, _ in list_recipes()][:2]
    ['aime', 'demo']

The wheel has a copy of the repository's folder `recipes`. Copies are written into a folder `recipes` by default, so the
commands of the documentation work in any folder.
"""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import typer

import potstill
from potstill import demo, storage
from potstill.errors import UserError, suggest

SCHEMA: Final = "recipe.schema.json"  # for editors; the first line of every recipe names it
_PACKAGE: Final = Path(potstill.__file__).parent
FOLDER: Final = _PACKAGE / "recipes" if (_PACKAGE / "recipes").is_dir() else _PACKAGE.parents[1] / "recipes"


def list_recipes() -> Iterator[tuple[str, str]]:
    """The name of every recipe, and its comment, sorted by name."""
    for path in sorted([*FOLDER.glob("*.yaml"), demo.RECIPE], key=lambda path: path.stem):
        lines = [line[2:] for line in path.read_text("utf-8").splitlines() if line.startswith("# ")]
        yield path.stem, " ".join(line for line in lines if not line.startswith("yaml-language-server"))


def run(names: Sequence[str], to: Path) -> None:
    """Copy the named recipes into a folder; without a name, list all. Raises UserError for an unknown name, and if a file
    with another content is there already; then nothing is copied."""
    known = dict(list_recipes())
    if not names:
        width = max(map(len, known))
        for name, comment in known.items():
            for number, line in enumerate(textwrap.wrap(comment, 77 - width, max_lines=2, placeholder=" ...")):
                typer.echo(f"{'' if number else name:<{width}}  {line}")
        typer.echo(f"\ncopy one:  potstill recipes {next(iter(known))}")
        return
    files: dict[Path, bytes] = {}
    for name in (name.removesuffix(".yaml") for name in names):
        if name not in known:
            hint = f"{suggest(name, known)}use one of {', '.join(known)}"
            raise UserError("no recipe has this name", code="E-recipes-unknown", where=repr(name), hint=hint)
        if name == demo.RECIPE.stem:
            files |= {to / demo.RECIPE.name: _demo_recipe(to), to / SCHEMA: (FOLDER / SCHEMA).read_bytes()}
        else:
            for path in (FOLDER / f"{name}.yaml", FOLDER / SCHEMA, *_named_files(name)):
                files[to / path.name] = path.read_bytes()
    for path, content in files.items():
        if path.exists() and path.read_bytes() != content:
            hint = "give another folder with --to, or remove the file"
            raise UserError("the file exists with another content", code="E-recipes-exists", where=path, hint=hint)
    for path, content in files.items():
        storage.write_file(path, content)
        typer.echo(f"wrote {path}")
    if to / demo.RECIPE.name in files:
        demo.copy_data(to / demo.DATA_FOLDER.name)
        typer.echo(f"wrote {to / demo.DATA_FOLDER.name}")


def _demo_recipe(to: Path) -> bytes:
    """The recipe of the demo, for its data in a folder beside it. Only `potstill demo` makes the control runs."""
    text = demo.RECIPE.read_text("utf-8")
    text = text.replace("name: demo\n", f"name: demo\ndata: {json.dumps(str(to), ensure_ascii=False)}\n", 1)
    text = re.sub(r"  controls: .*\n", "", text, count=1)
    return f"# yaml-language-server: $schema={SCHEMA}\n{text}".encode()


def _named_files(name: str) -> Iterator[Path]:
    """The files of the folder that a recipe names."""
    text = (FOLDER / f"{name}.yaml").read_text("utf-8")
    for found in re.findall(r"recipes/([\w.-]+)", text):
        path = FOLDER / found
        if path.is_file() and path.suffix != ".yaml":
            yield path
