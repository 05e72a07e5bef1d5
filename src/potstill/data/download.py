"""Download the files of custom sets from a URL or the Hugging Face hub, once, into a cache folder.

    >>> commit = "0123456789abcdef0123456789abcdef01234567"
    >>> remote_file_from_hub("sets.mine", "owner/name", "data/a b.jsonl", commit).url.removeprefix(hub_endpoint())
    '/datasets/owner/name/resolve/0123456789abcdef0123456789abcdef01234567/data/a%20b.jsonl'

The folder is POTSTILL_CACHE, else `potstill` in the platform's cache folder. A file of a URL is verified by the SHA-256
in the recipe. A file of the hub is verified by the digest that the hub states, if any, and later by the SHA-256 of the
first copy. A copy is hashed at every use and downloaded again if it has changed. Nothing is written before it is
verified.
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
MAX_BYTES: Final = 1 << 30  # a set is held in memory while it is read
MAX_SECONDS: Final = 3600.0  # for one body
MAX_REDIRECTS: Final = 10
OTHER_WAY: Final = "get the file with another tool and name it with `file`"


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file to download.

    key         of the recipe, for messages
    cache_path  below the cache folder
    sha256      expected digest; None: that of the first copy
    commit      of the hub's repository; None for a file that is not on the hub
    """

    key: str
    url: str
    cache_path: str
    sha256: str | None
    commit: str | None = None


class _TransientError(Exception):
    """A fault after which a retry may succeed."""


def remote_file_from_url(key: str, url: str, sha256: str) -> RemoteFile:
    name = re.sub(r"[^A-Za-z0-9._-]", "_", urllib.parse.urlsplit(url).path.rpartition("/")[2]).lstrip(".")
    return RemoteFile(key, url, f"url/{sha256}/{name[-100:] or 'set.jsonl'}", sha256)


def remote_file_from_hub(key: str, name: str, file: str, revision: str, sha256: str | None = None) -> RemoteFile:
    """name: `owner/name`; file: its path in the repository; revision: a whole commit."""
    url = f"{hub_endpoint()}/datasets/{name}/resolve/{revision}/{urllib.parse.quote(file)}"
    return RemoteFile(key, url, f"hub/{name}/{revision}/{file}", sha256, revision)


def hub_endpoint() -> str:
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def cache_folder() -> Path:
    """The folder of downloaded files."""
    folder = os.environ.get("POTSTILL_CACHE")
    if folder:
        return Path(folder)
    default = Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache")
    return Path(os.environ.get("XDG_CACHE_HOME") or default) / "potstill"


def fetch_file(remote: RemoteFile) -> Path:
    """The verified copy of a file, downloaded if there is none.

    Raises UserError if the download fails or the file has another digest; then no file is left behind.
    """
    path = cache_folder() / remote.cache_path
    record = path.with_name(f".{path.name}.sha256")
    first = storage.read_bytes(record).decode(errors="replace").strip() if record.is_file() else None
    expected = remote.sha256 or first
    if expected and path.is_file() and storage.file_digest(path) == expected:
        return path
    if remote.commit and os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        what = "the file is not in the cache, and HF_HUB_OFFLINE forbids to download it"
        found, hint = f"no verified copy at {path}", f"run once without HF_HUB_OFFLINE, or {OTHER_WAY}"
        raise UserError(what, code="E-data-offline", where=remote.key, found=found, hint=hint)
    content = _download(remote)
    digest = hashlib.sha256(content).hexdigest()
    if expected and digest != expected:
        what = f"the file does not match {remote.key}.sha256" if remote.sha256 else "the file has changed on the hub"
        found = f"SHA-256 {digest}, {len(content)} bytes from {remote.url}"
        update = "pin its digest" if remote.sha256 else f"remove {record}"
        hint = f"run again if the download was cut off; to use the new file, {update}"
        raise UserError(what, code="E-data-download-digest", where=remote.key, found=found, hint=hint)
    with storage.hold_lock(cache_folder(), ".lock", 600, "another process is storing downloaded files"):
        storage.write_file(path, content)
        if remote.commit:
            storage.write_file(record, f"{digest}\n".encode())
    return path


def _download(remote: RemoteFile) -> bytes:
    reason = ""
    for wait in (*RETRY_WAITS, 0.0):
        try:
            return _receive(remote)
        except _TransientError as fault:
            reason = str(fault)
        time.sleep(wait)
    raise _failed(remote, f"{reason} from {remote.url}", f"check the network, or {OTHER_WAY}")


def _failed(remote: RemoteFile, found: str, hint: str = OTHER_WAY) -> UserError:
    return UserError("the download failed", code="E-data-download", where=remote.key, found=found, hint=hint)


def _receive(remote: RemoteFile) -> bytes:
    """The whole content. Raises _TransientError for a fault after which a retry may succeed, UserError for others."""
    headers = {"User-Agent": "potstill", "Accept-Encoding": "identity"}
    try:
        with httpx2.Client(follow_redirects=False, timeout=TIMEOUT, headers=headers) as client:
            request, responses = client.build_request("GET", remote.url), list[httpx2.Response]()
            while True:  # redirects are followed here because the library reads the whole body of each
                response = client.send(request, stream=True)
                responses.append(response)
                try:
                    if response.next_request is None:
                        _check_status(remote, response.status_code)
                        content = _read_body(remote, response)
                        break
                finally:
                    response.close()
                if len(responses) > MAX_REDIRECTS:
                    raise _failed(remote, f"more than {MAX_REDIRECTS} redirects from {remote.url}")
                request = response.next_request
        if remote.commit:
            _check_hub_digest(remote, responses, content)
        return content
    except BodyTooLarge:
        what, found = "the file is too large for a set", f"more than {MAX_BYTES} bytes"
        raise UserError(what, code="E-data-download-size", where=remote.key, found=found, hint=OTHER_WAY) from None
    except (httpx2.InvalidURL, httpx2.UnsupportedProtocol, httpx2.TooManyRedirects) as fault:
        raise _failed(remote, f"{fault} ({remote.url})") from None
    except httpx2.RequestError as fault:
        raise _TransientError(f"{type(fault).__name__} {fault}".strip()) from None


def _read_body(remote: RemoteFile, response: httpx2.Response) -> bytes:
    """The decompressed body. Raises BodyTooLarge, and UserError for a body that is broken or takes too long."""
    start, parts = time.monotonic(), []
    try:
        unpack = BodyDecoder(response.headers.get("content-encoding"), MAX_BYTES)
        for chunk in response.iter_raw():
            parts.append(unpack(chunk))
            if time.monotonic() - start > MAX_SECONDS:
                raise _failed(remote, f"more than {MAX_SECONDS:.0f} s, {remote.url}")
    except ValueError as fault:
        raise _failed(remote, f"{fault} from {remote.url}") from None
    return b"".join(parts)


def _check_status(remote: RemoteFile, status: int) -> None:
    if status == 200:
        return
    if status in (408, 425, 429) or status >= 500:
        raise _TransientError(f"HTTP {status}")
    hint = f"check the address, or {OTHER_WAY}"
    if status in (401, 403):
        hint = f"the file is private, gated or missing: {OTHER_WAY}"
    raise _failed(remote, f"HTTP {status} from {remote.url}", hint)


def _check_hub_digest(remote: RemoteFile, responses: list[httpx2.Response], content: bytes) -> None:
    """Compare a file with what the hub states: its commit, and its SHA-256 or its digest as a Git blob."""
    headers = next((response.headers for response in responses if "x-repo-commit" in response.headers), None)
    if headers is None:
        return
    tag = (headers.get("x-linked-etag") or headers.get("etag") or "").removeprefix("W/").strip('"')
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
    digests = {40: blob, 64: hashlib.sha256(content).hexdigest()}
    if headers["x-repo-commit"] != remote.commit:
        what, hint = "the hub sent a file of another commit", "set `revision` to a whole commit"
        found = f"commit {headers['x-repo-commit']} from {remote.url}"
        raise UserError(what, code="E-data-download-commit", where=remote.key, found=found, hint=hint)
    if tag != digests.get(len(tag), tag):
        what, hint = "the file was changed or cut off in transit", "run the same command again"
        found = f"{digests[len(tag)]}, not {tag}; {len(content)} bytes from {remote.url}"
        raise UserError(what, code="E-data-download-digest", where=remote.key, found=found, hint=hint)
