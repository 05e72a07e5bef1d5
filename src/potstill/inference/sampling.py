"""Which token is taken at each step, what was seen there, and when a row has its answer.

    >>> logits = torch.log(torch.tensor([[0.5, 0.25, 0.25], [0.5, 0.25, 0.25]]))
    >>> sample_inverse_cdf(logits, 1.0, [0.49, 0.51]).tolist()      # cumulative sums 0.5, 0.75, 1
    [0, 1]

A row that has ended may go on being drawn for some steps; whoever reads cuts behind its end.

Results that are calculated while a model writes: which rows ask for one, and the tokens that write it.

A result is written in the tokens that its text has behind the expression, and the token after it may not make its
number longer. Where the vocabulary cannot write a result exactly, the model goes on by itself; and where it would
rather open a mark (`48/2 = <<48/2=`), as some are taught, it is left to do that, and the mark is completed. A number
that has begun is written to its end.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType
from typing import Final

import torch

from potstill import calculator, prompts
from potstill.inference import SampleKey, StopUnit, draw_uniform
from potstill.tokenization import Tokenizer

NO_FORCED_TOKENS: Final[Mapping[int, int]] = MappingProxyType({})


class TokenSampler:
    """Takes one token a row from the raw logits and remembers what it saw: the ids, and, if asked for, the `count`
    likeliest ids and the drawn one with their log-probabilities."""

    def __init__(
        self, keys: Sequence[SampleKey], temperature: float, seed: int, count: int, likelihood: bool = False
    ) -> None:
        self.keys, self.temperature, self.seed, self.count = keys, temperature, seed, count
        self.likelihood = likelihood
        self.drawn: list[list[int]] = [[] for _ in keys]  # of each row
        self.broken: torch.Tensor | None = None
        self._rows: list[Sequence[int]] = []  # of each step
        self._top: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._own: list[torch.Tensor] = []  # log-probabilities of what was drawn, of each step

    def take(
        self, logits: torch.Tensor, rows: Sequence[int], given: Mapping[int, int] = NO_FORCED_TOKENS
    ) -> torch.Tensor:
        """logits [n, v] raw, of the texts `rows` -> ids [n].

        given  place among the rows -> the token that is written there without being drawn
        """
        broken = logits.isnan().any()
        self.broken = broken if self.broken is None else self.broken | broken
        if self.temperature == 0:
            ids = logits.argmax(-1)
        else:
            points = [draw_uniform(self.seed, self.keys[row], len(self._rows)) for row in rows]
            ids = sample_inverse_cdf(logits, self.temperature, points)
        for place, token in given.items():
            ids[place] = token
        if self.likelihood:
            own = logits.float().log_softmax(-1).gather(-1, ids[:, None])[:, 0]
            for place in given:
                own[place] = 0.0
            self._own.append(own)
        if self.count:
            logs = logits.float().log_softmax(-1)
            values, top = logs.topk(min(self.count, logs.shape[-1]), dim=-1)
            own = logs.gather(-1, ids[:, None])
            self._top.append((torch.cat([top, ids[:, None]], -1), torch.cat([values, own], -1)))
        self._rows.append(rows)
        for row, token in zip(rows, ids.tolist(), strict=True):
            self.drawn[row].append(token)
        return ids

    def likelihoods(self, lengths: Sequence[int]) -> list[float | None]:
        """Of each row, the sum over its first so many tokens; None if nobody asked."""
        if not self.likelihood:
            return [None] * len(self.keys)
        found: list[list[float]] = [[] for _ in self.keys]
        order = [row for rows in self._rows for row in rows]
        for row, value in zip(order, torch.cat(self._own).tolist(), strict=True):
            found[row].append(value)
        return [round(math.fsum(own[:length]), 6) + 0.0 for own, length in zip(found, lengths, strict=True)]

    def seen(self) -> list[list[tuple[list[int], list[float]]]]:
        """Of each row, at each step: ids and log-probabilities of the likeliest, and those of the drawn token last."""
        seen: list[list[tuple[list[int], list[float]]]] = [[] for _ in self.keys]
        if self._top:
            # One copy from the device when all is written, none between the steps.
            ids = torch.cat([step[0] for step in self._top]).tolist()
            values = torch.cat([step[1] for step in self._top]).tolist()
            order = [row for rows in self._rows for row in rows]
            for row, own, logs in zip(order, ids, values, strict=True):
                seen[row].append((own, logs))
        return seen


class AnswerDetector:
    """Tells of each row when its text has a whole line, or sentence, that holds "answer is"; `at` [rows] is the number
    of tokens of the text up to its end, None for a row that has none. A line's newline belongs to it; the token that
    shows that a sentence has ended does not."""

    def __init__(self, rows: int, piece: Callable[[int, int], bytes], unit: StopUnit) -> None:
        self.piece = piece
        self.unit: StopUnit = unit
        self.texts = [bytearray() for _ in range(rows)]
        self.starts: list[list[int]] = [[] for _ in range(rows)]  # of each token
        self.at: list[int | None] = [None] * rows

    def add(self, row: int, token: int, position: int) -> bool:
        """The token at `position` of a row; whether the row now has its answer."""
        piece = self.piece(token, position)
        self.starts[row].append(len(self.texts[row]))
        self.texts[row] += piece
        if self.at[row] is None and (b"\n" in piece or (self.unit == "sentence" and (b" " in piece or b":" in piece))):
            end = _find_answer_end(self.texts[row], self.unit)
            if end is not None:
                self.at[row] = bisect_left(self.starts[row], end + (self.unit == "line"))
        return self.at[row] is not None


def _find_answer_end(text: bytes | bytearray, unit: StopUnit) -> int | None:
    """Bytes up to the end of the answer, None if it has not ended."""
    # Read as Latin-1 a character is a byte, and what is asked for is ASCII, which no other character holds in UTF-8.
    readable = text.decode("latin-1")
    if unit == "sentence":
        return prompts.find_answer_sentence_end(readable)
    end = prompts.find_answer_end(readable)
    return end if end is not None and end < len(readable) else None


def sample_inverse_cdf(logits: torch.Tensor, temperature: float, uniforms: Sequence[float]) -> torch.Tensor:
    """Inverse of the cumulative distribution. logits [rows, v] raw; uniforms [rows] in [0, 1) -> ids [rows].

    In float64: with fp32 sums over a vocabulary of 150 thousand the tail would be drawn wrongly often enough to see.
    """
    sums = (logits.double() / temperature).softmax(-1).cumsum(-1)
    points = torch.tensor(uniforms, dtype=torch.float64, device=logits.device)[:, None] * sums[:, -1:]
    return torch.searchsorted(sums, points, right=True)[:, 0].clamp_(max=logits.shape[-1] - 1)


NUMBER_CONTINUATION: Final = re.compile(rb"[.,]?\d")  # what a token that makes a number longer begins with
MARK_PREFIX: Final = b" $"  # what stands before a mark: `= $<<6*4=24>>24`
CONTEXT_CHARS: Final = 80  # characters of the text that the tokenizer is shown before a result


class CalculatorDecoding:
    """The texts of a batch, and the tokens that each still has to take."""

    def __init__(self, rows: int, tokenizer: Tokenizer, piece: Callable[[int, int], bytes]) -> None:
        self.tokenizer, self.piece = tokenizer, piece
        self.texts = [bytearray() for _ in range(rows)]
        self.waiting: list[list[int]] = [[] for _ in range(rows)]
        self.closed: set[int] = set()  # rows whose next token must not go on with a number
        self.bare: set[int] = set()  # rows that wait behind an expression outside of marks, before its number
        self.marks, self.longer = _classify_tokens(tokenizer)

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
            if piece.strip(MARK_PREFIX):
                self.bare.discard(row)
            if not self.waiting[row] and self.texts[row][-1:].isdigit():
                self.closed.add(row)
        elif piece.endswith(b"="):
            text = self.texts[row].decode("utf-8", "replace")
            result = calculator.complete_after_equals(text)
            if result is not None:
                self.waiting[row] = self._tokens(text[-CONTEXT_CHARS:], result)
                (self.bare.discard if result.endswith(">>") else self.bare.add)(row)

    def _tokens(self, before: str, result: str) -> list[int]:
        """The tokens that write `result` behind a text; none where they would write anything else."""
        shown = self.tokenizer.encode(before).ids
        whole = self.tokenizer.encode(before + result).ids
        tokens = whole[len(shown) :] if whole[: len(shown)] == shown else self.tokenizer.encode(result).ids
        written = b"".join(self.tokenizer.bytes(token) for token in tokens)
        return tokens if written == result.encode() else []


@lru_cache(maxsize=2)
def _classify_tokens(tokenizer: Tokenizer) -> tuple[frozenset[int], torch.Tensor]:
    """The tokens that open a mark, and those that make a number longer."""
    pieces = [tokenizer.bytes(token) for token in range(tokenizer.size)]
    marks = frozenset(token for token, piece in enumerate(pieces) if piece.lstrip().startswith(b"<"))
    longer = [token for token, piece in enumerate(pieces) if NUMBER_CONTINUATION.match(piece)]
    return marks, torch.tensor(longer, dtype=torch.long)
