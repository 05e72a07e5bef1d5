"""A server that scores texts by `prompt_logprobs` and by `echo`, counts the tokens that it bills, and fails as asked.

Its tokens are words and single other characters. The log-probability of a token depends on the text before it, so the
scores of another text, or of another place, are seen in a comparison.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import zlib
from collections import Counter
from dataclasses import dataclass, field

from stub import Stub, _head, _send

REFUSED = ("429", "429 retry-after", "500", "503")  # nothing is billed
BROKEN = ("half a body", "malformed", "reset", "slow drip", "hang", "broken off")  # billed, although nothing arrives
UNUSABLE = (
    "no log-probabilities", "entries missing", "hidden values", "another text", "other order", "another model",
    "no generated token",
)  # fmt: skip
ODD = ("two choices", "no usage")  # usable
FAULTS = (*REFUSED, *BROKEN, *UNUSABLE, *ODD)


@dataclass
class ScoringStub(Stub):
    """methods  how it scores texts; it ignores the fields of other methods
    length   of the texts that it writes: so short that the probe sees how it names the end
    """

    methods: tuple[str, ...] = ("prompt_logprobs", "echo")
    kinds: tuple[str, ...] = FAULTS
    length: int = 6
    model: str = "stub"
    billed: int = 0  # tokens, in whole responses whose usage the client reads
    billed_otherwise: int = 0  # tokens, in responses that do not arrive whole, or do not say their usage
    unread: int = 0  # number of such responses
    scored: Counter = field(default_factory=Counter)  # prompt and text -> number of responses with usable scores
    strikes: int = 0

    async def answer(self, head: bytes, body: dict, writer: asyncio.StreamWriter) -> bool:
        if self.keep:
            self.seen.append(body)
        if self.latency:
            await asyncio.sleep(self.latency)
        if (refusal := self.refusal(head, body)) is not None:
            return _send(writer, *refusal)
        method = next((name for name in self.methods if body.get(name)), None)
        if method is None or body["max_tokens"] > 1:
            data = self.written_body(head, {k: v for k, v in body.items() if k != "echo"}, "")
            usage = json.loads(data)["usage"]
            self.billed += usage["prompt_tokens"] + usage["completion_tokens"]
            return _send(writer, 200, data.replace(b'"model":"stub"', f'"model":"{self.model}"'.encode()))
        self.strikes += 1
        drawn = random.Random(self.strikes).random()
        fault = self.kinds[int(drawn / self.faults)] if self.faults and drawn < self.faults * len(self.kinds) else ""
        self.struck[fault or "none"] += 1
        if fault.startswith("429"):
            return _send(writer, 429, b'{"error": "slow down"}', self.retry_after if "after" in fault else None)
        if fault in ("500", "503"):
            return _send(writer, int(fault), b"oh no")
        row = self.scores(body, method, fault)
        tokens = row["usage"]["prompt_tokens"] + row["usage"]["completion_tokens"]
        if fault in BROKEN or fault == "no usage":
            self.billed_otherwise += tokens
            self.unread += 1
        else:
            self.billed += tokens
        if fault == "no usage":
            del row["usage"]
        if fault == "broken off":
            row["choices"], row["error"] = [], {"message": "the engine failed", "code": 500}
        data = json.dumps(row).encode()
        if fault == "hang":
            await asyncio.sleep(self.stuck)
            return False
        if fault == "reset":
            writer.transport.abort()
            return False
        if fault == "malformed":
            return _send(writer, 200, data[: len(data) // 2])
        if fault in ("half a body", "slow drip"):
            writer.write(_head(200, len(data)) + data[: len(data) // 2])
            await asyncio.sleep(self.stuck if fault == "slow drip" else 0)
            return False
        if fault not in (*UNUSABLE, "broken off"):
            self.scored[body["prompt"]] += 1
        return _send(writer, 200, data)

    def scores(self, body: dict, method: str, fault: str = "") -> dict:
        """The response that scores the prompt of a request, as a JSON value."""
        text = body["prompt"] if fault != "another text" else body["prompt"] + " and more of it"
        entries = entries_of(text, body[method] if method == "prompt_logprobs" else body["logprobs"])
        usage = {"prompt_tokens": len(entries) - 1, "completion_tokens": 1}
        if fault == "entries missing":
            del entries[-4:-2]
        if fault == "hidden values":
            entries[-3] = (entries[-3][0], None, [])
        if fault == "other order":
            entries[:-1] = entries[-2::-1]
        if method == "echo":
            choice = {"text": text, "logprobs": _legacy(entries[:-1] if fault == "no generated token" else entries)}
        else:
            tables = [
                {str(_id(name)): {"logprob": value, "decoded_token": name} for name, value in tops} or None
                for _, _, tops in entries[:-1]
            ]
            ids = [_id(token) for token, _, _ in entries[:-1]]
            choice = {"text": "", "prompt_logprobs": tables, "prompt_token_ids": ids}
            choice["logprobs"] = None if fault == "no generated token" else _legacy(entries[-1:])
        if fault == "no log-probabilities":
            choice |= {"logprobs": None, "prompt_logprobs": None}
        choices = [choice | {"finish_reason": "length", "index": i} for i in range(1 + (fault == "two choices"))]
        model = "another" if fault == "another model" else self.model
        return {"model": model, "choices": choices, "usage": usage}


Entry = tuple[str, float | None, list[tuple[str, float]]]


def entries_of(text: str, k: int) -> list[Entry]:
    """Token, log-probability, and k alternatives with itself, of each token and of the end. The first has no values."""
    tokens = [*re.findall(r" ?\w+|\W", text), "<end>"]
    entries: list[Entry] = [(tokens[0], None, [])]
    for place, token in enumerate(tokens[1:], 1):
        shift = zlib.crc32("".join(tokens[: place + 1]).encode()) / 2**32  # between 0 and 1
        value = -0.2 - 0.05 * shift
        others = [(f" other{i}", -3.0 - i - shift) for i in range(k - 1)]
        entries.append((token, value, [(token, value), *others]))
    return entries


def _legacy(entries: list[Entry]) -> dict:
    return {
        "tokens": [token for token, _, _ in entries],
        "token_logprobs": [value for _, value, _ in entries],
        "top_logprobs": [dict(tops) or None for _, _, tops in entries],
    }


def _id(token: str) -> int:
    return zlib.crc32(token.encode()) % 10**6
