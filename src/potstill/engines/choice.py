"""Which token is taken at each step, what was seen there, and when a row has its answer: what `generate` is handed.

    >>> logits = torch.log(torch.tensor([[0.5, 0.25, 0.25], [0.5, 0.25, 0.25]]))
    >>> draw(logits, 1.0, [0.49, 0.51]).tolist()      # cumulative sums 0.5, 0.75, 1
    [0, 1]

A row that has ended goes on being drawn until the batch is done; whoever reads cuts behind its end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from transformers import LogitsProcessor, StoppingCriteria

from potstill import prompts
from potstill.engines import Key, uniform


class Choice(LogitsProcessor):
    """Takes one token a row from the raw logits and remembers what it saw: at each step [rows] ids, and, if asked for,
    the `count` likeliest ids and the drawn one with their log-probabilities, both [rows, count + 1]."""

    def __init__(self, keys: Sequence[Key], temperature: float, seed: int, count: int) -> None:
        self.keys, self.temperature, self.seed, self.count = keys, temperature, seed, count
        self.broken: torch.Tensor | None = None
        self._ids: list[torch.Tensor] = []
        self._top: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._host: tuple[list[list[int]], list[list[list[int]]], list[list[list[float]]]] | None = None

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        broken = scores.isnan().any()
        self.broken = broken if self.broken is None else self.broken | broken
        if self.temperature == 0:
            ids = scores.argmax(-1)
        else:
            position = len(self._ids)
            ids = draw(scores, self.temperature, [uniform(self.seed, key, position) for key in self.keys])
        self._ids.append(ids)
        if self.count:
            logs = scores.float().log_softmax(-1)
            values, top = logs.topk(min(self.count, logs.shape[-1]), dim=-1)
            own = logs.gather(-1, ids[:, None])
            self._top.append((torch.cat([top, ids[:, None]], -1), torch.cat([values, own], -1)))
        forced = torch.full_like(scores, -torch.inf)
        return forced.scatter_(-1, ids[:, None], 0.0)  # type: ignore[return-value]

    def drawn(self, row: int) -> list[int]:
        return self._read()[0][row]

    def seen(self, row: int, position: int) -> tuple[int, dict[int, float]]:
        """The drawn token, and the log-probability of it and of the likeliest."""
        ids, top, values = self._read()
        return ids[row][position], dict(zip(top[row][position], values[row][position], strict=True))

    def _read(self) -> tuple[list[list[int]], list[list[list[int]]], list[list[list[float]]]]:
        # One copy from the device when all is written, none between the steps.
        if self._host is None:
            ids = torch.stack(self._ids, 1).tolist()
            top = torch.stack([step[0] for step in self._top], 1).tolist() if self._top else []
            values = torch.stack([step[1] for step in self._top], 1).tolist() if self._top else []
            self._host = (ids, top, values)
        return self._host


class AnswerLine(StoppingCriteria):
    """Stops each row once its text has a whole line that holds "answer is"; `at` [rows] is the number of tokens up to
    and with that line's newline, None for a row that has no such line."""

    def __init__(self, rows: int, piece: Callable[[int, int], bytes]) -> None:
        self.piece, self.position = piece, 0
        self.texts = [bytearray() for _ in range(rows)]
        self.at: list[int | None] = [None] * rows

    def __call__(self, input_ids: torch.LongTensor, scores: object, **kwargs: object) -> torch.BoolTensor:
        # A row that ended is fed padding, whose piece holds no newline.
        for row, token in enumerate(input_ids[:, -1].tolist()):
            piece = self.piece(token, self.position)
            self.texts[row] += piece
            if self.at[row] is None and b"\n" in piece and _has_answer_line(self.texts[row]):
                self.at[row] = self.position + 1
        self.position += 1
        return torch.tensor([at is not None for at in self.at], device=input_ids.device)  # type: ignore[return-value]


def _has_answer_line(text: bytes | bytearray) -> bool:
    # Read as Latin-1 a character is a byte, and what is asked for is ASCII, which no other character holds in UTF-8.
    readable = text.decode("latin-1")
    end = prompts.answer_end(readable)
    return end is not None and end < len(readable)


def draw(logits: torch.Tensor, temperature: float, uniforms: Sequence[float]) -> torch.Tensor:
    """Inverse of the cumulative distribution. logits [rows, v] raw; uniforms [rows] in [0, 1) -> ids [rows].

    In float64: with fp32 sums over a vocabulary of 150 thousand the tail would be drawn wrongly often enough to see.
    """
    sums = (logits.double() / temperature).softmax(-1).cumsum(-1)
    points = torch.tensor(uniforms, dtype=torch.float64, device=logits.device)[:, None] * sums[:, -1:]
    return torch.searchsorted(sums, points, right=True)[:, 0].clamp_(max=logits.shape[-1] - 1)
