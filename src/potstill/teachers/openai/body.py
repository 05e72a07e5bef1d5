"""Bodies: what an OpenAI-compatible server answers, as far as it is read. Unknown fields are passed over.

    >>> decode(b'{"choices": [{"text": " 4", "finish_reason": "stop"}], "usage": null, "id": "x"}').choices[0].text
    ' 4'

One shape for legacy completions and chat completions: a choice has a `text` or a `message`, and its log-probabilities
come as four parallel lists or as a list of entries, whichever endpoint gave them. What a body has by the hundred is not
looked through for cycles (`gc`), of which it can have none: that takes half of what decoding costs.
"""

from __future__ import annotations

import math
from typing import Any

import msgspec

from potstill.records import Semantics


class Alternative(msgspec.Struct, gc=False):
    """One outcome of a step. `bytes` may be true, made of `token`, or missing: who reads it finds out; as the string
    mostly tells them, the list is left as it came until somebody asks for it (`raw`)."""

    token: str = ""
    logprob: float | None = None
    bytes: msgspec.Raw = msgspec.Raw(b"null")
    id: int | None = None
    prob: float | None = None  # llama.cpp's own endpoint, if asked for probabilities after sampling


class Entry(Alternative, gc=False):
    top_logprobs: list[Alternative] | None = None
    top_probs: list[Alternative] | None = None


class Listing(msgspec.Struct, gc=False):
    """Log-probabilities of a choice: the first four fields or `content`."""

    tokens: list[str | None] | None = None
    token_logprobs: list[float | None] | None = None
    top_logprobs: list[dict[str, float | None] | None] | None = None
    text_offset: list[int] | None = None
    content: list[Entry] | None = None


class Message(msgspec.Struct):
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None


class Scored(msgspec.Struct, gc=False):
    """A token of the prompt, by its id, as vLLM scores it."""

    logprob: float | None = None
    decoded_token: str | None = None


class Choice(msgspec.Struct):
    index: int = 0
    text: str | None = None
    message: Message | None = None
    logprobs: Listing | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    token_ids: list[int] | None = None
    prompt_token_ids: list[int] | None = None
    prompt_logprobs: list[dict[str, Scored] | None] | None = None


class Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class Body(msgspec.Struct):
    choices: list[Choice]
    usage: Usage | None = None
    model: str | None = None


class Native(msgspec.Struct):
    """What llama.cpp's server answers at `/completion`."""

    content: str
    completion_probabilities: list[Entry] | None = None
    stop_type: str | None = None
    stopping_word: str | None = None


class Fault(msgspec.Struct):
    """An error's body. `error` is an object, a text, or absent; FastAPI servers say `detail` instead."""

    error: Any = None
    detail: Any = None
    message: Any = None


def raw(one: Alternative) -> bytes | None:
    """The bytes that a server gave an outcome; None where it gave none. Raises one of `Malformed`."""
    numbers = _numbers.decode(one.bytes)
    if numbers is None:
        return None
    if any(not 0 <= number < 256 for number in numbers):
        raise msgspec.ValidationError("a byte is a number from 0 to 255")
    return bytes(numbers)


Malformed = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_body = msgspec.json.Decoder(Body)
_numbers = msgspec.json.Decoder(list[int] | None)
_native = msgspec.json.Decoder(Native)
_fault = msgspec.json.Decoder(Fault)
encode = msgspec.json.Encoder().encode


def decode(data: bytes) -> Body:
    """A body that answers. Raises one of `Malformed` for anything else."""
    return _body.decode(data)


def native(data: bytes) -> tuple[Choice, Semantics]:
    """A body of llama.cpp's own endpoint as a choice, and what its numbers mean. Raises one of `Malformed`."""
    body = _native.decode(data)
    entries, semantics = body.completion_probabilities or [], "raw"
    for entry in entries:
        if entry.prob is not None:  # of what was left after top-k, top-p and the like
            semantics = "truncated"
            entry.top_logprobs = entry.top_probs
            for one in (entry, *(entry.top_probs or ())):
                one.logprob = math.log(one.prob) if one.prob else None
    ended = {"eos": "stop", "word": "stop"}.get(body.stop_type or "", "length")
    listing = Listing(content=entries) if entries else None
    return Choice(
        text=body.content, logprobs=listing, finish_reason=ended, stop_reason=body.stopping_word or None
    ), semantics if entries else "none"


def complaint(data: bytes, most: int = 300) -> tuple[str, str]:
    """What an error's body says, and the parameter that it names, if any."""
    try:
        fault = _fault.decode(data)
    except Malformed:
        return data[:most].decode("utf-8", "replace").strip(), ""
    said = fault.error if fault.error is not None else fault.detail if fault.detail is not None else fault.message
    named = ""
    if isinstance(said, dict):
        named = str(said.get("param") or "")
        said = said.get("message", said)
    if isinstance(said, list) and said and isinstance(said[0], dict):  # FastAPI: a list of faults with their places
        place = said[0].get("loc")
        named = str(place[-1]) if isinstance(place, list) and place else ""
        said = said[0].get("msg", said)
    text = said if isinstance(said, str) else data.decode("utf-8", "replace")
    return text[:most].strip(), named
