"""Errors have an owner: `UserError` is the user's, everything else is ours.

    >>> print(UserError("gold answer is missing", where="mine.jsonl line 3", do="add the field `answer`"))
    mine.jsonl line 3: gold answer is missing
      do: add the field `answer`

The command line prints a `UserError` as one message and exits with 2; an assertion or any other
exception is a fault of potstill, keeps its traceback and exits with 1.
"""

from __future__ import annotations

import unicodedata


class UserError(Exception):
    """Something only the user can mend: a file, a key, a record, a full disk.

    what   what is wrong, in one line
    where  the file, the key of the recipe or the record
    found  what stands there, if a look at it helps
    do     what to do about it
    """

    def __init__(self, what: str, *, where: object = "", found: object = "", do: str = "") -> None:
        self.what, self.where, self.found, self.do = what, str(where), str(found), do
        super().__init__(what, self.where, self.found, do)

    def __str__(self) -> str:
        lines = [f"{self.where}: {self.what}" if self.where else self.what]
        lines += [f"  found: {self.found}"] if self.found else []
        lines += [f"  do: {self.do}"] if self.do else []
        return visible("\n".join(lines))  # what it found may be a model's text: no escape reaches a terminal


def visible(text: str) -> str:
    """The text with everything that would hide or reorder it spelt out: control and direction characters, halves of
    surrogate pairs, non-characters. Line ends, tabs and joiners stay.

    >>> visible("a\\x00b\\u202ec")
    'a⟨U+0000⟩b⟨U+202E⟩c'
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(f"⟨U+{ord(each):04X}⟩" if _hidden(each) else each for each in text.replace("\r\n", "\n"))


def _hidden(character: str) -> bool:
    if character in "\n\t\u200c\u200d":
        return False
    code = ord(character)
    no_character = code & 0xFFFE == 0xFFFE or 0xFDD0 <= code <= 0xFDEF
    return no_character or unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp")
