"""A cache of generated texts for an engine, so that no text is generated twice.

    engine = CachingEngine(open_engine(student), folder / f"{build_cache_key(weights)}.jsonl")

The name of the file identifies the weights and the version of the engines. A line has the digest of prompt and `Decode`,
the text, and its stop reason. Grades are not stored, so another version of the grader grades cached texts again. A batch
is stored when it is complete.

Missing texts are generated in separate batches. Their floating-point noise differs from that of the whole batch, so a text
may differ from that of a run without a cache if two tokens are almost equally likely.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from potstill import calculator, inference, models, storage, tokenization
from potstill.inference import sampling
from potstill.inference.engine import Decode, Engine, Generation, Request
from potstill.records import Prompt
from potstill.serialization import decode_bytes, encode_bytes


def build_cache_key(weights: Mapping[str, str]) -> str:
    """The name of a checkpoint's cache file: a digest of its weights' digests and of the versions that affect texts."""
    versions = [inference.VERSION, calculator.VERSION, models.VERSION, tokenization.VERSION]
    return _hash_json([sorted(weights.items()), *versions])


class CachingEngine:
    """An `Engine` that caches the texts of another engine. `generated` and `reused` count texts."""

    def __init__(self, engine: Engine, path: Path) -> None:
        """path: the file that stores new texts. The texts of the other files in its folder are used, too."""
        self._engine = engine
        self._file = storage.Appender(path)
        files = sorted(path.parent.glob(f"*{path.suffix}"))
        self._rows = {row["key"]: row for file in files for row in storage.read_complete_lines(file)}
        self.generated = self.reused = 0

    def encode(self, prompt: Prompt) -> tuple[int, ...]:
        return self._engine.encode(prompt)

    @property
    def opens_thought(self) -> bool:
        return self._engine.opens_thought

    def generate(
        self, requests: Sequence[Request], decode: Decode, on_tokens: Callable[[int], None] | None = None
    ) -> list[Generation]:
        """A batch of texts; see `Engine`. With `top_logprobs`, all texts are generated, because candidates are not cached."""
        if decode.top_logprobs:
            return self._engine.generate(requests, decode, on_tokens)
        keys = {request.key: _hash_request(request, decode) for request in requests}
        missing = [request for request in requests if keys[request.key] not in self._rows]
        generated = self._engine.generate(missing, decode, on_tokens) if missing else []
        rows = [
            {
                "key": keys[text.key],
                "text": encode_bytes(text.content),
                "stop": text.stop,
                "likelihood": text.likelihood,
            }
            for text in generated
        ]
        self._file.append(rows)
        self._rows.update({row["key"]: row for row in rows})
        self.generated += len(generated)
        self.reused += len(requests) - len(generated)
        cached = [(request.key, self._rows[keys[request.key]]) for request in requests]
        return [
            Generation(key, (), (), decode_bytes(row["text"]), (), row["stop"], row["likelihood"], self.opens_thought)
            for key, row in cached
        ]

    def __enter__(self) -> CachingEngine:
        self._file.__enter__()
        return self

    def __exit__(self, *fault: object) -> None:
        self._file.__exit__(*fault)


def _hash_request(request: Request, decode: Decode) -> str:
    """A digest of everything except the weights that determines a text. A greedy text depends neither on its key nor on
    the seed."""
    settings = {name: getattr(decode, name) for name in ("max_tokens", "temperature", "seed", "stop_at_answer")}
    if decode.temperature == 0:
        settings["seed"] = 0
    settings["calculator"] = calculator.MARKS_VERSION if decode.calculator else False
    settings["likelihood"] = decode.likelihood
    settings |= {"stop_repeats": sampling.REPEATS_VERSION} if decode.stop_repeats else {}
    return _hash_json([request.prompt, settings, request.key if decode.temperature > 0 else None])


def _hash_json(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:32]
