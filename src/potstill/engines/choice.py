"""Which token is taken at each step, what was seen there, and when a row has its answer.

    >>> logits = torch.log(torch.tensor([[0.5, 0.25, 0.25], [0.5, 0.25, 0.25]]))
    >>> draw(logits, 1.0, [0.49, 0.51]).tolist()      # cumulative sums 0.5, 0.75, 1
    [0, 1]

A row that has ended may go on being drawn for some steps; whoever reads cuts behind its end.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Final

import torch

from potstill import prompts
from potstill.engines import Key, Unit, uniform

NOTHING: Final[Mapping[int, int]] = MappingProxyType({})


class Choice:
    """Takes one token a row from the raw logits and remembers what it saw: the ids, and, if asked for, the `count`
    likeliest ids and the drawn one with their log-probabilities."""

    def __init__(
        self, keys: Sequence[Key], temperature: float, seed: int, count: int, likelihood: bool = False
    ) -> None:
        self.keys, self.temperature, self.seed, self.count = keys, temperature, seed, count
        self.likelihood = likelihood
        self.drawn: list[list[int]] = [[] for _ in keys]  # of each row
        self.broken: torch.Tensor | None = None
        self._rows: list[Sequence[int]] = []  # of each step
        self._top: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._own: list[torch.Tensor] = []  # log-probabilities of what was drawn, of each step

    def take(self, logits: torch.Tensor, rows: Sequence[int], given: Mapping[int, int] = NOTHING) -> torch.Tensor:
        """logits [n, v] raw, of the texts `rows` -> ids [n].

        given  place among the rows -> the token that is written there without being drawn
        """
        broken = logits.isnan().any()
        self.broken = broken if self.broken is None else self.broken | broken
        if self.temperature == 0:
            ids = logits.argmax(-1)
        else:
            points = [uniform(self.seed, self.keys[row], len(self._rows)) for row in rows]
            ids = draw(logits, self.temperature, points)
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


class AnswerLine:
    """Tells of each row when its text has a whole line, or sentence, that holds "answer is"; `at` [rows] is the number
    of tokens of the text up to its end, None for a row that has none. A line's newline belongs to it; the token that
    shows that a sentence has ended does not."""

    def __init__(self, rows: int, piece: Callable[[int, int], bytes], unit: Unit) -> None:
        self.piece = piece
        self.unit: Unit = unit
        self.texts = [bytearray() for _ in range(rows)]
        self.starts: list[list[int]] = [[] for _ in range(rows)]  # of each token
        self.at: list[int | None] = [None] * rows

    def add(self, row: int, token: int, position: int) -> bool:
        """The token at `position` of a row; whether the row now has its answer."""
        piece = self.piece(token, position)
        self.starts[row].append(len(self.texts[row]))
        self.texts[row] += piece
        if self.at[row] is None and (b"\n" in piece or (self.unit == "sentence" and (b" " in piece or b":" in piece))):
            end = _answer_end(self.texts[row], self.unit)
            if end is not None:
                self.at[row] = bisect_left(self.starts[row], end + (self.unit == "line"))
        return self.at[row] is not None


def _answer_end(text: bytes | bytearray, unit: Unit) -> int | None:
    """Bytes up to the end of the answer, None if it has not ended."""
    # Read as Latin-1 a character is a byte, and what is asked for is ASCII, which no other character holds in UTF-8.
    readable = text.decode("latin-1")
    if unit == "sentence":
        return prompts.answer_sentence_end(readable)
    end = prompts.answer_end(readable)
    return end if end is not None and end < len(readable) else None


def draw(logits: torch.Tensor, temperature: float, uniforms: Sequence[float]) -> torch.Tensor:
    """Inverse of the cumulative distribution. logits [rows, v] raw; uniforms [rows] in [0, 1) -> ids [rows].

    In float64: with fp32 sums over a vocabulary of 150 thousand the tail would be drawn wrongly often enough to see.
    """
    sums = (logits.double() / temperature).softmax(-1).cumsum(-1)
    points = torch.tensor(uniforms, dtype=torch.float64, device=logits.device)[:, None] * sums[:, -1:]
    return torch.searchsorted(sums, points, right=True)[:, 0].clamp_(max=logits.shape[-1] - 1)
