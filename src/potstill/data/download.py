"""Verified downloads: files of custom sets into potstill's cache, and public files into the data folder.

    >>> cache_path("https://example.org/sets/mine.jsonl?raw=1", "0" * 64)
    'url/0000000000000000000000000000000000000000000000000000000000000000/mine.jsonl'

The copy of a custom set is hashed at every use, and downloaded again if it has changed. A file appears at its path only
after it is verified. An interrupted download of a public file is continued. Files of the Hugging Face hub are downloaded by
`potstill.hub`.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import time
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

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


class _TransientError(Exception):
    """An error after which a retry may succeed."""


def cache_path(url: str, sha256: str) -> str:
    """The path of a URL's copy, relative to the cache folder."""
    name = re.sub(r"[^A-Za-z0-9._-]", "_", urllib.parse.urlsplit(url).path.rpartition("/")[2]).lstrip(".")
    return f"url/{sha256}/{name[-100:] or 'set.jsonl'}"


def fetch_url(key: str, url: str, sha256: str) -> Path:
    """The path of the verified copy of a file, which is downloaded if it is missing.

    key     recipe key, for messages
    sha256  required digest, 64 hexadecimal digits

    Raises UserError if the file cannot be downloaded or has another digest. Nothing is stored then.
    """
    path = storage.cache_folder() / cache_path(url, sha256)
    if path.is_file() and storage.file_digest(path) == sha256:
        return path
    content = _download(key, url)
    check_digest(key, hashlib.sha256(content).hexdigest(), sha256, f"{len(content)} bytes from {url}")
    with storage.hold_lock(storage.cache_folder(), ".lock", 600, "another process is storing downloaded files"):
        storage.write_file(path, content)
    return path


def check_digest(key: str, digest: str, expected: str, source: str) -> None:
    """Raises UserError unless a downloaded file has the digest of the recipe. source: for the message"""
    if digest != expected:
        what, hint = (
            f"the file does not match {key}.sha256",
            "run again if the download was cut off; to use the new file, ",
        )
        found = f"SHA-256 {digest}, {source}"
        raise UserError(what, code="E-data-download-digest", where=key, found=found, hint=f"{hint}pin its digest")


def _download(key: str, url: str) -> bytes:
    reason = ""
    for wait in (*RETRY_WAITS, 0.0):
        try:
            return _receive(key, url)
        except _TransientError as fault:
            reason = str(fault)
        time.sleep(wait)
    raise _failed(key, f"{reason} from {url}", f"check the network, or {OTHER_WAY}")


def _failed(key: str, found: str, hint: str = OTHER_WAY) -> UserError:
    return UserError("the download failed", code="E-data-download", where=key, found=found, hint=hint)


def download_file(key: str, url: str, path: Path, *, size: int, sha256: str) -> None:
    """Download a file to `path`. An interrupted download is continued (HTTP ranges).

    key     for messages
    size    required size in bytes
    sha256  required digest, 64 hexadecimal digits

    Raises UserError if the file cannot be downloaded, or has another size or digest. Then `path` does not exist.
    """
    reason = ""
    for wait in (*RETRY_WAITS, 0.0):
        try:
            with storage.resume_stream(path) as file:
                continued = _receive_rest(key, url, file, size)
                _check_content(key, url, file, sha256, continued)
            return
        except _TransientError as fault:
            reason = str(fault)
        time.sleep(wait)
    raise _failed(key, f"{reason} from {url}", "check the network, and run again: a download is continued")


def _receive_rest(key: str, url: str, file: BinaryIO, size: int) -> bool:
    """Append the missing bytes, up to `size` in total, to a file. Returns whether earlier bytes were kept."""
    start = file.seek(0, os.SEEK_END)
    if start > size:
        start = _empty(file)
    if start == size:
        return True
    begin = time.monotonic()
    with _open_response(key, url, {"Range": f"bytes={start}-"} if start else {}) as response:
        status, unit = response.status_code, response.headers.get("content-range", "")
        if start and (status == 416 or (status == 206 and not unit.startswith(f"bytes {start}-"))):
            _empty(file)
            raise _TransientError(f"HTTP {status} with another range than requested")
        if not start or status != 206:
            _check_status(key, url, status)
            start = _empty(file)  # a server without ranges sends the whole file
        if (encoding := response.headers.get("content-encoding", "identity")) != "identity":
            raise _failed(key, f"content encoding {encoding}, which was not requested, from {url}")
        for chunk in response.iter_raw():
            file.write(chunk)
            if file.tell() > size:
                _empty(file)
                raise _wrong_file(key, f"more than {size} bytes from {url}")
            if time.monotonic() - begin > MAX_SECONDS:
                raise _failed(key, f"more than {MAX_SECONDS:.0f} s, {url}")
    if (received := file.tell()) < size:
        raise _TransientError(f"{received} of {size} bytes")
    return start > 0


def _check_content(key: str, url: str, file: BinaryIO, sha256: str, continued: bool) -> None:
    file.seek(0)
    sha = hashlib.sha256()
    while chunk := file.read(1 << 20):
        sha.update(chunk)
    if (digest := sha.hexdigest()) == sha256:
        return
    _empty(file)
    if continued:  # the bytes of an earlier try may be damaged, or belong to another file
        raise _TransientError(f"the wrong SHA-256 {digest} after a continued download")
    raise _wrong_file(key, f"SHA-256 {digest} from {url}")


def _empty(file: BinaryIO) -> int:
    file.seek(0)
    return file.truncate()


def _wrong_file(key: str, found: str) -> UserError:
    hint = "a proxy or a filter may have changed the file: get it with another tool"
    return UserError(
        "the downloaded file is not the expected file", code="E-data-download-digest", where=key, found=found, hint=hint
    )


def _receive(key: str, url: str) -> bytes:
    """The whole content. Raises _TransientError for a fault after which a retry may succeed, UserError for others."""
    try:
        with _open_response(key, url, {}) as response:
            _check_status(key, url, response.status_code)
            return _read_body(key, url, response)
    except BodyTooLarge:
        what, found = "the file is too large for a set", f"more than {MAX_BYTES} bytes"
        raise UserError(what, code="E-data-download-size", where=key, found=found, hint=OTHER_WAY) from None


@contextlib.contextmanager
def _open_response(key: str, url: str, headers: dict[str, str]) -> Iterator[httpx2.Response]:
    """The response after redirects, with an unread body. Raises _TransientError or UserError, also inside the block."""
    headers = {"User-Agent": "potstill", "Accept-Encoding": "identity", **headers}
    try:
        with httpx2.Client(follow_redirects=False, timeout=TIMEOUT, headers=headers) as client:
            request = client.build_request("GET", url)
            for _ in range(MAX_REDIRECTS + 1):  # the library would read the whole body of each redirect
                response = client.send(request, stream=True)
                try:
                    if response.next_request is None:
                        yield response
                        return
                finally:
                    response.close()
                request = response.next_request
        raise _failed(key, f"more than {MAX_REDIRECTS} redirects from {url}")
    except (httpx2.InvalidURL, httpx2.UnsupportedProtocol, httpx2.TooManyRedirects) as fault:
        raise _failed(key, f"{fault} ({url})") from None
    except httpx2.RequestError as fault:
        raise _TransientError(f"{type(fault).__name__} {fault}".strip()) from None


def _read_body(key: str, url: str, response: httpx2.Response) -> bytes:
    """The decompressed body. Raises BodyTooLarge, and UserError for a body that is broken or takes too long."""
    start, parts = time.monotonic(), []
    try:
        unpack = BodyDecoder(response.headers.get("content-encoding"), MAX_BYTES)
        for chunk in response.iter_raw():
            parts.append(unpack(chunk))
            if time.monotonic() - start > MAX_SECONDS:
                raise _failed(key, f"more than {MAX_SECONDS:.0f} s, {url}")
    except ValueError as fault:
        raise _failed(key, f"{fault} from {url}") from None
    return b"".join(parts)


def _check_status(key: str, url: str, status: int) -> None:
    if status == 200:
        return
    if status in (408, 425, 429) or status >= 500:
        raise _TransientError(f"HTTP {status}")
    hint = f"check the address, or {OTHER_WAY}"
    if status in (401, 403):
        hint = f"the file is private, gated or missing: {OTHER_WAY}"
    raise _failed(key, f"HTTP {status} from {url}", hint)
