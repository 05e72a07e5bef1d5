"""Demonstrations from a prompt file: solved examples, one block each, set off by blank lines.

    >>> block = "Q: 1 + 1?\\nLet's think step by step\\nOne and one.\\nThe answer is 2\\n"
    >>> parse(block, where="two.txt")
    (Demonstration(question='1 + 1?', answer='2', rationale='One and one.'),)

The answer is kept as the file writes it, so that `prompts.build` gives the file's own bytes again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from potstill.errors import UserError
from potstill.prompts import Demonstration
from potstill.questions import reading

_ASKS: Final = ("Question: ", "Q: ")
_THINK: Final = "\nLet's think step by step\n"
_ANSWER: Final = "The answer is "


def demonstrations(file: Path) -> tuple[Demonstration, ...]:
    """The solved examples of a prompt file. Raises UserError where a block is not one."""
    return parse(reading.text(file), where=file)


def parse(text: str, *, where: object) -> tuple[Demonstration, ...]:
    """The blocks `Question: ...` or `Q: ...`, with or without a rationale, each closed by `The answer is ...`."""
    blocks = [block for block in text.strip("\n").split("\n\n") if block.strip()]
    if not blocks:
        raise UserError("no demonstrations", where=where)
    return tuple(_demonstration(block, f"{where} block {number}") for number, block in enumerate(blocks, start=1))


def _demonstration(block: str, where: str) -> Demonstration:
    opening = next((ask for ask in _ASKS if block.startswith(ask)), None)
    body, sentence, answer = block.rpartition(_ANSWER)
    if opening is None or not sentence or not answer.strip():
        do = "a block begins with `Q: ` or `Question: ` and ends with `The answer is ...`"
        raise UserError("not a demonstration", where=where, found=block[:60], do=do)
    question, _, rationale = body.removeprefix(opening).partition(_THINK)
    return Demonstration(question.strip(), answer.strip(), rationale.strip())
