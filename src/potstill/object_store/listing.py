"""What an object store has under a URL: names, sizes and versions; and the digests that an upload left there.

    >>> parse_sums(b"0a1b  config.json\\n2c3d  weights/a.safetensors\\n")
    {'config.json': '0a1b', 'weights/a.safetensors': '2c3d'}
    >>> refuse_run_url("s3://bucket/runs/demo")
    Traceback (most recent call last):
    potstill.errors.UserError: s3://bucket/runs/demo: a run in an object store cannot be opened
      hint: copy it to a folder: potstill pull s3://bucket/runs/demo FOLDER
      code: E-remote-run

A folder that potstill has uploaded has the file SHA256SUMS, in the format of sha256sum. It is written last, so a folder
without it, but with the list of an upload that has not finished, is incomplete.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

from potstill.errors import UserError

URL: Final = re.compile(r"(?!https?://)[a-z][a-z0-9+.-]+://.+")  # places of the web have no folders
URL_AS_PATH: Final = re.compile(r"([a-z][a-z0-9+.-]+):/+(.+)")  # pathlib joins the two slashes
SUMS_FILE: Final = "SHA256SUMS"
UNFINISHED_FILE: Final = "SHA256SUMS.unfinished"  # instead of SHA256SUMS while an upload has not finished
VERSION_KEYS: Final = ("ETag", "etag", "md5Hash", "content_md5", "generation", "mtime", "created")


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file of an object store.

    name     its path below the URL; its own name, if the URL names the file
    size     in bytes
    version  changes with the content (an ETag, or a time); None if the store has nothing of the kind
    """

    name: str
    size: int
    version: str | None


@dataclass(frozen=True)
class Listing:
    """The files under a URL, sorted by name.

    system   file system of fsspec
    root     path in the file system to which the names are relative
    is_file  whether the URL names one file
    """

    url: str
    system: Any
    root: str
    files: tuple[StoredFile, ...]
    is_file: bool

    def __contains__(self, name: str) -> bool:
        return any(file.name == name for file in self.files)

    def path(self, name: str) -> str:
        """The path of a file in the file system."""
        return f"{self.root.rstrip('/')}/{name}" if self.root else name


def is_url(text: str) -> bool:
    """Whether a text is the URL of an object store, and not a path, the name of a model, or an address of the web."""
    return URL.fullmatch(text) is not None


def refuse_run_url(path: str | Path) -> None:
    """Raise UserError if a run is named by a URL."""
    if match := URL_AS_PATH.fullmatch(str(path)):
        url = f"{match[1]}://{match[2]}"
        what, hint = "a run in an object store cannot be opened", f"copy it to a folder: potstill pull {url} FOLDER"
        raise UserError(what, code="E-remote-run", where=url, hint=hint)


def open_system(url: str, key: str) -> tuple[Any, str]:
    """The file system of a URL, without cached listings, and the path in it. Raises UserError as `list_files` does."""
    if re.match(r"[^/]*://[^/]*:[^/]*@", url):
        what, hint = "the URL contains a password", "set the credentials in the environment"
        raise UserError(what, code="E-remote-password", where=key, hint=hint)
    import fsspec

    try:
        system, path = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as fault:
        scheme = url.partition("://")[0]
        hint = (
            "install the library of this scheme: pip install 'potstill[s3]' for s3://, gcsfs for gs://, adlfs for az://"
        )
        what = f"no library for {scheme}:// is installed"
        raise UserError(what, code="E-remote-scheme", where=key, found=_first_line(fault), hint=hint) from fault
    with store_errors(url, key):
        system.invalidate_cache()
    return system, str(path)


def list_files(url: str, key: str, *, missing: bool = False) -> Listing:
    """The files under a URL.

    key      recipe key or argument, for messages
    missing  whether the URL may name nothing

    Raises UserError if there is nothing, if access is refused, if the store cannot be reached, and for an unknown scheme.
    """
    system, path = open_system(url, key)
    with store_errors(url, key):
        try:
            info = system.info(path)
        except FileNotFoundError:
            if not missing:
                raise
            return Listing(url, system, path, (), is_file=False)
        if info["type"] == "file":
            folder, _, name = path.rpartition("/")
            return Listing(url, system, folder, (_describe(name, info),), is_file=True)
        found = system.find(path, detail=True)
    files = [
        _describe(full.removeprefix(path.rstrip("/")).lstrip("/"), info)
        for full, info in found.items()
        if info["type"] == "file" and not full.endswith("/")  # a marker of an empty folder
    ]
    if not files and not missing:
        raise _missing_error(url, key)
    for file in files:
        if ".." in PurePosixPath(file.name).parts or "\\" in file.name or not file.name:
            what, hint = "a file in the object store has a name that no folder can have", "rename it"
            raise UserError(what, code="E-remote-name", where=key, found=f"{url}: {file.name!r}", hint=hint)
    return Listing(url, system, path, tuple(sorted(files, key=lambda file: file.name)), is_file=False)


def _describe(name: str, info: dict[str, Any]) -> StoredFile:
    version = next((str(info[field]) for field in VERSION_KEYS if info.get(field) is not None), None)
    return StoredFile(name, int(info["size"]), version)


def parse_sums(content: bytes) -> dict[str, str]:
    """Name -> SHA-256, from the content of a file SHA256SUMS."""
    rows = (line.split(maxsplit=1) for line in content.decode("utf-8", "replace").splitlines())
    return {row[1].removeprefix("*"): row[0] for row in rows if len(row) == 2}


def format_sums(digests: dict[str, str]) -> bytes:
    return "".join(f"{digest}  {name}\n" for name, digest in sorted(digests.items())).encode()


def read_sums(listing: Listing, name: str, key: str) -> dict[str, str]:
    """The digests in a file of the listing; empty if it does not have the file."""
    if name not in listing:
        return {}
    with store_errors(listing.url, key):
        return parse_sums(listing.system.cat_file(listing.path(name)))


@contextlib.contextmanager
def store_errors(url: str, key: str) -> Iterator[None]:
    """Convert errors of an object store to UserError. The block calls nothing else, because each library raises errors of
    its own."""
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError as fault:
        raise _missing_error(url, key) from fault
    except Exception as fault:
        if type(fault).__name__ == "FileExpired":  # of s3fs
            code, what, hint = "E-remote-changed", "a file in the object store changed during the download", "run again"
        elif isinstance(fault, PermissionError) or type(fault).__name__ == "NoCredentialsError":
            code, what = "E-remote-refused", "the object store refuses access"
            hint = "set credentials that may read (and, for push, write) there, such as AWS_PROFILE"
        else:
            code, what = "E-remote-failed", "the object store cannot be reached, or it refuses the request"
            hint = "run again: files that are complete are not copied again"
        found = f"{url}: {_first_line(fault)}"[:300]
        raise UserError(what, code=code, where=key, found=found, hint=hint) from fault


def _missing_error(url: str, key: str) -> UserError:
    what, hint = "the object store has neither a file nor a folder of this name", "check bucket and path"
    return UserError(what, code="E-remote-missing", where=key, found=url, hint=hint)


def _first_line(fault: BaseException) -> str:
    return next(iter(str(fault).strip().splitlines()), type(fault).__name__)
