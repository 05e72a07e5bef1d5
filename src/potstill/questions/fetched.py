"""Sets from a URL or from the Hugging Face hub, fetched once and kept in a folder.

    >>> commit = "0123456789abcdef0123456789abcdef01234567"
    >>> from_hub("sets.mine", "owner/name", "data/a b.jsonl", commit).url.removeprefix(endpoint())
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

from potstill import files
from potstill.bounded import TooLarge, Unpacker
from potstill.errors import UserError

WAITS: Final = (1.0, 4.0)  # seconds before the second and the third try
TIMEOUT: Final = httpx2.Timeout(60.0, connect=10.0)
LARGEST: Final = 1 << 30  # bytes; a set is held in memory while it is read
LONGEST: Final = 3600.0  # seconds that a body may take
REDIRECTS: Final = 10
ELSE: Final = "or get the file by any other tool and name it with `file`"


@dataclass(frozen=True, slots=True)
class Source:
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


class _Again(Exception):
    """A fault that may pass."""


def from_url(key: str, url: str, sha256: str) -> Source:
    name = re.sub(r"[^A-Za-z0-9._-]", "_", urllib.parse.urlsplit(url).path.rpartition("/")[2]).lstrip(".")
    return Source(key, url, f"url/{sha256}/{name[-100:] or 'set.jsonl'}", sha256)


def from_hub(key: str, name: str, file: str, revision: str, sha256: str | None = None) -> Source:
    """name: `owner/name`. file: its path in the repository. revision: a commit in full."""
    url = f"{endpoint()}/datasets/{name}/resolve/{revision}/{urllib.parse.quote(file)}"
    return Source(key, url, f"hub/{name}/{revision}/{file}", sha256, revision)


def endpoint() -> str:
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def cache() -> Path:
    """The folder of fetched sets."""
    named = os.environ.get("POTSTILL_CACHE")
    if named:
        return Path(named)
    usual = Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache")
    return Path(os.environ.get("XDG_CACHE_HOME") or usual) / "potstill"


def fetch(source: Source) -> Path:
    """The verified copy of a file, fetched if it is not there.

    Raises UserError where it cannot be had, or is not what it must be; then nothing is left behind.
    """
    path = cache() / source.place
    record = path.with_name(f".{path.name}.sha256")
    known = files.read_bytes(record).decode(errors="replace").strip() if record.is_file() else None
    wanted = source.sha256 or known
    if wanted and path.is_file() and files.digest(path) == wanted:
        return path
    if source.commit and os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise UserError(
            "is not here, and the hub may not be asked",
            where=source.key,
            found=f"HF_HUB_OFFLINE is set; no verified copy at {path}",
            do=f"run once without HF_HUB_OFFLINE, {ELSE}",
        )
    data = _download(source)
    digest = hashlib.sha256(data).hexdigest()
    if wanted and digest != wanted:
        which = f"is not the file that {source.key}.sha256 pins" if source.sha256 else "is not the file that it was"
        raise UserError(
            which,
            where=source.key,
            found=f"SHA-256 {digest}, {len(data)} bytes from {source.url}",
            do="run again if it may have been cut off; "
            + (
                "if the new file is wanted, pin its digest"
                if source.sha256
                else f"to take the new file remove {record}"
            ),
        )
    with files.held(cache(), ".lock", 600, "another process is storing fetched sets"):
        files.write(path, data)
        if source.commit:
            files.write(record, f"{digest}\n".encode())
    return path


def _download(source: Source) -> bytes:
    said = ""
    for wait in (*WAITS, 0.0):
        try:
            return _receive(source)
        except _Again as fault:
            said = str(fault)
        time.sleep(wait)
    raise UserError(
        "cannot be fetched", where=source.key, found=f"{said} from {source.url}", do=f"look at the network, {ELSE}"
    )


def _receive(source: Source) -> bytes:
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
                        data = _content(source, response)
                        break
                finally:
                    response.close()
                if len(responses) > REDIRECTS:
                    raise UserError(
                        "cannot be fetched: one redirect leads to another",
                        where=source.key,
                        found=source.url,
                        do=ELSE[3:],
                    )
                request = response.next_request
        if source.commit:
            _check_stated(source, responses, data)
        return data
    except TooLarge:
        raise UserError(
            "is larger than a set may be", where=source.key, found=f"over {LARGEST} bytes", do=ELSE[3:]
        ) from None
    except (httpx2.InvalidURL, httpx2.UnsupportedProtocol, httpx2.TooManyRedirects) as fault:
        raise UserError("cannot be fetched", where=source.key, found=f"{fault} ({source.url})", do=ELSE[3:]) from None
    except httpx2.RequestError as fault:
        raise _Again(f"{type(fault).__name__} {fault}".strip()) from None


def _content(source: Source, response: httpx2.Response) -> bytes:
    """The body, unpacked. Raises TooLarge, and UserError for one that takes longer than any set."""
    began, parts = time.monotonic(), []
    try:
        unpack = Unpacker(response.headers.get("content-encoding"), LARGEST)
        for chunk in response.iter_raw():
            parts.append(unpack(chunk))
            if time.monotonic() - began > LONGEST:
                raise UserError(
                    "arrives too slowly", where=source.key, found=f"{LONGEST:.0f} s, {source.url}", do=ELSE[3:]
                )
    except ValueError as fault:
        raise UserError("cannot be read", where=source.key, found=f"{fault} from {source.url}", do=ELSE[3:]) from None
    return b"".join(parts)


def _check_status(source: Source, status: int) -> None:
    if status == 200:
        return
    if status in (408, 425, 429) or status >= 500:
        raise _Again(f"HTTP {status}")
    do = f"look at the address, {ELSE}"
    if status in (401, 403):
        do = "it is private, gated or not there: get the file by another tool and name it with `file`"
    raise UserError("cannot be fetched", where=source.key, found=f"HTTP {status} from {source.url}", do=do)


def _check_stated(source: Source, responses: list[httpx2.Response], data: bytes) -> None:
    """Hold a file against what the hub says of it: its commit, and its SHA-256 or its digest as a Git blob."""
    told = next((response.headers for response in responses if "x-repo-commit" in response.headers), None)
    if told is None:
        return
    tag = (told.get("x-linked-etag") or told.get("etag") or "").removeprefix("W/").strip('"')
    blob = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
    digests = {40: blob, 64: hashlib.sha256(data).hexdigest()}
    if told["x-repo-commit"] != source.commit:
        found = f"commit {told['x-repo-commit']} from {source.url}"
        raise UserError("is of another commit", where=source.key, found=found, do="set `revision` to a commit in full")
    if tag != digests.get(len(tag), tag):
        found = f"{digests[len(tag)]}, not {tag}; {len(data)} bytes from {source.url}"
        raise UserError("arrived changed or cut off", where=source.key, found=found, do="run the same command again")
