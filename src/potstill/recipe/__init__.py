"""Recipes: one YAML file says everything that a run does. `sections` has the keys, `reading` the reader.

    >>> recipe = parse_recipe("name: mine\\nteacher: {kind: human}\\ntrain: {learning_rate: 5e-4}\\n", "mine.yaml")
    >>> recipe.train.learning_rate, recipe.train.formats
    (0.0005, {'zero-shot-rationale': 1})
    >>> parse_recipe("name: mine\\ntrain:\\n  stps: 3\\n", "mine.yaml")
    Traceback (most recent call last):
    potstill.errors.UserError: mine.yaml line 3: unknown key train.stps
      hint: did you mean train.steps?

YAML 1.2: `5e-4` is a number and `no` a word. A recipe is frozen; unknown keys are refused with a suggestion and the
place. `resolved(recipe)` writes every default out. A relative path in a recipe is looked up from the working folder and
from the data folder (`find`).
"""

from __future__ import annotations

import contextlib
import difflib
import io
import os
import re
from pathlib import Path
from typing import Any, Final

from ruamel.yaml import YAML

from potstill.errors import UserError
from potstill.recipe.fields import Column, CustomSet
from potstill.recipe.load import load_recipe, parse_recipe
from potstill.recipe.schema import Recipe, ShapeSection
from potstill.recipe.teacher import VllmSection

__all__ = [
    "Column",
    "CustomSet",
    "Recipe",
    "ShapeSection",
    "VllmSection",
    "find_path",
    "find_paths",
    "flatten_keys",
    "load_recipe",
    "parse_recipe",
    "recipe_data_folder",
    "recipe_json_schema",
    "recipe_to_yaml",
]

HUB_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?")  # how a model is called there


def recipe_to_yaml(recipe: Recipe) -> str:
    """The recipe as YAML with every default written out, in the order of the fields."""
    out = io.StringIO()
    writer = YAML(typ="rt", pure=True)
    writer.width = 1000
    writer.dump(recipe.model_dump(mode="json"), out)
    return out.getvalue()


def recipe_json_schema() -> dict[str, Any]:
    """JSON schema of recipes, for editors."""
    return Recipe.model_json_schema()


def recipe_data_folder(recipe: Recipe) -> Path | None:
    """Where the sets lie: the recipe's `data`, else POTSTILL_DATA, else nowhere."""
    named = recipe.data or os.environ.get("POTSTILL_DATA")
    if not named:
        return None
    folder = Path(named)
    if not folder.is_dir():
        where = "data" if recipe.data else "POTSTILL_DATA"
        raise UserError("names no folder", where=where, found=named, hint="name the folder that holds the sets")
    return folder


def find_path(recipe: Recipe, path: str, key: str) -> Path:
    """The file or folder that a recipe's key names: absolute, or under the working folder or the data folder.

    Raises UserError if it is nowhere, or in both places (then say which with an absolute or `./` path).
    """
    if Path(path).is_absolute() or path.startswith("."):
        places = [Path(path)]
    else:
        data = recipe_data_folder(recipe)
        places = [Path(path)] + ([data / path] if data else [])
    there = [place for place in places if place.exists()]
    if len({place.resolve() for place in there}) == 1:
        return there[0]
    if there:
        raise UserError(
            "could mean two places",
            where=key,
            found=" and ".join(map(str, there)),
            hint="write the one you mean with ./",
        )
    looked = " and ".join(str(place.absolute()) for place in places)
    raise UserError(
        "nothing is there", where=key, found=f"{path!r}; looked at {looked}", hint=_path_hint(path, places, key)
    )


def _path_hint(path: str, places: list[Path], key: str) -> str:
    """What to do about a path where nothing is: a likely typo, a name on the hub, or one of another folder."""
    for place in places:
        with contextlib.suppress(OSError):
            near = difflib.get_close_matches(place.name, os.listdir(place.parent), 1, 0.8)
            if near:
                return f"did you mean {Path(path).with_name(near[0]).as_posix()}?"
    if key.endswith((".model", ".tokenizer", ".scorer")) and HUB_NAME.fullmatch(path):
        name = path if "/" in path else f"OWNER/{path}"
        return f"if this is a model's name on the hub, download it (`hf download {name} --local-dir {path}`)"
    return "correct the path (it counts from the folder where you run the command), or set data"


def find_paths(recipe: Recipe, path: str, key: str) -> list[Path]:
    """The files that a recipe's key names: one, or all whose name a pattern such as `parts/*.parquet` fits, sorted.

    Raises UserError as `find` does, and where nothing fits.
    """
    folder, _, pattern = path.rpartition("/")
    if "*" not in path or "*" in folder:
        return [find_path(recipe, path, key)]
    found = sorted(each for each in find_path(recipe, folder or ".", key).glob(pattern) if each.is_file())
    if not found:
        raise UserError(
            "no file has such a name", where=key, found=path, hint="correct the path; only its last part may hold *"
        )
    return found


def flatten_keys(recipe: Recipe, *prefixes: str) -> dict[str, Any]:
    """Dotted key -> plain value for every key at or under the prefixes."""
    rows: dict[str, Any] = {}

    def walk(value: Any, key: str) -> None:
        if isinstance(value, dict) and value:
            for name, inner in value.items():
                walk(inner, f"{key}.{name}" if key else name)
        elif any(key == prefix or key.startswith(prefix + ".") for prefix in prefixes):
            rows[key] = value

    walk(recipe.model_dump(mode="json"), "")
    return rows
