"""Errors. A `UserError` is a fault that the user can correct; any other exception is a fault of potstill.

    >>> print(UserError("the gold answer is missing", code="E-data-missing-gold", where="mine.jsonl line 3"))
    mine.jsonl line 3: the gold answer is missing
      code: E-data-missing-gold

The command line prints a `UserError` as one message and exits with code 2. For any other exception it prints the
traceback and exits with code 1.
"""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterable


class UserError(Exception):
    """A fault that only the user can correct, such as a wrong value in a file or a recipe, or a full disk.

    what   the fault, in one line
    code   a stable name of the fault, such as `E-recipe-unknown-key`; the documentation lists all codes
    where  the file, the key of the recipe or the record
    found  the faulty value, if it helps to see it
    hint   how to correct the fault
    """

    def __init__(self, what: str, *, code: str = "", where: object = "", found: object = "", hint: str = "") -> None:
        self.what, self.code, self.where, self.found, self.hint = what, code, str(where), str(found), hint
        super().__init__(what, code, self.where, self.found, hint)

    def at(self, where: object) -> UserError:
        """The same error with another `where`."""
        return UserError(self.what, code=self.code, where=where, found=self.found, hint=self.hint)

    def __str__(self) -> str:
        lines = [f"{self.where}: {self.what}" if self.where else self.what]
        lines += [f"  found: {self.found}"] if self.found else []
        lines += [f"  hint: {self.hint}"] if self.hint else []
        lines += [f"  code: {self.code}"] if self.code else []
        return escape_hidden("\n".join(lines))  # `found` may be a model's text with terminal escapes


def suggest(name: str, known: Iterable[str]) -> str:
    """The beginning of a hint: the known name that is most like `name`; empty if none is.

    >>> suggest("gms8k", ["gsm8k", "svamp"])
    "did you mean 'gsm8k'? "
    """
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}? " if near else ""


def escape_hidden(text: str) -> str:
    """The text with invisible and reordering characters written as code points. These are control characters, direction
    characters, halves of surrogate pairs and non-characters. Line ends, tabs and joiners do not change.

    >>> escape_hidden("a\\x00b\\u202ec")
    'a⟨U+0000⟩b⟨U+202E⟩c'
    """
    if text.isascii() and text.isprintable():
        return text
    text = text.replace("\r\n", "\n")
    return "".join(f"⟨U+{ord(character):04X}⟩" if _is_hidden(character) else character for character in text)


def _is_hidden(character: str) -> bool:
    if character in "\n\t\u200c\u200d":
        return False
    code = ord(character)
    no_character = code & 0xFFFE == 0xFFFE or 0xFDD0 <= code <= 0xFDEF
    return no_character or unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp")
