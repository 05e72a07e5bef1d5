"""Uploads of a folder to an object store.

    upload = upload_folder(files, "s3://bucket/runs/demo", "push")
    upload.sent, upload.kept                       # numbers of files

An upload is complete when the store has the file SHA256SUMS. Before that, a list with another name says which files of the
folder are good, so that the same command continues: files that the store has are not sent again. A store of objects shows a
file only when it is complete; in other file systems (`sftp://`, `file://`) it gets its name when it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from potstill import progress, storage
from potstill.errors import UserError
from potstill.object_store.listing import (
    SUMS_FILE,
    UNFINISHED_FILE,
    Listing,
    format_sums,
    list_files,
    read_sums,
    store_errors,
)
from potstill.storage.atomic import PARTIAL_SUFFIX
from potstill.storage.manifest import mebibyte_counter

# Schemes whose stores show a file only when it is complete.
OBJECT_SCHEMES: Final = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "oci", "oss", "r2", "hf", "memory")


@dataclass(frozen=True, slots=True)
class Upload:
    """The result of an upload: numbers of files that were sent, that the store had already, and that it no longer has."""

    sent: int
    kept: int
    removed: int


def upload_folder(files: Mapping[str, Path], url: str, key: str) -> Upload:
    """Upload files to a folder of an object store. Files of an earlier upload that are no longer there are removed.

    files  path below the URL -> file; none of them has the name SHA256SUMS
    key    argument, for messages

    Raises UserError if the store has other files there, if it cannot be reached, and if it refuses the upload.
    """
    assert SUMS_FILE not in files, "the name of the list of digests"
    listing = list_files(url, key, missing=True)
    unfinished = UNFINISHED_FILE in listing
    known = read_sums(listing, SUMS_FILE, key) or read_sums(listing, UNFINISHED_FILE, key)
    leftovers = [file.name for file in listing.files if file.name.endswith(PARTIAL_SUFFIX)]
    if listing.is_file or (len(listing.files) > len(leftovers) and SUMS_FILE not in listing and not unfinished):
        what, hint = "the object store has other files here", "name a new folder"
        found = f"{url}: {', '.join(file.name for file in listing.files[:3])}"
        raise UserError(what, code="E-remote-occupied", where=key, found=found, hint=hint)
    digests = {name: storage.file_digest(path) for name, path in files.items()}
    sizes = {file.name: file.size for file in listing.files}
    kept = [
        name
        for name, path in files.items()
        if known.get(name) == digests[name] and sizes.get(name) == path.stat().st_size
    ]
    if len(kept) == len(files) and digests == known and not unfinished and not leftovers:
        return Upload(0, len(kept), 0)
    removed = [name for name in known if name in sizes and name not in kept]
    _remove(listing, leftovers, key)
    # The order makes every interruption harmless: what the lists name, and the store has in the right size, is good.
    _put(listing, {UNFINISHED_FILE: format_sums({name: digests[name] for name in kept})}, key)
    _remove(listing, [SUMS_FILE] if SUMS_FILE in listing else [], key)
    _remove(listing, removed, key)
    _put(listing, {UNFINISHED_FILE: format_sums(digests)}, key)
    sent = {name: path for name, path in files.items() if name not in kept}
    _put(listing, sent, key)
    _put(listing, {SUMS_FILE: format_sums(digests)}, key)
    _remove(listing, [UNFINISHED_FILE], key)
    return Upload(len(sent), len(kept), len([name for name in removed if name not in files]))


def _put(listing: Listing, files: Mapping[str, Path | bytes], key: str) -> None:
    """Write files into the store, one after another."""
    system, sized = listing.system, {name: one for name, one in files.items() if isinstance(one, Path)}
    total = sum(path.stat().st_size for path in sized.values())
    in_place = bool({*_schemes(system)} & {*OBJECT_SCHEMES})
    with progress.bar("upload", total >> 20, "MiB") as tick, store_errors(listing.url, key):
        count = mebibyte_counter(tick)
        for name, content in files.items():
            path = listing.path(name)
            written = path if in_place else path + PARTIAL_SUFFIX
            if not in_place:
                system.makedirs(path.rpartition("/")[0], exist_ok=True)
            if isinstance(content, Path):
                system.put_file(str(content), written)
                if count is not None:
                    count(content.stat().st_size)
            else:
                system.pipe_file(written, content)
            if not in_place:
                system.mv(written, path)


def _remove(listing: Listing, names: Iterable[str], key: str) -> None:
    with store_errors(listing.url, key):
        for name in names:
            listing.system.rm_file(listing.path(name))


def _schemes(system: Any) -> tuple[str, ...]:
    return (system.protocol,) if isinstance(system.protocol, str) else tuple(system.protocol)
