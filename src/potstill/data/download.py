"""Sets from a URL or from the Hugging Face hub, fetched once and kept in a folder.

    >>> commit = "0123456789abcdef0123456789abcdef01234567"
    >>> remote_file_from_hub("sets.mine", "owner/name", "data/a b.jsonl", commit).url.removeprefix(hub_endpoint())
    '/datasets/owner/name/resolve/0123456789abcdef0123456789abcdef01234567/data/a%20b.jsonl'

The folder is POTSTILL_CACHE, else `potstill` in the platform's folder of caches. What a URL gives is known by the
SHA-256 that the recipe pins. What the hub gives is held against the digest that it states (where it states one) and,
from then on, against the SHA-256 that the first copy had. A copy is hashed at every use; one that has changed is not
used but fetched again. Nothing is written before it is verified.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
import time
import urllib.parse
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx2

from potstill import storage
from potstill.errors import UserError
from potstill.http_body import BodyDecoder, BodyTooLarge

RETRY_WAITS: Final = (1.0, 4.0)  # seconds before the second and the third try
TIMEOUT: Final = httpx2.Timeout(60.0, connect=10.0)
MAX_BYTES: Final = 1 << 30  # bytes; a set is held in memory while it is read
MAX_SECONDS: Final = 3600.0  # seconds that a body may take
MAX_REDIRECTS: Final = 10
OTHER_WAY: Final = "or get the file by any other tool and name it with `file`"


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One file of somebody else's.

    key     of the recipe, for messages
    place   its path below the cache folder
    sha256  what it must have; None: what the first copy had
    commit  of the hub's repository; None: not of the hub
    """

    key: str
    url: str
    place: str
    sha256: str | None
    commit: str | None = None


class _TransientError(Exception):
    """A fault that may pass."""


def remote_file_from_url(key: str, url: str, sha256: str) -> RemoteFile:
    name = re.sub(r"[^A-Za-z0-9._-]", "_", urllib.parse.urlsplit(url).path.rpartition("/")[2]).lstrip(".")
    return RemoteFile(key, url, f"url/{sha256}/{name[-100:] or 'set.jsonl'}", sha256)


def remote_file_from_hub(key: str, name: str, file: str, revision: str, sha256: str | None = None) -> RemoteFile:
    """name: `owner/name`. file: its path in the repository. revision: a commit in full."""
    url = f"{hub_endpoint()}/datasets/{name}/resolve/{revision}/{urllib.parse.quote(file)}"
    return RemoteFile(key, url, f"hub/{name}/{revision}/{file}", sha256, revision)


def hub_endpoint() -> str:
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def cache_folder() -> Path:
    """The folder of fetched sets."""
    named = os.environ.get("POTSTILL_CACHE")
    if named:
        return Path(named)
    usual = Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache")
    return Path(os.environ.get("XDG_CACHE_HOME") or usual) / "potstill"


def fetch_file(source: RemoteFile) -> Path:
    """The verified copy of a file, fetched if it is not there.

    Raises UserError where it cannot be had, or is not what it must be; then nothing is left behind.
    """
    path = cache_folder() / source.place
    record = path.with_name(f".{path.name}.sha256")
    known = storage.read_bytes(record).decode(errors="replace").strip() if record.is_file() else None
    wanted = source.sha256 or known
    if wanted and path.is_file() and storage.file_digest(path) == wanted:
        return path
    if source.commit and os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise UserError(
            "is not here, and the hub may not be asked",
            where=source.key,
            found=f"HF_HUB_OFFLINE is set; no verified copy at {path}",
            hint=f"run once without HF_HUB_OFFLINE, {OTHER_WAY}",
        )
    data = _download(source)
    digest = hashlib.sha256(data).hexdigest()
    if wanted and digest != wanted:
        which = f"is not the file that {source.key}.sha256 pins" if source.sha256 else "is not the file that it was"
        raise UserError(
            which,
            where=source.key,
            found=f"SHA-256 {digest}, {len(data)} bytes from {source.url}",
            hint="run again if it may have been cut off; "
            + (
                "if the new file is wanted, pin its digest"
                if source.sha256
                else f"to take the new file remove {record}"
            ),
        )
    with storage.hold_lock(cache_folder(), ".lock", 600, "another process is storing fetched sets"):
        storage.write_file(path, data)
        if source.commit:
            storage.write_file(record, f"{digest}\n".encode())
    return path


def _download(source: RemoteFile) -> bytes:
    said = ""
    for wait in (*RETRY_WAITS, 0.0):
        try:
            return _receive(source)
        except _TransientError as fault:
            said = str(fault)
        time.sleep(wait)
    raise UserError(
        "cannot be fetched",
        where=source.key,
        found=f"{said} from {source.url}",
        hint=f"look at the network, {OTHER_WAY}",
    )


def _receive(source: RemoteFile) -> bytes:
    """The whole content. Raises _Again for what may pass, UserError for what will not."""
    headers = {"User-Agent": "potstill", "Accept-Encoding": "identity"}
    try:
        with httpx2.Client(follow_redirects=False, timeout=TIMEOUT, headers=headers) as client:
            request, responses = client.build_request("GET", source.url), list[httpx2.Response]()
            while True:  # redirects are followed here, for the library reads the whole body of each
                response = client.send(request, stream=True)
                responses.append(response)
                try:
                    if response.next_request is None:
                        _check_status(source, response.status_code)
                        data = _read_body(source, response)
                        break
                finally:
                    response.close()
                if len(responses) > MAX_REDIRECTS:
                    raise UserError(
                        "cannot be fetched: one redirect leads to another",
                        where=source.key,
                        found=source.url,
                        hint=OTHER_WAY[3:],
                    )
                request = response.next_request
        if source.commit:
            _check_hub_digest(source, responses, data)
        return data
    except BodyTooLarge:
        raise UserError(
            "is larger than a set may be", where=source.key, found=f"over {MAX_BYTES} bytes", hint=OTHER_WAY[3:]
        ) from None
    except (httpx2.InvalidURL, httpx2.UnsupportedProtocol, httpx2.TooManyRedirects) as fault:
        raise UserError(
            "cannot be fetched", where=source.key, found=f"{fault} ({source.url})", hint=OTHER_WAY[3:]
        ) from None
    except httpx2.RequestError as fault:
        raise _TransientError(f"{type(fault).__name__} {fault}".strip()) from None


def _read_body(source: RemoteFile, response: httpx2.Response) -> bytes:
    """The body, unpacked. Raises TooLarge, and UserError for one that takes longer than any set."""
    began, parts = time.monotonic(), []
    try:
        unpack = BodyDecoder(response.headers.get("content-encoding"), MAX_BYTES)
        for chunk in response.iter_raw():
            parts.append(unpack(chunk))
            if time.monotonic() - began > MAX_SECONDS:
                raise UserError(
                    "arrives too slowly",
                    where=source.key,
                    found=f"{MAX_SECONDS:.0f} s, {source.url}",
                    hint=OTHER_WAY[3:],
                )
    except ValueError as fault:
        raise UserError(
            "cannot be read", where=source.key, found=f"{fault} from {source.url}", hint=OTHER_WAY[3:]
        ) from None
    return b"".join(parts)


def _check_status(source: RemoteFile, status: int) -> None:
    if status == 200:
        return
    if status in (408, 425, 429) or status >= 500:
        raise _TransientError(f"HTTP {status}")
    hint = f"look at the address, {OTHER_WAY}"
    if status in (401, 403):
        hint = "it is private, gated or not there: get the file by another tool and name it with `file`"
    raise UserError("cannot be fetched", where=source.key, found=f"HTTP {status} from {source.url}", hint=hint)


def _check_hub_digest(source: RemoteFile, responses: list[httpx2.Response], data: bytes) -> None:
    """Hold a file against what the hub says of it: its commit, and its SHA-256 or its digest as a Git blob."""
    told = next((response.headers for response in responses if "x-repo-commit" in response.headers), None)
    if told is None:
        return
    tag = (told.get("x-linked-etag") or told.get("etag") or "").removeprefix("W/").strip('"')
    blob = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
    digests = {40: blob, 64: hashlib.sha256(data).hexdigest()}
    if told["x-repo-commit"] != source.commit:
        found = f"commit {told['x-repo-commit']} from {source.url}"
        raise UserError(
            "is of another commit", where=source.key, found=found, hint="set `revision` to a commit in full"
        )
    if tag != digests.get(len(tag), tag):
        found = f"{digests[len(tag)]}, not {tag}; {len(data)} bytes from {source.url}"
        raise UserError("arrived changed or cut off", where=source.key, found=found, hint="run the same command again")
