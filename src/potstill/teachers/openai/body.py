"""Bodies: what an OpenAI-compatible server answers, as far as it is read. Unknown fields are passed over.

    >>> decode(b'{"choices": [{"text": " 4", "finish_reason": "stop"}], "usage": null, "id": "x"}').choices[0].text
    ' 4'

One shape for legacy completions and chat completions: a choice has a `text` or a `message`, and its log-probabilities
come as four parallel lists or as a list of entries, whichever endpoint gave them. What a body has by the hundred is not
looked through for cycles (`gc`), of which it can have none: that takes half of what decoding costs.
"""

from __future__ import annotations

import math
import re
from typing import Any, Final

import msgspec

from potstill.records import Semantics

COUNTED: Final = b'"completion_tokens"'  # one look through a body shows whether its counts stand there twice
NEAR: Final = 4096  # bytes around them in which the other count stands
MOST: Final = 10**9  # tokens of one request: a number beyond counts nothing
THINKING: Final = ("thinking", "reasoning", "thought", "reasoning_text", "redacted_thinking")
TEXTS: Final = ("text", "content", "thinking", "reasoning", "summary", "output_text")


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
    """What a chat model answered. Each field may also be a list of parts, of which some are thoughts: see `spoken`."""

    content: str | list[Any] | None = None
    reasoning: str | list[Any] | dict[str, Any] | None = None
    reasoning_content: str | list[Any] | dict[str, Any] | None = None
    thinking: str | list[Any] | dict[str, Any] | None = None


class Scored(msgspec.Struct, gc=False):
    """A token of the prompt, by its id, as vLLM scores it."""

    logprob: float | None = None
    decoded_token: str | None = None


class Choice(msgspec.Struct):
    text: str | None = None
    message: Message | None = None
    logprobs: Listing | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    prompt_token_ids: list[int] | None = None
    prompt_logprobs: list[dict[str, Scored] | None] | None = None
    error: Any = None  # what went wrong with this text alone
    replaced: bool = False  # ours: whether half a surrogate pair was replaced in it

    def entries(self) -> int:
        """How many tokens the server says something of."""
        listing = self.logprobs
        if listing is None:
            return 0
        return len(listing.content if listing.content is not None else listing.tokens or ())


class Usage(msgspec.Struct):
    """Tokens as the server counts them; None where it says nothing that can be a count."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class Body(msgspec.Struct):
    choices: list[Choice]
    usage: Any = None  # as it came; `decode` makes it a Usage
    model: str | None = None
    error: Any = None


class Native(msgspec.Struct):
    """What llama.cpp's server answers at `/completion`."""

    content: str
    completion_probabilities: list[Entry] | None = None
    stop_type: str | None = None
    stopping_word: str | None = None


def raw(one: Alternative) -> bytes | None:
    """The bytes that a server gave an outcome; None where it gave none. Raises one of `Malformed`."""
    numbers = _numbers.decode(one.bytes)
    if numbers is None:
        return None
    if any(not 0 <= number < 256 for number in numbers):
        raise msgspec.ValidationError("a byte is a number from 0 to 255")
    return bytes(numbers)


def spoken(choice: Choice) -> tuple[str, str]:
    """The thought that a choice has in a field or a part of its own, and its text; each empty where there is none.

    >>> parts = [{"type": "thinking", "thinking": "2 + 2"}, {"type": "text", "text": "4"}]
    >>> spoken(Choice(message=Message(content=parts)))
    ('2 + 2', '4')
    """
    message = choice.message
    if message is None:
        return "", choice.text or ""
    thought, answer = "", message.content
    if isinstance(answer, list):
        thoughts = [part for part in answer if isinstance(part, dict) and part.get("type") in THINKING]
        thought = _flat(thoughts)
        answer = _flat([part for part in answer if part not in thoughts])
    thought = _flat(message.reasoning) or _flat(message.reasoning_content) or _flat(message.thinking) or thought
    return thought, answer or ""


def _flat(value: Any) -> str:
    """The text of a part, whatever its form."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "".join(map(_flat, value))
    if isinstance(value, dict):
        return next((text for name in TEXTS if (text := _flat(value.get(name)))), "")
    return ""


Malformed = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_body = msgspec.json.Decoder(Body)
_numbers = msgspec.json.Decoder(list[int] | None)
_native = msgspec.json.Decoder(Native)
encode = msgspec.json.Encoder().encode


def decode(data: bytes) -> Body:
    """A body that answers, or that says in `error` why it does not. Raises one of `Malformed` for anything else."""
    try:
        found = _body.decode(data)
    except Malformed as fault:
        found = _tolerantly(data, fault)
    found.usage = usage(found.usage, data)
    return found


def _tolerantly(data: bytes, fault: Exception) -> Body:
    from potstill.teachers.openai import tolerant

    try:
        return _body.decode(tolerant.cleaned(data))
    except (ValueError, RecursionError):
        raise msgspec.DecodeError(str(fault)) from None


def usage(row: Any, data: bytes = b"") -> Usage:
    """What a server says that it counted; of numbers that cannot be, or that it gives twice and differently, nothing.

    >>> usage({"prompt_tokens": "5", "completion_tokens": -3}), usage({"input_tokens": 5, "output_tokens": 7.0})
    (Usage(prompt_tokens=5, completion_tokens=None), Usage(prompt_tokens=5, completion_tokens=7))
    >>> usage({"prompt_tokens": 1}, b'{"usage": {"prompt_tokens": 900, "prompt_tokens": 1}}')
    Usage(prompt_tokens=None, completion_tokens=None)
    """
    if not isinstance(row, dict):
        return Usage()
    last = data.rfind(COUNTED)
    near = data if data.find(COUNTED, 0, max(last, 0)) >= 0 else data[max(0, last - NEAR) : last + NEAR]
    found = []
    for name, other in (("prompt_tokens", "input_tokens"), ("completion_tokens", "output_tokens")):
        pattern = f'"{name}"'.encode()
        # Within a string the quotes of a key would be escaped.
        stated = set(re.findall(pattern + rb'\s*:\s*("?[^\s,}"]*)', near)) if near.count(pattern) > 1 else ()
        found.append(_count(row.get(name, row.get(other))) if len(stated) < 2 else None)
    return Usage(*found)


def _count(value: Any) -> int | None:
    if isinstance(value, str) and value.isascii() and value.isdecimal():
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MOST or value != int(value):
        return None
    return int(value)


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
