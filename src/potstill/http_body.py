"""Decoding of HTTP bodies as they arrive, up to a maximum size.

    >>> import gzip
    >>> decode = BodyDecoder("gzip", max_bytes=10)
    >>> decode(gzip.compress(b"2 + 2 = 4"))
    b'2 + 2 = 4'
    >>> BodyDecoder("gzip", max_bytes=1000)(gzip.compress(bytes(10_000_000)))
    Traceback (most recent call last):
    potstill.http_body.BodyTooLarge: more than 1000 bytes

HTTP libraries decompress whole chunks, and a chunk of 64 KiB may decompress to 64 MiB or, if it was compressed
repeatedly, to far more. Therefore, gzip and deflate are decompressed here, and other encodings are refused.
"""

from __future__ import annotations

import zlib


class BodyTooLarge(Exception):
    """The body has more bytes than allowed."""


class BodyDecoder:
    """Decodes the chunks of a body. The content may have at most `max_bytes` bytes.

    encoding  value of the header Content-Encoding. Raises ValueError for an encoding that potstill never requests.
    """

    def __init__(self, encoding: str | None, max_bytes: int) -> None:
        self.max_bytes, self.size = max_bytes, 0
        name = (encoding or "identity").strip().lower()
        if name not in ("identity", "gzip", "x-gzip", "deflate"):
            raise ValueError(f"the body has the unknown encoding {name[:40]!r}")
        self._compressed, self._stream = name != "identity", zlib.decompressobj(47)  # 47: gzip or zlib, by its header

    def __call__(self, chunk: bytes) -> bytes:
        """The content of the next chunk. Raises BodyTooLarge, or ValueError if the chunk cannot be decompressed."""
        if not self._compressed:
            return self._count(chunk)
        parts = []
        while chunk:
            try:
                parts.append(self._count(self._stream.decompress(chunk, self.max_bytes - self.size + 1)))
            except zlib.error as error:
                raise ValueError(f"the body cannot be decompressed ({error})") from None
            chunk = self._stream.unused_data
            if self._stream.eof:  # another compressed stream may follow
                self._stream = zlib.decompressobj(47)
        return b"".join(parts)

    def _count(self, data: bytes) -> bytes:
        self.size += len(data)
        if self.size > self.max_bytes:
            raise BodyTooLarge(f"more than {self.max_bytes} bytes")
        return data
