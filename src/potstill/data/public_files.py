"""Downloads of the built-in sets, of the paper's prompts and of T5's tokenizer from public repositories.

    >>> gsm8k = read_public_sets()["gsm8k"]
    >>> gsm8k.licence, gsm8k.files[0].path, gsm8k.files[0].size
    ('mit', 'gsm8k/train.jsonl', 4166206)
    >>> gsm8k.files[0].url.removeprefix(GITHUB).split("/")[:3]
    ['openai', 'grade-school-math', '3101c7d5072418e28b9008a6636bde82a006892c']

The table `public_files.toml` has a pinned commit and a SHA-256 digest for every file. No other content is accepted.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from potstill import hub, progress, storage
from potstill.data import download
from potstill.errors import UserError

TABLE: Final = Path(__file__).with_name("public_files.toml")
GITHUB: Final = "https://raw.githubusercontent.com/"

State = Literal["here", "missing", "other content"]


@dataclass(frozen=True, slots=True)
class PublicFile:
    """path        path in the data folder
    size        size in bytes
    sha256      digest, 64 hexadecimal digits
    repository  `owner/name`; empty if no public source of the file is known
    commit      commit of the repository, 40 hexadecimal digits
    source      path in the repository
    on_hub      whether the repository is a model on the Hugging Face hub; otherwise it is on GitHub
    optional    purpose of the file, if the set can be read without it; empty for a required file
    """

    path: str
    size: int
    sha256: str
    repository: str = ""
    commit: str = ""
    source: str = ""
    on_hub: bool = False
    optional: str = ""

    @property
    def url(self) -> str:
        """The address of the file; empty if no public source is known."""
        if not self.repository:
            return ""
        if self.on_hub:
            return f"{hub.endpoint()}/{self.repository}/resolve/{self.commit}/{self.source}"
        return f"{GITHUB}{self.repository}/{self.commit}/{self.source}"


@dataclass(frozen=True, slots=True)
class PublicSet:
    """licence  the authors' licence, as an identifier of the Hugging Face hub; None: the authors state no licence"""

    name: str
    title: str
    licence: str | None
    files: tuple[PublicFile, ...]

    @property
    def noncommercial(self) -> bool:
        return self.licence is not None and "-nc" in self.licence

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)

    @property
    def sources(self) -> list[str]:
        """The repositories with their shortened commits."""
        return list(
            dict.fromkeys(
                f"{'huggingface.co' if file.on_hub else 'github.com'}/{file.repository}@{file.commit[:7]}"
                for file in self.files
                if file.repository
            )
        )


def read_public_sets(table: Path = TABLE) -> dict[str, PublicSet]:
    """Name -> set, for all sets in the table."""
    entries = tomllib.loads(table.read_text("utf-8"))
    return {
        name: PublicSet(name, entry["title"], entry.get("licence"), tuple(_read_files(entry["sources"])))
        for name, entry in entries.items()
    }


def _read_files(sources: list[dict[str, Any]]) -> Iterator[PublicFile]:
    for source in sources:
        repository = source.get("github") or source.get("hub") or ""
        for file in source["files"]:
            yield PublicFile(
                **file,
                repository=repository,
                commit=source.get("commit", ""),
                on_hub="hub" in source,
                optional=source.get("optional", ""),
            )


def find_state(file: PublicFile, folder: Path) -> State:
    """Whether the data folder has the file with the expected content. Reads the whole file."""
    path = folder / file.path
    if not path.is_file():
        return "missing"
    right = path.stat().st_size == file.size and storage.file_digest(path) == file.sha256
    return "here" if right else "other content"


def fetch_files(name: str, files: Sequence[PublicFile], folder: Path, *, replace: bool = False) -> list[PublicFile]:
    """Fetch the files that the data folder lacks. Returns the fetched files. Interrupted downloads are continued.

    name     name of the set, for messages
    replace  whether to replace files with other content; otherwise they raise UserError

    Raises UserError if a file cannot be fetched. The error lists all missing files, with their addresses and digests.
    """
    states = {file: find_state(file, folder) for file in files}
    others = [file for file in files if states[file] == "other content"]
    if others and not replace:
        raise UserError(
            "a file in the data folder differs from the public file",
            code="E-data-other-content",
            where=f"potstill data {name}",
            found=_list_files(others, folder),
            hint="move the file away, or add --replace to replace it with the public file",
        )
    wanted = [file for file in files if states[file] != "here" and not (file.optional and not file.repository)]
    fetched: list[PublicFile] = []
    with progress.bar(f"data {name}", len(wanted), "file") as tick:
        for file in wanted:
            try:
                _check_source(file)
                with storage.hold_lock(folder, ".potstill-lock", 600, "another process fetches into this folder"):
                    if find_state(file, folder) != "here":
                        _fetch(file, folder / file.path)
            except UserError as error:
                raise _missing_error(name, error, wanted[len(fetched) :], folder) from None
            fetched.append(file)
            tick(1, file.path)
    return fetched


def _check_source(file: PublicFile) -> None:
    if not file.repository:
        raise UserError("no public source of this file is known", code="E-data-no-source", found=file.path)
    if hub.is_offline() and not file.on_hub:
        raise UserError("HF_HUB_OFFLINE=1 forbids downloads", code="E-data-offline", found=file.path)


def _fetch(file: PublicFile, path: Path) -> None:
    if not file.on_hub:
        download.download_file(file.path, file.url, path, size=file.size, sha256=file.sha256)
        return
    cached = hub.download_model_file(file.repository, file.source, file.commit, key=file.path)
    if storage.file_digest(cached) != file.sha256:
        raise UserError("the downloaded file is not the expected file", code="E-data-download-digest", found=cached)
    storage.write_file(path, cached.read_bytes())


def _missing_error(name: str, error: UserError, missing: Sequence[PublicFile], folder: Path) -> UserError:
    count = "a file is" if len(missing) == 1 else f"{len(missing)} files are"
    hint = "run the same command again to continue; or get the files with another tool and place them at these paths:"
    return UserError(
        f"{count} missing: {error.what}",
        code=error.code,
        where=f"potstill data {name}",
        found=error.found,
        hint=f"{hint}\n{_list_files(missing, folder)}",
    )


def _list_files(files: Sequence[PublicFile], folder: Path) -> str:
    """Three lines per file: its path, its digest, and its address."""
    return "\n".join(
        f"    {folder / file.path}\n      sha256 {file.sha256}, {file.size} bytes\n"
        f"      from {file.url or 'no known public source'}"
        for file in files
    )
