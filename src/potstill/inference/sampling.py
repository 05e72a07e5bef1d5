"""Selection of the next token of each row: sampling from the logits, the end of the text, and the calculator.

    >>> logits = torch.log(torch.tensor([[0.5, 0.25, 0.25], [0.5, 0.25, 0.25]]))
    >>> sample_inverse_cdf(logits, 1.0, [0.49, 0.51]).tolist()      # cumulative sums 0.5, 0.75, 1
    [0, 1]

A row that has ended may still receive tokens for some steps. The engine discards tokens after the end.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import chain
from types import MappingProxyType
from typing import Final, TypeVar

import numpy as np
import torch

from potstill import calculator, prompts
from potstill.inference.engine import Decode, SampleKey, StopUnit, draw_uniform
from potstill.tokenization import Tokenizer

T = TypeVar("T")
NO_FORCED_TOKENS: Final[Mapping[int, int]] = MappingProxyType({})
NUMBER_CONTINUATION: Final = re.compile(rb"[.,]?\d")  # beginning of a token that would lengthen a number
MARK_PREFIX: Final = b" $"  # bytes that may precede a calculator mark: `= $<<6*4=24>>24`
REPEATS_VERSION: Final = 1  # version of the rule of `RepeatDetector`
MAX_PERIOD: Final = 64  # maximum number of tokens in a repeated block
REPEATS: Final = 4  # minimum number of repeats of a block
MIN_REPEATED: Final = 32  # minimum number of tokens in all repeats of a block together
CALCULATOR_BYTES: Final = 4 * (calculator.LOOKBACK_CHARS + 2)  # end of a text that decides whether there is a result
CONTEXT_CHARS: Final = 80  # number of characters of the text that are tokenized together with a result

StepLogprobs = tuple[list[int], list[float]]  # ids and log-probabilities of the top k tokens, then of the sampled token


class TokenSampler:
    """Selects one token per row from raw logits, and records ids and log-probabilities on request."""

    def __init__(self, keys: Sequence[SampleKey], decode: Decode) -> None:
        self.keys, self.decode = keys, decode
        self.tokens: list[list[int]] = [[] for _ in keys]  # tokens of each row
        self.has_nan: torch.Tensor | None = None
        # One entry per step. Entries stay on the device until the end, because a copy per step would wait for the GPU.
        self._rows: list[Sequence[int]] = []
        self._top: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._logprobs: list[torch.Tensor] = []

    def sample(
        self, logits: torch.Tensor, rows: Sequence[int], forced: Mapping[int, int] = NO_FORCED_TOKENS
    ) -> torch.Tensor:
        """Raw logits [n, v] of the texts `rows` [n] -> ids [n].

        forced  index into `rows` -> token that is written instead of a sampled token
        """
        has_nan = logits.isnan().any()
        self.has_nan = has_nan if self.has_nan is None else self.has_nan | has_nan
        if self.decode.temperature == 0:
            ids = logits.argmax(-1)
        else:
            uniforms = [draw_uniform(self.decode.seed, self.keys[row], len(self._rows)) for row in rows]
            ids = sample_inverse_cdf(logits, self.decode.temperature, uniforms)
        for index, token in forced.items():
            ids[index] = token
        if self.decode.likelihood:
            logprobs = logits.float().log_softmax(-1).gather(-1, ids[:, None])[:, 0]
            for index in forced:
                logprobs[index] = 0.0  # the model did not write the calculator's tokens
            self._logprobs.append(logprobs)
        if self.decode.top_logprobs:
            logprobs = logits.float().log_softmax(-1)
            values, top = logprobs.topk(min(self.decode.top_logprobs, logprobs.shape[-1]), dim=-1)
            sampled = logprobs.gather(-1, ids[:, None])
            self._top.append((torch.cat([top, ids[:, None]], -1), torch.cat([values, sampled], -1)))
        self._rows.append(rows)
        for row, token in zip(rows, ids.tolist(), strict=True):
            self.tokens[row].append(token)
        return ids

    def likelihoods(self, lengths: Sequence[int]) -> list[float | None]:
        """Per row, the log-probability (nats) of its first `lengths[row]` tokens; None unless requested."""
        if not self.decode.likelihood:
            return [None] * len(self.keys)
        by_row = self._by_row(torch.cat(self._logprobs).tolist())
        return [round(math.fsum(values[:length]), 6) + 0.0 for values, length in zip(by_row, lengths, strict=True)]

    def top_logprobs(self) -> list[list[StepLogprobs]]:
        """The recorded steps of each row; empty unless requested."""
        if not self._top:
            return [[] for _ in self.keys]
        ids, values = (torch.cat(parts).tolist() for parts in zip(*self._top, strict=True))
        return self._by_row(zip(ids, values, strict=True))

    def _by_row(self, values: Iterable[T]) -> list[list[T]]:
        """Values in the order of the steps, and in each step in the order of the rows -> the values of each row."""
        by_row: list[list[T]] = [[] for _ in self.keys]
        for row, value in zip(chain.from_iterable(self._rows), values, strict=True):
            by_row[row].append(value)
        return by_row


def sample_inverse_cdf(logits: torch.Tensor, temperature: float, uniforms: Sequence[float]) -> torch.Tensor:
    """Sampling by the inverse of the cumulative distribution: logits [rows, v], uniforms [rows] in [0, 1) -> ids [rows].

    Computed in float64, because with float32 sums over a vocabulary of 150,000, samples from the tail are measurably wrong.
    """
    sums = (logits.double() / temperature).softmax(-1).cumsum(-1)
    points = torch.tensor(uniforms, dtype=torch.float64, device=logits.device)[:, None] * sums[:, -1:]
    return torch.searchsorted(sums, points, right=True)[:, 0].clamp_(max=logits.shape[-1] - 1)


class AnswerDetector:
    """Detects when a row has a complete line, or a complete sentence, that contains "answer is".

    `lengths` [rows]: number of tokens up to the end of the answer; None without an answer. The newline of a line counts;
    the token that shows that a sentence is complete does not.
    """

    def __init__(self, rows: int, token_bytes: Callable[[int, int], bytes], unit: StopUnit) -> None:
        """token_bytes: (token, position in the text) -> the bytes that the token adds."""
        self.token_bytes = token_bytes
        self.unit: StopUnit = unit
        self.texts = [bytearray() for _ in range(rows)]
        self.starts: list[list[int]] = [[] for _ in range(rows)]  # start of each token, in bytes
        self.lengths: list[int | None] = [None] * rows
        self.searched = [0] * rows  # no answer begins before this byte, so that no part of a long text is read twice

    def add(self, row: int, token: int, position: int) -> bool:
        """Append a token to a row. Returns whether the row now has an answer."""
        added = self.token_bytes(token, position)
        self.starts[row].append(len(self.texts[row]))
        self.texts[row] += added
        is_line = self.unit == "line"
        may_end = b"\n" in added or (not is_line and (b" " in added or b":" in added))
        if self.lengths[row] is None and may_end:
            # In Latin-1 every byte is a character, so offsets are in bytes. The phrases are ASCII, and in UTF-8 an ASCII
            # byte never belongs to another character.
            start = self.searched[row]
            text = self.texts[row][start:].decode("latin-1")
            end = prompts.find_answer_end(text) if is_line else prompts.find_answer_sentence_end(text)
            if end is not None and (end < len(text) or not is_line):
                self.lengths[row] = bisect_left(self.starts[row], start + end + is_line)
            else:
                find_open = prompts.find_open_answer_line if is_line else prompts.find_open_answer_sentence
                self.searched[row] = start + find_open(text)
        return self.lengths[row] is not None


class RepeatDetector:
    """Detects when a row repeats itself: it ends with a block of at most MAX_PERIOD tokens, repeated at least REPEATS
    times, with at least MIN_REPEATED tokens in total.

    `lengths` [rows]: number of tokens to keep of a row that repeats itself; None for other rows. The text is cut within
    the last block, after its last line or else after its last sentence, so that no answer is split. If the block has
    neither, nothing is cut.

        >>> letters = [b" a", b" c", b"b."]
        >>> detector = RepeatDetector(1, lambda token, position: letters[token])
        >>> text = [0, 0] + [0, 1, 2] * 20
        >>> next(length for length in range(1, 99) if detector.add([0], [text[:length]])), detector.lengths
        (34, [32])
    """

    def __init__(self, rows: int, token_bytes: Callable[[int, int], bytes]) -> None:
        """token_bytes: (token, position in the text) -> the bytes that the token adds."""
        self.token_bytes = token_bytes
        self.lengths: list[int | None] = [None] * rows
        self.position = 0
        self._recent = np.full((rows, MAX_PERIOD), -1, np.int64)  # the token of position t is in column t % MAX_PERIOD
        # Per period p: number of last tokens that equal the token p positions before.
        self._equal = np.zeros((rows, MAX_PERIOD), np.int32)
        periods = np.arange(1, MAX_PERIOD + 1)
        self._needed = np.maximum(REPEATS * periods, MIN_REPEATED) - periods

    def add(self, rows: Sequence[int], texts: Sequence[Sequence[int]]) -> list[int]:
        """Read the last token of these rows. Returns the rows that now repeat themselves.

        rows   must contain every row that has not ended, at every step
        texts  all tokens of each row
        """
        indices, last = np.asarray(rows, np.int64), np.asarray([text[-1] for text in texts], np.int64)
        columns = (self.position - np.arange(1, MAX_PERIOD + 1)) % MAX_PERIOD
        equal = self._recent[indices[:, None], columns] == last[:, None]
        self._equal[indices] = (self._equal[indices] + 1) * equal
        self._recent[indices, self.position % MAX_PERIOD] = last
        self.position += 1
        repeats = self._equal[indices] >= self._needed
        found = np.flatnonzero(repeats.any(-1)).tolist()
        for index in found:
            period = int(repeats[index].argmax()) + 1
            self.lengths[rows[index]] = self._cut(texts[index], period)
        return [rows[index] for index in found]

    def _cut(self, text: Sequence[int], period: int) -> int:
        block = [self.token_bytes(token, 1) for token in text[-period:]]
        ends: dict[str, int] = {}
        for place in range(period):  # the token at `place + 1` follows; after the last token, the first
            added, following = block[place], block[(place + 1) % period]
            length = len(text) - period + place + 1
            if added.endswith(b"\n") or following.startswith(b"\n"):
                ends["line"] = length
            elif added.endswith((b".", b"!", b"?")) and following.startswith(b" "):
                ends["sentence"] = length
        return ends.get("line", ends.get("sentence", len(text)))


class CalculatorDecoding:
    """Writes the results of arithmetic expressions into a batch of texts (Cobbe et al. 2021).

    A result is written with the tokens of the text that includes it, and the next token may not lengthen its number. If
    the vocabulary cannot write a result exactly, the model continues without it. If the model's most likely token opens a
    calculator mark (`48/2 = <<48/2=`), as it was trained to do, the model continues, and the mark is completed. If the
    model has begun a number, the rest of the number is written.
    """

    def __init__(self, rows: int, tokenizer: Tokenizer, token_bytes: Callable[[int, int], bytes]) -> None:
        """token_bytes: (token, position in the text) -> the bytes that the token adds."""
        self.tokenizer, self.token_bytes = tokenizer, token_bytes
        self.texts = [bytearray() for _ in range(rows)]
        self.pending: list[list[int]] = [[] for _ in range(rows)]  # tokens of a result that the row must still write
        self.after_result: set[int] = set()  # rows whose next token must not lengthen the result
        self.may_open_mark: set[int] = set()  # rows outside a mark, before the digits of a result
        self.mark_tokens, self.number_tokens = _classify_tokens(tokenizer)

    def forced_tokens(self, logits: torch.Tensor, live: list[int]) -> dict[int, int]:
        """Index into `live` -> the token that the row must write now. logits: [live rows, v]."""
        waiting = [(index, row) for index, row in enumerate(live) if self.pending[row]]
        for index, row in waiting if self.mark_tokens else ():
            if row in self.may_open_mark and int(logits[index].argmax()) in self.mark_tokens:
                self.pending[row] = []
        return {index: self.pending[row][0] for index, row in waiting if self.pending[row]}

    def mask_logits(self, logits: torch.Tensor, live: list[int]) -> torch.Tensor:
        """The logits [live rows, v] without tokens that would lengthen a calculated number."""
        masked = [index for index, row in enumerate(live) if row in self.after_result]
        if not masked or not len(self.number_tokens):
            return logits
        logits = logits.clone()
        rows = torch.tensor(masked, device=logits.device)[:, None]
        logits[rows, self.number_tokens.to(logits.device)] = -torch.inf
        return logits

    def add(self, row: int, token: int, position: int) -> None:
        """Append the token that a row has written."""
        added = self.token_bytes(token, position)
        self.texts[row] += added
        self.after_result.discard(row)
        if self.pending[row]:
            del self.pending[row][0]
            if added.strip(MARK_PREFIX):
                self.may_open_mark.discard(row)
            if not self.pending[row] and self.texts[row][-1:].isdigit():
                self.after_result.add(row)
        elif added.endswith(b"="):
            text = self.texts[row][-CALCULATOR_BYTES:].decode("utf-8", "replace")
            if (result := calculator.complete_after_equals(text)) is not None:
                self.pending[row] = self.result_tokens(text[-CONTEXT_CHARS:], result)
                change = self.may_open_mark.discard if result.endswith(">>") else self.may_open_mark.add
                change(row)

    def result_tokens(self, text: str, result: str) -> list[int]:
        """The tokens that write `result` after a text; empty if no tokens write it exactly."""
        before = self.tokenizer.encode(text).ids
        whole = self.tokenizer.encode(text + result).ids
        tokens = whole[len(before) :] if whole[: len(before)] == before else self.tokenizer.encode(result).ids
        written = b"".join(self.tokenizer.token_bytes(token) for token in tokens)
        return tokens if written == result.encode() else []


@lru_cache(maxsize=2)
def _classify_tokens(tokenizer: Tokenizer) -> tuple[frozenset[int], torch.Tensor]:
    """The ids of tokens that open a calculator mark; and of tokens that would lengthen a number before them, [m] int64."""
    vocabulary = [tokenizer.token_bytes(token) for token in range(tokenizer.size)]
    marks = frozenset(token for token, text in enumerate(vocabulary) if text.lstrip().startswith(b"<"))
    numbers = [token for token, text in enumerate(vocabulary) if NUMBER_CONTINUATION.match(text)]
    return marks, torch.tensor(numbers, dtype=torch.long)
