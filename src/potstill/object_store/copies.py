"""Verified local copies of files and folders in object stores.

    copy = fetch("s3://bucket/models/flan-t5-base", "student.model")
    copy.path, copy.digest                         # a folder in potstill's cache, and the SHA-256 of its contents

A copy is made once for each version of the files: the store is asked at every start for names, sizes and ETags, and other
files have another copy. A file appears under its name only when it is complete; an interrupted download continues, within
a file, too. If the folder has SHA256SUMS, the digests must match.
"""

from __future__ import annotations

import fnmatch
import functools
import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from potstill import progress, storage
from potstill.errors import UserError
from potstill.object_store.listing import (
    SUMS_FILE,
    UNFINISHED_FILE,
    Listing,
    StoredFile,
    list_files,
    read_sums,
    store_errors,
)
from potstill.storage.manifest import mebibyte_counter

BLOCK_BYTES: Final = 8 << 20  # of one request
LOCK_SECONDS: Final = 24 * 3600.0  # that a process waits while another one copies the same files
CACHE_FOLDER: Final = "object-store"


@dataclass(frozen=True, slots=True)
class Copy:
    """A local copy.

    path           file or folder, as in the store
    digest         SHA-256 over the names and digests of its files
    skipped_bytes  size of the files that were left out
    """

    path: Path
    digest: str
    skipped_bytes: int = 0


@functools.lru_cache(maxsize=64)
def fetch(
    url: str, key: str, *, only: tuple[str, ...] = ("*",), skip: tuple[str, ...] = (), folder: str = CACHE_FOLDER
) -> Copy:
    """The local copy of a file or folder. A process asks the store only once for every URL.

    key     recipe key, for messages
    only    patterns of the files of a folder to copy
    skip    patterns of the files to leave out
    folder  folder in potstill's cache

    Raises UserError as `list_files` does, for an upload that has not finished, for a digest that does not match, and if the
    files change during the download.
    """
    listing = list_files(url, key)
    chosen = [file for file in listing.files if listing.is_file or _matches(file.name, only, skip)]
    left_out = [file for file in listing.files if _matches(file.name, only, ()) and file not in chosen]
    if not chosen:
        what, hint = "the folder in the object store has none of the files that are needed", "check the path"
        raise UserError(what, code="E-remote-missing", where=key, found=f"{url}: {', '.join(only)}", hint=hint)
    path, digests = _copy_into_cache(listing, chosen, key, folder)
    path = path / chosen[0].name if listing.is_file else path
    return Copy(path, hashlib.sha256(json.dumps(digests).encode()).hexdigest(), sum(file.size for file in left_out))


def fetch_matches(url: str, key: str) -> list[Path]:
    """The local copies of all files whose name matches the last part of a URL, such as `s3://bucket/parts/*.parquet`,
    sorted by name. Raises UserError as `fetch` does, and if no file matches."""
    root, _, pattern = url.rpartition("/")
    listing = list_files(root, key)
    chosen = [file for file in listing.files if "/" not in file.name and fnmatch.fnmatchcase(file.name, pattern)]
    if not chosen:
        what, hint = "no file matches the pattern", "correct the URL; only its last part may contain *"
        raise UserError(what, code="E-remote-missing", where=key, found=url, hint=hint)
    folder, digests = _copy_into_cache(listing, chosen, key, CACHE_FOLDER)
    return [folder / name for name in digests]


def download_folder(url: str, folder: Path, key: str) -> tuple[int, int]:
    """Copy a folder of an object store to a new local folder, which appears when it is complete.

    The same call continues an interrupted one. Returns the number of files and of bytes. Raises UserError as `fetch` does,
    and if the local folder exists.
    """
    if folder.exists():
        what, hint = "the folder exists", "name a new folder"
        raise UserError(what, code="E-storage-folder-exists", where=folder, hint=hint)
    listing = list_files(url, key)
    if listing.is_file:
        what, hint = "the URL names a file", "name the folder of a run or of a model"
        raise UserError(what, code="E-remote-file", where=key, found=url, hint=hint)
    staging = folder.with_name(f".{folder.name}.potstill-pull")
    name = hashlib.sha256(str(folder.absolute()).encode()).hexdigest()[:32]
    with storage.hold_lock(
        storage.cache_folder() / CACHE_FOLDER, f".{name}.lock", 0, "another process copies this folder"
    ):
        digests = _copy_files(listing, listing.files, staging, key)
        storage.rename_folder(staging, folder)
        storage.remove(_record_path(staging))
    return len(digests), sum(file.size for file in listing.files if file.name in digests)


def _matches(name: str, only: Sequence[str], skip: Sequence[str]) -> bool:
    """Whether a file is among those that a caller wants. A `*` also stands for `/`, as for huggingface_hub."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in only) and not any(
        fnmatch.fnmatchcase(name, pattern) for pattern in skip
    )


def _copy_into_cache(listing: Listing, files: Sequence[StoredFile], key: str, name: str) -> tuple[Path, dict[str, str]]:
    version = hashlib.sha256(json.dumps([listing.url, _versions(files)]).encode()).hexdigest()[:32]
    cache, last = storage.cache_folder() / name / version, listing.root.rstrip("/").rpartition("/")[2]
    folder = cache / (re.sub(r"[^\w.-]", "_", last).strip(".") or "files")  # its name occurs in names of files of a run
    with storage.hold_lock(cache, ".lock", LOCK_SECONDS, "another process copies these files"):
        return folder, _copy_files(listing, files, folder, key)


def _versions(files: Sequence[StoredFile]) -> list[list[str | int | None]]:
    return [[file.name, file.size, file.version] for file in files if file.name not in (SUMS_FILE, UNFINISHED_FILE)]


def _record_path(folder: Path) -> Path:
    """The file with the versions and the digests of the copies in a folder."""
    return folder.with_name(f"{folder.name}.json")


def _copy_files(listing: Listing, files: Sequence[StoredFile], folder: Path, key: str) -> dict[str, str]:
    """Copy what is missing of the files. Returns name -> SHA-256, sorted by name."""
    url = listing.url
    sums = {} if listing.is_file else read_sums(listing, SUMS_FILE, key)
    stored = {file.name: file for file in files if file.name not in (SUMS_FILE, UNFINISHED_FILE)}
    missing = [name for name in sums if name not in listing]
    if missing or (UNFINISHED_FILE in listing and not sums):
        what, hint = "an upload to this folder has not finished", "run the upload again (potstill push)"
        raise UserError(what, code="E-remote-incomplete", where=key, found=f"{url} {', '.join(missing[:3])}", hint=hint)
    if sums:  # other files are none of the upload's
        stored = {name: file for name, file in stored.items() if name in sums}
    record = {"url": url, "versions": _versions(list(stored.values())), "digests": {}}
    known = storage.read_json(_record_path(folder)) if _record_path(folder).is_file() else {}
    if known.get("versions") == record["versions"] and all(file.version for file in stored.values()):
        record = known
    else:
        storage.remove(folder)
    digests = record["digests"]
    absent = [file for name, file in stored.items() if not _is_whole(folder / name, digests.get(name))]
    if absent:
        storage.write_json(_record_path(folder), record)
        total = sum(file.size for file in absent)
        with progress.bar(f"copy {url.rstrip('/').rpartition('/')[2]}", total >> 20, "MiB") as tick:
            count = mebibyte_counter(tick)
            for file in absent:
                _copy_file(listing, file, folder / file.name, key, count)
                digests[file.name] = storage.file_digest(folder / file.name)
                if sums and digests[file.name] != sums[file.name]:
                    storage.remove(folder / file.name)
                    what, hint = "a file in the object store does not have the digest in SHA256SUMS", "upload it again"
                    found = f"{url}: {file.name}"
                    raise UserError(what, code="E-remote-digest", where=key, found=found, hint=hint)
                storage.write_json(_record_path(folder), record)
        after = {file.name: file for file in list_files(url, key).files}
        if changed := [name for name, file in stored.items() if after.get(name) != file]:
            storage.remove(folder)
            what, hint = "the files in the object store changed during the download", "run again"
            found = f"{url}: {', '.join(changed[:3])}"
            raise UserError(what, code="E-remote-changed", where=key, found=found, hint=hint)
    return {name: digests[name] for name in sorted(stored)}


def _is_whole(path: Path, digest: str | None) -> bool:
    """Whether a copy is there, with the digest that it had."""
    return digest is not None and path.is_file() and storage.file_digest(path) == digest


def _copy_file(listing: Listing, file: StoredFile, path: Path, key: str, count: Callable[[int], object] | None) -> None:
    """Copy a file. Continues a copy that was interrupted, unless the store has no version of the file."""
    if path.exists():
        storage.remove(path)  # a copy that was changed
    stream = storage.resume_stream if file.version else storage.write_stream
    with stream(path) as local:
        done = local.tell()
        with store_errors(listing.url, key):
            options = {"cache_type": "none", "block_size": BLOCK_BYTES}
            with listing.system.open(listing.path(file.name), "rb", **options) as remote:
                remote.seek(done)
                while block := remote.read(BLOCK_BYTES):
                    local.write(block)
                    if count is not None:
                        count(len(block))
        if local.tell() != file.size:
            local.truncate(0)
            what, hint = "the object store sent another number of bytes than it lists", "run again"
            found = f"{listing.url}: {file.name}, {local.tell()} bytes instead of {file.size}"
            raise UserError(what, code="E-remote-changed", where=key, found=found, hint=hint)
