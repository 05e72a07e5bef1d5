"""Redaction: the API key in nothing that is shown or stored, in whichever form a server repeats it.

>>> redact = Redactor("sk-4711/abcd+efg")
>>> redact("wrong key: sk-4711/abcd+efg"), redact("?key=sk-4711%2Fabcd%2Befg&n=1"), redact('{"k": "sk-4711\\\\/abcd')
('wrong key: ***', '?key=***&n=1', '{"k": "***')
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import Final

SHORTEST: Final = 4  # characters; a shorter key is a placeholder, and no message could be read without its letters
PART: Final = 8  # characters from the key's beginning that are hidden where the rest of it was cut off


class Redactor:
    """Replaces a key by ***: as it is, escaped as in JSON, URLs and HTML, in hexadecimal digits and in base64 (alone or
    behind a scheme or a name); also its beginning, where a server cut it off."""

    def __init__(self, key: str) -> None:
        self.key = key if len(key) >= SHORTEST else ""
        self._raw = self.key.encode()
        self._letters = [re.compile(_written(letter)) for letter in self.key]
        self._begins = re.compile("".join(_written(letter) for letter in self.key[:PART])) if self.key else None
        self._others = [re.compile(form, re.IGNORECASE) for form in _forms(self.key)] if self.key else []

    def __call__(self, text: str) -> str:
        if not self.key or not text:
            return text
        for other in self._others:
            text = other.sub("***", text)
        parts, at = [], 0
        while self._begins is not None and (found := self._begins.search(text, at)):
            end = found.end()
            for letter in self._letters[PART:]:
                if (more := letter.match(text, end)) is None:
                    break
                end = more.end()
            parts += [text[at : found.start()], "***"]
            at = end
        return "".join([*parts, text[at:]])

    def count(self, data: bytes) -> int:
        """How often the key stands in bytes as it is: one look, for every answer."""
        return data.count(self._raw) if self._raw else 0


def _written(letter: str) -> str:
    """A pattern for the ways in which a letter is written."""
    code = ord(letter)
    low = f"{code:02x}"
    digits = "".join(f"[{digit}{digit.upper()}]" if digit.isalpha() else digit for digit in low)
    return (
        rf"(?:&#0{{0,4}}{code};|&#[xX]0{{0,4}}{digits};{_named(letter)}|%(?:25){{0,3}}{digits}"
        rf"|\\{{1,4}}(?:u00|x){digits}|\\{{0,4}}{re.escape(letter)})"
    )


def _named(letter: str) -> str:
    name = {"&": "amp", "<": "lt", ">": "gt", '"': "quot", "'": "apos"}.get(letter)
    return f"|&{name};" if name else ""


def _forms(key: str) -> list[str]:
    raw = key.encode()
    found = [binascii.hexlify(raw).decode()]
    for before in range(3):  # what stands before it moves the key against the groups of three bytes
        packed = base64.b64encode(b"\0" * before + raw)
        core = packed[(0, 2, 3)[before] :].rstrip(b"=").decode()
        core = core[: len(core) - (1 if (before + len(raw)) % 3 else 0)]
        letters = "".join("[+-]" if letter == "+" else "[/_]" if letter == "/" else letter for letter in core)
        found.append(rf"(?-i:{letters})[A-Za-z0-9+/=_-]*")
    return [form for form in found if len(form) > 4]
