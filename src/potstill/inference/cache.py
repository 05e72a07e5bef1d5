"""Remembered: an engine that writes no text twice.

    engine = Remembered(engines.open(student), folder / f"{key}.jsonl")

The key of the file stands for all that decides a text beside its prompt and its draw: the digests of the weights, the
version of the engines (see `key`). A line holds the digest of prompt and decoding, the text and why it ended. Grading
is no part of it, so another version of the grader rescores what is there. A batch is stored after it was written.

What is not stored is written in batches of its own: across batches of another make-up float noise differs, so where
the two likeliest tokens are as good as equal a text can differ from that of a run without such a memory.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from potstill import calculator, inference, models, storage, tokenization
from potstill.calculator import MARKS_VERSION
from potstill.records import Prompt
from potstill.serialization import decode_bytes, encode_bytes


def build_cache_key(weights: Mapping[str, str]) -> str:
    """The name of the file for a checkpoint: a digest of the digests of its files, and of the versions of what reads a
    prompt and writes a text."""
    return _hash_json(
        [sorted(weights.items()), inference.VERSION, calculator.VERSION, models.VERSION, tokenization.VERSION]
    )


class CachingEngine:
    """An engine around another one. `written` and `remembered` count the texts that were made and found."""

    def __init__(self, engine: inference.Engine, path: Path) -> None:
        self._engine = engine
        self._lines = storage.Appender(path)
        self._known = {row["key"]: row for row in storage.read_complete_lines(path)}
        self.written = self.remembered = 0

    def encode(self, prompt: Prompt) -> tuple[int, ...]:
        return self._engine.encode(prompt)

    def generate(
        self,
        requests: Sequence[inference.Request],
        *,
        max_tokens: int,
        temperature: float = 0.0,
        seed: int = 0,
        candidates: int = 0,
        stop_at_answer: inference.StopUnit | None = None,
        calculator: bool = False,
        likelihood: bool = False,
    ) -> list[inference.Generation]:
        """As `engines.Engine` says. Tokens and candidates are not stored: a call that asks for these is handed on."""
        settings: dict[str, Any] = {
            "max_tokens": max_tokens,
            "temperature": temperature,
            "seed": seed,
            "stop_at_answer": stop_at_answer,
            "calculator": calculator,
            "likelihood": likelihood,
        }
        if candidates:
            return self._engine.generate(requests, candidates=candidates, **settings)
        drawn = temperature > 0
        how = {**settings, "calculator": MARKS_VERSION} if calculator else settings
        keys = [_hash_json([each.prompt, how, each.key if drawn else None]) for each in requests]
        missing = [each for each, name in zip(requests, keys, strict=True) if name not in self._known]
        names = {each.key: name for each, name in zip(requests, keys, strict=True)}
        made = self._engine.generate(missing, **settings) if missing else []
        rows = [
            {"key": names[one.key], "text": encode_bytes(one.content), "stop": one.stop, "likelihood": one.likelihood}
            for one in made
        ]
        self._lines.append(rows)
        self._known.update({row["key"]: row for row in rows})
        self.written, self.remembered = self.written + len(made), self.remembered + len(requests) - len(made)
        return [
            inference.Generation(each.key, (), (), decode_bytes(row["text"]), (), row["stop"], row["likelihood"])
            for each, name in zip(requests, keys, strict=True)
            for row in [self._known[name]]
        ]

    def __enter__(self) -> CachingEngine:
        self._lines.__enter__()
        return self

    def __exit__(self, *fault: object) -> None:
        self._lines.__exit__(*fault)


def _hash_json(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:32]
