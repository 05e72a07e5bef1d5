"""Results that are calculated while a model writes: which rows ask for one, and the tokens that write it.

A result is written in the tokens that its text has behind the expression, and the token after it may not make its
number longer. Where the vocabulary cannot write a result exactly, the model goes on by itself; and where it would
rather open a mark (`48/2 = <<48/2=`), as some are taught, it is left to do that, and the mark is completed. A number
that has begun is written to its end.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Final

import torch

from potstill import calculator
from potstill.tokenizers import Tokenizer

LONGER: Final = re.compile(rb"[.,]?\d")  # what a token that makes a number longer begins with
BEFORE: Final = b" $"  # what stands before a mark: `= $<<6*4=24>>24`
SHOWN: Final = 80  # characters of the text that the tokenizer is shown before a result


class Calculating:
    """The texts of a batch, and the tokens that each still has to take."""

    def __init__(self, rows: int, tokenizer: Tokenizer, piece: Callable[[int, int], bytes]) -> None:
        self.tokenizer, self.piece = tokenizer, piece
        self.texts = [bytearray() for _ in range(rows)]
        self.waiting: list[list[int]] = [[] for _ in range(rows)]
        self.closed: set[int] = set()  # rows whose next token must not go on with a number
        self.bare: set[int] = set()  # rows that wait behind an expression outside of marks, before its number
        self.marks, self.longer = _kinds(tokenizer)

    def given(self, logits: torch.Tensor, live: list[int]) -> dict[int, int]:
        """Place among the live rows -> the token that it has to take now.

        logits  [rows, vocabulary] of the live rows
        """
        waits = [(place, row) for place, row in enumerate(live) if self.waiting[row]]
        for place, row in waits if self.marks else ():
            if row in self.bare and int(logits[place].argmax()) in self.marks:
                self.waiting[row] = []
        return {place: self.waiting[row][0] for place, row in waits if self.waiting[row]}

    def bar(self, logits: torch.Tensor, live: list[int]) -> torch.Tensor:
        """The logits without tokens that would make a calculated number longer."""
        places = [place for place, row in enumerate(live) if row in self.closed]
        if not places or not len(self.longer):
            return logits
        logits = logits.clone()
        rows = torch.tensor(places, device=logits.device)[:, None]
        logits[rows, self.longer.to(logits.device)] = -torch.inf
        return logits

    def add(self, row: int, token: int, position: int) -> None:
        """The token that a row took."""
        piece = self.piece(token, position)
        self.texts[row] += piece
        self.closed.discard(row)
        if self.waiting[row]:
            del self.waiting[row][0]
            if piece.strip(BEFORE):
                self.bare.discard(row)
            if not self.waiting[row] and self.texts[row][-1:].isdigit():
                self.closed.add(row)
        elif piece.endswith(b"="):
            text = self.texts[row].decode("utf-8", "replace")
            result = calculator.asked(text)
            if result is not None:
                self.waiting[row] = self._tokens(text[-SHOWN:], result)
                (self.bare.discard if result.endswith(">>") else self.bare.add)(row)

    def _tokens(self, before: str, result: str) -> list[int]:
        """The tokens that write `result` behind a text; none where they would write anything else."""
        shown = self.tokenizer.encode(before).ids
        whole = self.tokenizer.encode(before + result).ids
        tokens = whole[len(shown) :] if whole[: len(shown)] == shown else self.tokenizer.encode(result).ids
        written = b"".join(self.tokenizer.bytes(token) for token in tokens)
        return tokens if written == result.encode() else []


@lru_cache(maxsize=2)
def _kinds(tokenizer: Tokenizer) -> tuple[frozenset[int], torch.Tensor]:
    """The tokens that open a mark, and those that make a number longer."""
    pieces = [tokenizer.bytes(token) for token in range(tokenizer.size)]
    marks = frozenset(token for token, piece in enumerate(pieces) if piece.lstrip().startswith(b"<"))
    longer = [token for token, piece in enumerate(pieces) if LONGER.match(piece)]
    return marks, torch.tensor(longer, dtype=torch.long)
