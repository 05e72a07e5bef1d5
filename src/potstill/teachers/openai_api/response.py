"""Tolerant reading: a body that is not as its form says, made into one that is. Only such bodies take this way.

    >>> told = b'{"choices": [{"index": null, "text": " 4", "logprobs": {"tokens": [" 4"], "token_logprobs": [NaN]}}]}'
    >>> clean_body(told)
    b'{"choices":[{"text":" 4","logprobs":{"tokens":[" 4"],"token_logprobs":[null]}}]}'

Servers written in Python send NaN and Infinity, which JSON does not have, and others send numbers as strings, null for
a list, or half of a surrogate pair. What has another type than it must have is left out; the rest is kept. NaN and
infinities become null, which stands for a log-probability that is hidden. Half of a surrogate pair becomes U+FFFD, and
its choice is marked `replaced`.

Bodies: what an OpenAI-compatible server answers, as far as it is read. Unknown fields are passed over.

    >>> decode_body(b'{"choices": [{"text": " 4", "finish_reason": "stop"}], "usage": null, "id": "x"}').choices[0].text
    ' 4'

One shape for legacy completions and chat completions: a choice has a `text` or a `message`, and its log-probabilities
come as four parallel lists or as a list of entries, whichever endpoint gave them. What a body has by the hundred is not
looked through for cycles (`gc`), of which it can have none: that takes half of what decoding costs.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from typing import Any, Final

import msgspec

from potstill.records import Semantics

MESSAGE_FIELDS: Final = ("content", "reasoning", "reasoning_content", "thinking")
ERROR_FIELDS: Final = ("error", "errors", "detail", "message", "msg", "base_resp")
PARALLEL_LISTS: Final = ("tokens", "token_logprobs", "top_logprobs", "text_offset")
_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_encode = msgspec.json.Encoder().encode


def clean_body(data: bytes) -> bytes:
    """The body as JSON in the form of `body.Body`. Raises ValueError or RecursionError where there is none in it."""
    text = data.decode("utf-8", "replace")
    tree = json.loads(text, parse_constant=lambda _: None)
    if not isinstance(tree, dict):
        raise ValueError("a body is an object")
    choices = tree.get("choices")
    if not isinstance(choices, list):
        said = {name: tree[name] for name in ERROR_FIELDS if tree.get(name)}
        if not said:
            raise ValueError("a body without choices")
        choices, tree["error"] = [], tree.get("error") or said
    broken = len(text.encode("utf-8", "replace")) != len(data)  # bytes that are not UTF-8 were replaced
    made: dict[str, Any] = {"choices": [_clean_choice(one, broken) for one in choices if isinstance(one, dict)]}
    if isinstance(tree.get("usage"), dict):
        made["usage"] = _clean_value(tree["usage"])
    if isinstance(tree.get("model"), str):
        made["model"] = _replace_surrogates(tree["model"])
    if tree.get("error"):
        made["error"] = _clean_value(tree["error"])
    return _encode(made)


def _clean_choice(row: dict[str, Any], broken: bool) -> dict[str, Any]:
    made: dict[str, Any] = {}
    text, message = row.get("text"), row.get("message")
    if isinstance(text, str):
        made["text"] = text
    if isinstance(message, str):
        made["message"] = {"content": message}
    elif isinstance(message, dict):
        made["message"] = {name: message[name] for name in MESSAGE_FIELDS if isinstance(message.get(name), str | list)}
    if isinstance(row.get("logprobs"), dict):
        made["logprobs"] = _clean_logprobs(row["logprobs"])
    reason = row.get("finish_reason")
    if isinstance(reason, dict):
        reason = reason.get("type") or reason.get("reason")
    if reason is not None:
        made["finish_reason"] = str(reason)[:100]
    if type(row.get("stop_reason")) in (str, int):
        made["stop_reason"] = row["stop_reason"]
    if row.get("error"):
        made["error"] = row["error"]
    if isinstance(row.get("prompt_token_ids"), list) and all(type(one) is int for one in row["prompt_token_ids"]):
        made["prompt_token_ids"] = row["prompt_token_ids"]
    if isinstance(row.get("prompt_logprobs"), list):
        made["prompt_logprobs"] = [_clean_prompt_logprobs(one) for one in row["prompt_logprobs"]]
    found = _clean_value(made)
    if broken or _has_surrogate([made.get("text"), made.get("message")]):
        found["replaced"] = True
    return found


def _clean_logprobs(row: dict[str, Any]) -> dict[str, Any]:
    if isinstance(row.get("content"), list):
        return {"content": [_clean_entry(one) for one in row["content"] if isinstance(one, dict)]}
    made: dict[str, Any] = {}
    kinds: dict[str, Callable[[Any], Any]] = {
        "tokens": lambda one: one if isinstance(one, str) else None,
        "token_logprobs": _parse_number,
        "top_logprobs": _clean_top_logprobs,
        "text_offset": lambda one: one,
    }
    for name in PARALLEL_LISTS:
        if isinstance(row.get(name), list):
            made[name] = [kinds[name](one) for one in row[name]]
    if any(type(one) is not int for one in made.get("text_offset", ())):
        del made["text_offset"]
    return made


def _clean_entry(row: dict[str, Any]) -> dict[str, Any]:
    made: dict[str, Any] = {"token": row["token"] if isinstance(row.get("token"), str) else ""}
    for name in ("logprob", "prob"):
        if name in row:
            made[name] = _parse_number(row[name])
    if type(row.get("id")) is int:
        made["id"] = row["id"]
    told = row.get("bytes")
    if isinstance(told, list) and all(type(one) is int and 0 <= one < 256 for one in told):
        made["bytes"] = told
    for name in ("top_logprobs", "top_probs"):
        if isinstance(row.get(name), list):
            made[name] = [_clean_entry(one) for one in row[name] if isinstance(one, dict)]
        elif isinstance(row.get(name), dict):
            made[name] = [{"token": token, "logprob": _parse_number(value)} for token, value in row[name].items()]
    return made


def _clean_top_logprobs(row: Any) -> dict[str, float | None] | None:
    return {token: _parse_number(value) for token, value in row.items()} if isinstance(row, dict) else None


def _clean_prompt_logprobs(row: Any) -> dict[str, Any] | None:
    if not isinstance(row, dict):
        return None
    return {
        name: {
            "logprob": _parse_number(one.get("logprob")),
            "decoded_token": one["decoded_token"] if isinstance(one.get("decoded_token"), str) else None,
        }
        for name, one in row.items()
        if isinstance(one, dict)
    }


def _parse_number(value: Any) -> float | None:
    """A number, also one that is written as a string; None for any other value, NaN and infinities among them."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _clean_value(value: Any) -> Any:
    """The value with whole strings and with numbers that JSON has."""
    if isinstance(value, str):
        return _replace_surrogates(value)
    if isinstance(value, dict):
        return {_replace_surrogates(key): _clean_value(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_clean_value(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
        return None
    return value


def _replace_surrogates(text: str) -> str:
    """The text with each half of a surrogate pair replaced by U+FFFD; halves that belong together make a character."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _has_surrogate(value: Any) -> bool:
    """Whether half of a surrogate pair stands in a string of the value."""
    if isinstance(value, str):
        return _SURROGATE.search(value) is not None
    if isinstance(value, dict):
        return any(map(_has_surrogate, value.values()))
    return isinstance(value, list) and any(map(_has_surrogate, value))


COMPLETION_TOKENS_KEY: Final = (
    b'"completion_tokens"'  # one look through a body shows whether its counts stand there twice
)
USAGE_WINDOW: Final = 4096  # bytes around them in which the other count stands
MAX_COUNT: Final = 10**9  # tokens of one request: a number beyond counts nothing
THOUGHT_TYPES: Final = ("thinking", "reasoning", "thought", "reasoning_text", "redacted_thinking")
TEXT_FIELDS: Final = ("text", "content", "thinking", "reasoning", "summary", "output_text")


class TokenOutcome(msgspec.Struct, gc=False):
    """One outcome of a step. `bytes` may be true, made of `token`, or missing: who reads it finds out; as the string
    mostly tells them, the list is left as it came until somebody asks for it (`raw`)."""

    token: str = ""
    logprob: float | None = None
    bytes: msgspec.Raw = msgspec.Raw(b"null")
    id: int | None = None
    prob: float | None = None  # llama.cpp's own endpoint, if asked for probabilities after sampling


class TokenLogprobs(TokenOutcome, gc=False):
    top_logprobs: list[TokenOutcome] | None = None
    top_probs: list[TokenOutcome] | None = None


class Logprobs(msgspec.Struct, gc=False):
    """Log-probabilities of a choice: the first four fields or `content`."""

    tokens: list[str | None] | None = None
    token_logprobs: list[float | None] | None = None
    top_logprobs: list[dict[str, float | None] | None] | None = None
    text_offset: list[int] | None = None
    content: list[TokenLogprobs] | None = None


class Message(msgspec.Struct):
    """What a chat model answered. Each field may also be a list of parts, of which some are thoughts: see `spoken`."""

    content: str | list[Any] | None = None
    reasoning: str | list[Any] | dict[str, Any] | None = None
    reasoning_content: str | list[Any] | dict[str, Any] | None = None
    thinking: str | list[Any] | dict[str, Any] | None = None


class PromptToken(msgspec.Struct, gc=False):
    """A token of the prompt, by its id, as vLLM scores it."""

    logprob: float | None = None
    decoded_token: str | None = None


class Choice(msgspec.Struct):
    text: str | None = None
    message: Message | None = None
    logprobs: Logprobs | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    prompt_token_ids: list[int] | None = None
    prompt_logprobs: list[dict[str, PromptToken] | None] | None = None
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


class ResponseBody(msgspec.Struct):
    choices: list[Choice]
    usage: Any = None  # as it came; `decode` makes it a Usage
    model: str | None = None
    error: Any = None


class LlamaCppBody(msgspec.Struct):
    """What llama.cpp's server answers at `/completion`."""

    content: str
    completion_probabilities: list[TokenLogprobs] | None = None
    stop_type: str | None = None
    stopping_word: str | None = None


def token_bytes(one: TokenOutcome) -> bytes | None:
    """The bytes that a server gave an outcome; None where it gave none. Raises one of `Malformed`."""
    numbers = _bytes_decoder.decode(one.bytes)
    if numbers is None:
        return None
    if any(not 0 <= number < 256 for number in numbers):
        raise msgspec.ValidationError("a byte is a number from 0 to 255")
    return bytes(numbers)


def message_texts(choice: Choice) -> tuple[str, str]:
    """The thought that a choice has in a field or a part of its own, and its text; each empty where there is none.

    >>> parts = [{"type": "thinking", "thinking": "2 + 2"}, {"type": "text", "text": "4"}]
    >>> message_texts(Choice(message=Message(content=parts)))
    ('2 + 2', '4')
    """
    message = choice.message
    if message is None:
        return "", choice.text or ""
    thought, answer = "", message.content
    if isinstance(answer, list):
        thoughts = [part for part in answer if isinstance(part, dict) and part.get("type") in THOUGHT_TYPES]
        thought = _flatten(thoughts)
        answer = _flatten([part for part in answer if part not in thoughts])
    thought = (
        _flatten(message.reasoning) or _flatten(message.reasoning_content) or _flatten(message.thinking) or thought
    )
    return thought, answer or ""


def _flatten(value: Any) -> str:
    """The text of a part, whatever its form."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "".join(map(_flatten, value))
    if isinstance(value, dict):
        return next((text for name in TEXT_FIELDS if (text := _flatten(value.get(name)))), "")
    return ""


DECODE_ERRORS = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_body_decoder = msgspec.json.Decoder(ResponseBody)
_bytes_decoder = msgspec.json.Decoder(list[int] | None)
_llama_cpp_decoder = msgspec.json.Decoder(LlamaCppBody)
encode = msgspec.json.Encoder().encode


def decode_body(data: bytes) -> ResponseBody:
    """A body that answers, or that says in `error` why it does not. Raises one of `Malformed` for anything else."""
    try:
        found = _body_decoder.decode(data)
    except DECODE_ERRORS as fault:
        found = _decode_tolerantly(data, fault)
    found.usage = parse_usage(found.usage, data)
    return found


def _decode_tolerantly(data: bytes, fault: Exception) -> ResponseBody:
    try:
        return _body_decoder.decode(clean_body(data))
    except (ValueError, RecursionError):
        raise msgspec.DecodeError(str(fault)) from None


def parse_usage(row: Any, data: bytes = b"") -> Usage:
    """What a server says that it counted; of numbers that cannot be, or that it gives twice and differently, nothing.

    >>> parse_usage({"prompt_tokens": "5", "completion_tokens": -3}), parse_usage({"input_tokens": 5, "output_tokens": 7.0})
    (Usage(prompt_tokens=5, completion_tokens=None), Usage(prompt_tokens=5, completion_tokens=7))
    >>> parse_usage({"prompt_tokens": 1}, b'{"usage": {"prompt_tokens": 900, "prompt_tokens": 1}}')
    Usage(prompt_tokens=None, completion_tokens=None)
    """
    if not isinstance(row, dict):
        return Usage()
    last = data.rfind(COMPLETION_TOKENS_KEY)
    near = (
        data
        if data.find(COMPLETION_TOKENS_KEY, 0, max(last, 0)) >= 0
        else data[max(0, last - USAGE_WINDOW) : last + USAGE_WINDOW]
    )
    found = []
    for name, other in (("prompt_tokens", "input_tokens"), ("completion_tokens", "output_tokens")):
        pattern = f'"{name}"'.encode()
        # Within a string the quotes of a key would be escaped.
        stated = set(re.findall(pattern + rb'\s*:\s*("?[^\s,}"]*)', near)) if near.count(pattern) > 1 else ()
        found.append(_parse_count(row.get(name, row.get(other))) if len(stated) < 2 else None)
    return Usage(*found)


def _parse_count(value: Any) -> int | None:
    if isinstance(value, str) and value.isascii() and value.isdecimal():
        value = float(value)
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not 0 <= value <= MAX_COUNT
        or value != int(value)
    ):
        return None
    return int(value)


def decode_llama_cpp(data: bytes) -> tuple[Choice, Semantics]:
    """A body of llama.cpp's own endpoint as a choice, and what its numbers mean. Raises one of `Malformed`."""
    body = _llama_cpp_decoder.decode(data)
    entries, semantics = body.completion_probabilities or [], "raw"
    for entry in entries:
        if entry.prob is not None:  # of what was left after top-k, top-p and the like
            semantics = "truncated"
            entry.top_logprobs = entry.top_probs
            for one in (entry, *(entry.top_probs or ())):
                one.logprob = math.log(one.prob) if one.prob else None
    ended = {"eos": "stop", "word": "stop"}.get(body.stop_type or "", "length")
    listing = Logprobs(content=entries) if entries else None
    return Choice(
        text=body.content, logprobs=listing, finish_reason=ended, stop_reason=body.stopping_word or None
    ), semantics if entries else "none"
