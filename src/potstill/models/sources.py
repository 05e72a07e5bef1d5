"""Finding the folder of a model by its name in a recipe.

    >>> import tempfile; folder = tempfile.mkdtemp()
    >>> locate_model(folder, key="student.model") == ModelSource(Path(folder))
    True

A name has one of these forms, tried in this order:

    package:NAME        a GGUF file, whole or in parts, in an installed Python package
    FOLDER              a folder in Hugging Face format
    FILE.gguf           a GGUF file, converted once, into the cache (see `potstill.models.gguf`)
    s3://BUCKET/PATH    a folder, or a GGUF file, in an object store, copied into the cache (see `potstill.object_store`)
    owner/name          a repository on the Hugging Face hub, downloaded into the hub's cache; `revision` is a branch, a tag
                        or a commit
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import importlib.util
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from potstill import hub, object_store, progress, storage
from potstill import recipe as recipes
from potstill.errors import UserError
from potstill.models.gguf import convert_gguf
from potstill.models.weight_files import refuse_other_folders
from potstill.recipe import Recipe
from potstill.storage import atomic

NOT_DOWNLOADED: Final = "E-model-not-downloaded"  # the code of the error; no problem, because the run downloads them
PACKAGE_PREFIX: Final = "package:"
PART_SUFFIX: Final = ".gguf.part*"


@dataclass(frozen=True, slots=True)
class ModelSource:
    """The folder of a model; and for a model from the hub, its commit, which is part of a run's identity. For a model from
    an object store, the digest of its files is.

    missing_bytes  size of the weights that the folder lacks (see `without_weights`)
    """

    folder: Path
    commit: str | None = None
    missing_bytes: int = 0
    contents: str | None = None

    def identity(self, key: str) -> dict[str, str]:
        """Recipe key -> digest of the model; for a model from the hub, also its commit, and for a model from an object
        store, also the digest of its files.

        Raises UserError if its weights have not been downloaded.
        """
        if self.missing_bytes:
            raise _not_downloaded_error(key)
        digests = {key: storage.folder_fingerprint(self.folder)}
        if self.contents is not None:
            digests[f"{key} (contents)"] = self.contents
        return digests if self.commit is None else digests | {f"{key} (commit)": self.commit}


_WITH_WEIGHTS: Final = ContextVar("potstill_with_weights", default=True)


@contextlib.contextmanager
def without_weights() -> Iterator[None]:
    """Do not download weights from the hub during the block.

    `find_model` then gives a folder with the configuration and the tokenizer only, unless the hub's cache has the model.
    """
    token = _WITH_WEIGHTS.set(False)
    try:
        yield
    finally:
        _WITH_WEIGHTS.reset(token)


def require_weights(folder: Path) -> None:
    """Raise UserError for a folder whose weights have not been downloaded."""
    if folder.is_relative_to(_partial_cache()):
        raise _not_downloaded_error(folder)


def _partial_cache() -> Path:
    return storage.cache_folder() / "models-without-weights"


def _not_downloaded_error(where: object) -> UserError:
    what, hint = "the weights have not been downloaded", "the run downloads them"
    return UserError(what, code="E-model-not-downloaded", where=where, hint=hint)


def find_model(recipe: Recipe, name: str, key: str, revision: str | None = None) -> ModelSource:
    """The model that a recipe names under `key`. Raises UserError as `locate_model` does."""
    try:
        is_path = not (name.startswith(PACKAGE_PREFIX) or object_store.is_url(name))
        path = None if not is_path else recipes.find_path(recipe, name, key)
    except UserError as error:
        if error.code == "E-recipe-missing-path" and _is_gguf(Path(name)):
            raise _no_gguf_error(Path(name), key, error.found) from None
        if not hub.is_hub_name(name):
            raise
        path = None
    found = name if path is None else str(path)
    return locate_model(found, key=key, revision=revision, weights=_WITH_WEIGHTS.get())


def find_scorer(recipe: Recipe) -> ModelSource:
    """The model of `on_policy.scorer`. Raises UserError as `locate_model` does."""
    section = recipe.on_policy
    assert section is not None and section.scorer is not None, "the recipe names a scorer"
    return find_model(recipe, section.scorer, "on_policy.scorer", section.scorer_revision)


@functools.lru_cache(maxsize=64)
def locate_model(name: str, *, key: str, revision: str | None = None, weights: bool = True) -> ModelSource:
    """The model with a name of one of the forms above. A process looks up every name only once.

    key      recipe key, for messages
    weights  whether to download the weights of a model from the hub

    Raises UserError if there is no such model, if it cannot be downloaded or converted, or if `revision` is given for a
    model that is not on the hub.
    """
    if object_store.is_url(name):
        return _locate_stored(name, key, revision, weights)
    path = Path(name)
    if _is_gguf(path) and not path.exists() and not name.startswith(PACKAGE_PREFIX):
        raise _no_gguf_error(path, key, str(path.absolute()))
    on_hub = not path.exists() and not name.startswith(PACKAGE_PREFIX) and hub.is_hub_name(name)
    if revision is not None and not on_hub:
        raise _revision_error(name, key, revision)
    if name.startswith(PACKAGE_PREFIX):
        return ModelSource(convert_gguf(_find_package_file(name.removeprefix(PACKAGE_PREFIX), key), key=key))
    if on_hub and not weights and not hub.is_offline():
        partial, size = hub.download_model_without_weights(name, revision, key=key, cache=_partial_cache())
        return ModelSource(partial.folder, partial.commit, size)
    if on_hub:
        snapshot = hub.download_model(name, revision, key=key)
        refuse_other_folders(snapshot.folder)
        return ModelSource(snapshot.folder, snapshot.commit)
    if path.is_file() and _is_gguf(path):
        return ModelSource(convert_gguf(path, key=key))
    refuse_other_folders(path)
    return ModelSource(path)


def _locate_stored(url: str, key: str, revision: str | None, weights: bool) -> ModelSource:
    """The model at the URL of an object store."""
    if revision is not None:
        raise _revision_error(url, key, revision)
    patterns = (*hub.MODEL_FILES, "*.gguf")
    if not weights and not _is_gguf(Path(url)):
        partial = object_store.fetch(url, key, only=patterns, skip=recipes.WEIGHT_FILES, folder=_partial_cache().name)
        if partial.skipped_bytes:
            return ModelSource(partial.path, missing_bytes=partial.skipped_bytes)
    copy = object_store.fetch(url, key, only=patterns, skip=hub.OTHER_COPIES)
    if copy.path.is_file():
        return ModelSource(convert_gguf(copy.path, key=key), contents=copy.digest)
    refuse_other_folders(copy.path)
    return ModelSource(copy.path, contents=copy.digest)


def _revision_error(name: str, key: str, revision: str) -> UserError:
    return UserError(
        "only a model from the hub has a revision",
        code="E-model-revision",
        where=key,
        found=f"{name}, with the revision {revision}",
        hint="remove the revision, or give the model's name on the hub",
    )


def _is_gguf(path: Path) -> bool:
    return path.suffix.lower() == ".gguf"


def _no_gguf_error(path: Path, key: str, found: str) -> UserError:
    """The error for a missing GGUF file. It suggests a similar name in the same folder, if there is one."""
    hint = "correct the path (it is relative to the folder in which you run the command), or download the file"
    siblings = [other.name for other in path.parent.glob("*") if _is_gguf(other)]
    near = difflib.get_close_matches(path.name, siblings, 1, 0.6)
    if near or len(siblings) == 1:
        hint = f"did you mean {path.with_name((near or siblings)[0])}?"
    return UserError("the GGUF file does not exist", code="E-model-no-gguf", where=key, found=found, hint=hint)


def _find_package_file(package: str, key: str) -> Path:
    """The only GGUF file of an installed package. Parts in the packages NAME, NAME_part1, ... are joined in the cache."""
    files = [path for path in _package_files(package) if path.suffix == ".gguf"]
    if len(files) == 1:
        return files[0]
    siblings = [f"{package}_part{number}" for number in range(1, 100)]
    parts = sorted(
        (path for name in (package, *siblings) for path in _package_files(name) if path.match(f"*{PART_SUFFIX}")),
        key=lambda path: path.name,
    )
    if files or not parts:
        raise UserError(
            "the package has no GGUF file" if not files else "the package has several GGUF files",
            code="E-model-package",
            where=key,
            found=", ".join(path.name for path in files[:5]) or package,
            hint=f"install the package that contains the model (pip), or give the path of the file in {key}",
        )
    return _join_parts(parts, key)


def _package_files(package: str) -> list[Path]:
    """All files of an installed package, without importing it; empty if the package is not installed."""
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    folders: Iterable[str] = (spec.submodule_search_locations or ()) if spec is not None else ()
    return sorted(path for folder in folders for path in Path(folder).rglob("*") if path.is_file())


def _join_parts(parts: list[Path], key: str) -> Path:
    """The file that results from joining the parts, verified with the SHA256SUMS in their packages."""
    name = parts[0].name.partition(".part")[0]
    sums = [
        path for path in _package_files(parts[0].parents[1].name.partition("_part")[0]) if path.name == "SHA256SUMS"
    ]
    lines = [line.split() for path in sums for line in path.read_text().splitlines()]
    expected = next((line[0] for line in lines if len(line) == 2 and line[1].lstrip("*") == name), None)
    if expected is None:
        raise UserError(
            "the package has no SHA256SUMS for the parts of its model",
            code="E-model-package",
            where=key,
            found=name,
            hint=f"join the parts with another tool, and give the path of the file in {key}",
        )
    path = storage.cache_folder() / "gguf" / expected[:32] / name
    if path.is_file() and storage.file_digest(path) == expected:
        return path
    with progress.bar(f"join {name}", len(parts), "parts") as tick, atomic.write_stream(path) as file:
        for part in parts:
            file.write(part.read_bytes())
            tick(1)
    if storage.file_digest(path) != expected:
        storage.remove(path)
        raise UserError(
            "the joined parts of the model do not have the digest in SHA256SUMS",
            code="E-model-package",
            where=key,
            found=name,
            hint="install the packages of the model again",
        )
    return path
