"""Bounded reading: what arrives over a network, unpacked as it comes and never beyond a limit.

    >>> import gzip
    >>> unpack = BodyDecoder("gzip", most=10)
    >>> unpack(gzip.compress(b"2 + 2 = 4"))
    b'2 + 2 = 4'
    >>> BodyDecoder("gzip", most=1000)(gzip.compress(bytes(10_000_000)))
    Traceback (most recent call last):
    potstill.http_body.BodyTooLarge: more than 1000 bytes

An HTTP library unpacks a chunk whole, and a chunk of 64 KiB may hold 64 MiB, or as many times more as it was packed:
so these two forms are unpacked here, and any other is refused.
"""

from __future__ import annotations

import zlib


class BodyTooLarge(Exception):
    """More arrived than may."""


class BodyDecoder:
    """Turns chunks of a body as they arrive into its content, of at most `most` bytes.

    encoding  the header Content-Encoding. Raises ValueError for one that is not asked for, or wrong.
    """

    def __init__(self, encoding: str | None, most: int) -> None:
        self.most, self.size = most, 0
        name = (encoding or "identity").strip().lower()
        if name not in ("identity", "gzip", "x-gzip", "deflate"):
            raise ValueError(f"a body that is packed as {name[:40]!r}")
        self._packed, self._stream = name != "identity", zlib.decompressobj(47)

    def __call__(self, chunk: bytes) -> bytes:
        """The content of the next chunk. Raises TooLarge, and ValueError where it cannot be unpacked."""
        if not self._packed:
            return self._counted(chunk)
        parts = []
        while chunk:
            try:
                parts.append(self._counted(self._stream.decompress(chunk, self.most - self.size + 1)))
            except zlib.error as fault:
                raise ValueError(f"a body that cannot be unpacked ({fault})") from None
            chunk = self._stream.unused_data
            if self._stream.eof:  # packed files may stand one behind the other
                self._stream = zlib.decompressobj(47)
        return b"".join(parts)

    def _counted(self, data: bytes) -> bytes:
        self.size += len(data)
        if self.size > self.most:
            raise BodyTooLarge(f"more than {self.most} bytes")
        return data
