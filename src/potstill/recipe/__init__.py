"""Recipes: a YAML file that determines a run. `schema` has the keys, `load` reads a file.

    >>> recipe = parse_recipe("name: mine\\nteacher: {kind: human}\\ntrain: {learning_rate: 5e-4}\\n", "mine.yaml")
    >>> recipe.train.learning_rate, recipe.train.formats
    (0.0005, {'zero-shot-rationale': 1})
    >>> parse_recipe("name: mine\\ntrain:\\n  stps: 3\\n", "mine.yaml")
    Traceback (most recent call last):
    potstill.errors.UserError: mine.yaml line 3: unknown key train.stps
      hint: did you mean train.steps?
      code: E-recipe-unknown-key

The text is YAML 1.2: `5e-4` is a number, and `no` is a string. A recipe is frozen, and unknown keys are refused with a
suggestion. `recipe_to_yaml` writes all defaults. A relative path in a recipe is searched in the working folder and in the
data folder (`find_path`).
"""

from __future__ import annotations

import contextlib
import difflib
import io
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from ruamel.yaml import YAML

from potstill import object_store
from potstill.errors import UserError
from potstill.recipe.fields import Column, CustomSet, TextsSection
from potstill.recipe.load import load_recipe, parse_recipe, write_value
from potstill.recipe.schema import EvaluateSection, Recipe
from potstill.recipe.student import ShapeSection
from potstill.recipe.teacher import VllmSection

__all__ = [
    "Column",
    "CustomSet",
    "EvaluateSection",
    "Recipe",
    "ShapeSection",
    "TextsSection",
    "VllmSection",
    "find_path",
    "find_paths",
    "flatten_keys",
    "flatten_values",
    "load_recipe",
    "parse_recipe",
    "recipe_data_folder",
    "recipe_json_schema",
    "recipe_to_yaml",
    "write_value",
]

MODEL_KEYS: Final = (".model", ".tokenizer", ".scorer")  # ends of the keys that name a model
WEIGHT_FILES: Final = ("*.safetensors", "*.bin", "*.pt", "*.gguf")  # files that no tokenizer needs
HUB_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?")  # of a model on the hub


def recipe_to_yaml(recipe: Recipe) -> str:
    """The recipe as YAML with all defaults, in the order of the fields."""
    out = io.StringIO()
    writer = YAML(typ="rt", pure=True)
    writer.width = 1000
    writer.dump(recipe.model_dump(mode="json"), out)
    return out.getvalue()


def recipe_json_schema() -> dict[str, Any]:
    """JSON schema of recipes, for editors."""
    return Recipe.model_json_schema()


def recipe_data_folder(recipe: Recipe) -> Path | None:
    """The data folder: the recipe's `data`, or POTSTILL_DATA; None without either. For a URL, a local copy.

    Raises UserError if the folder does not exist, and as `object_store.fetch` does.
    """
    path = recipe.data or os.environ.get("POTSTILL_DATA")
    if path and object_store.is_url(path):
        return object_store.fetch(path, "data" if recipe.data else "POTSTILL_DATA").path
    if path and not Path(path).is_dir():
        key, hint = "data" if recipe.data else "POTSTILL_DATA", "name the folder that contains the sets"
        raise UserError("the data folder does not exist", code="E-data-no-folder", where=key, found=path, hint=hint)
    return Path(path) if path else None


def find_path(recipe: Recipe, path: str, key: str) -> Path:
    """The file or folder that a recipe key names. A relative path is searched in the working folder and the data folder.

    path  the value of the key
    key   dotted key, for messages
    Raises UserError if it exists in neither folder, or in both. For a URL of an object store, returns a local copy, and
    raises UserError as `object_store.fetch` does.
    """
    if object_store.is_url(path):
        return object_store.fetch(path, key, skip=WEIGHT_FILES if key.endswith(".tokenizer") else ()).path
    paths = [Path(path)]
    if not Path(path).is_absolute() and not path.startswith(".") and (data_dir := recipe_data_folder(recipe)):
        paths.append(data_dir / path)
    existing = [candidate for candidate in paths if candidate.exists()]
    if len({candidate.resolve() for candidate in existing}) == 1:
        return existing[0]
    if existing:
        found = " and ".join(map(str, existing))
        what, hint = (
            "the path exists in two folders",
            "write ./ before the one in the working folder, or an absolute path",
        )
        raise UserError(what, code="E-recipe-ambiguous-path", where=key, found=found, hint=hint)
    found = f"{path!r}; looked at {' and '.join(dict.fromkeys(str(candidate.absolute()) for candidate in paths))}"
    what, hint = "the file does not exist", _path_hint(path, paths, key)
    raise UserError(what, code="E-recipe-missing-path", where=key, found=found, hint=hint)


def _path_hint(path: str, paths: list[Path], key: str) -> str:
    """A hint for a missing path: a similar name, a download from the hub, or another folder."""
    if path.startswith("miniature/"):
        return "run the recipe demo.yaml with `potstill demo`, which copies these files to runs/miniature"
    for candidate in paths:
        with contextlib.suppress(OSError):
            near = difflib.get_close_matches(candidate.name, os.listdir(candidate.parent), 1, 0.8)
            if near:
                return f"did you mean {Path(path).with_name(near[0]).as_posix()}?"
    if key.endswith(MODEL_KEYS):
        name, at, revision = path.removeprefix("https://huggingface.co/").removeprefix("hub:").partition("@")
        if (name != path or at) and "/" in name and HUB_NAME.fullmatch(name):
            more = f", and {key.removesuffix('.model')}.revision: {revision}" if revision else ""
            return f"write the name of a model on the hub as {key}: {name}{more}"
    if key.endswith(MODEL_KEYS) and HUB_NAME.fullmatch(path):
        is_name = "/" in path and path.partition("/")[0] not in ("datasets", "models", "spaces")
        name = path if is_name else f"OWNER/{path.rpartition('/')[2]}"
        return f"if this is a model's name on the hub, download it (`hf download {name} --local-dir {path}`)"
    return "correct the path (it is relative to the folder in which you run the command), or set data"


def find_paths(recipe: Recipe, path: str, key: str) -> list[Path]:
    """The files that a recipe key names: one file, or all files that match a pattern such as `parts/*.parquet`, sorted.

    Raises UserError as `find_path` does, and if no file matches.
    """
    folder, _, pattern = path.rpartition("/")
    if object_store.is_url(path) and "*" in pattern and "*" not in folder:
        return object_store.fetch_matches(path, key)
    if "*" not in path or "*" in folder:
        return [find_path(recipe, path, key)]
    paths = sorted(match for match in find_path(recipe, folder or ".", key).glob(pattern) if match.is_file())
    if not paths:
        what, hint = "no file matches the pattern", "correct the path; only its last part may contain *"
        raise UserError(what, code="E-recipe-missing-path", where=key, found=path, hint=hint)
    return paths


def flatten_keys(recipe: Recipe, *prefixes: str) -> dict[str, Any]:
    """Dotted key -> plain value, for every key that equals a prefix or is in its section."""
    rows = flatten_values(recipe.model_dump(mode="json"))
    return {
        key: value
        for key, value in rows.items()
        if any(key == prefix or key.startswith(prefix + ".") for prefix in prefixes)
    }


def flatten_values(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted key -> plain value, for nested values. An empty mapping is a value.

    >>> flatten_values({"train": {"steps": 500, "formats": {"few-shot-answer": 1}}})
    {'train.steps': 500, 'train.formats.few-shot-answer': 1}
    """
    rows: dict[str, Any] = {}
    for key, value in values.items():
        inner = isinstance(value, Mapping) and value
        rows |= flatten_values(value, f"{prefix}{key}.") if inner else {prefix + key: value}
    return rows
