"""Tolerant reading: a body that is not as its form says, made into one that is. Only such bodies take this way.

    >>> told = b'{"choices": [{"index": null, "text": " 4", "logprobs": {"tokens": [" 4"], "token_logprobs": [NaN]}}]}'
    >>> cleaned(told)
    b'{"choices":[{"text":" 4","logprobs":{"tokens":[" 4"],"token_logprobs":[null]}}]}'

Servers written in Python send NaN and Infinity, which JSON does not have, and others send numbers as strings, null for
a list, or half of a surrogate pair. What has another type than it must have is left out; the rest is kept. NaN and
infinities become null, which stands for a log-probability that is hidden. Half of a surrogate pair becomes U+FFFD, and
its choice is marked `replaced`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from typing import Any, Final

import msgspec

SPOKEN: Final = ("content", "reasoning", "reasoning_content", "thinking")
COMPLAINTS: Final = ("error", "errors", "detail", "message", "msg", "base_resp")
LISTS: Final = ("tokens", "token_logprobs", "top_logprobs", "text_offset")
_HALF: Final = re.compile("[\ud800-\udfff]")
_encode = msgspec.json.Encoder().encode


def cleaned(data: bytes) -> bytes:
    """The body as JSON in the form of `body.Body`. Raises ValueError or RecursionError where there is none in it."""
    text = data.decode("utf-8", "replace")
    tree = json.loads(text, parse_constant=lambda _: None)
    if not isinstance(tree, dict):
        raise ValueError("a body is an object")
    choices = tree.get("choices")
    if not isinstance(choices, list):
        said = {name: tree[name] for name in COMPLAINTS if tree.get(name)}
        if not said:
            raise ValueError("a body without choices")
        choices, tree["error"] = [], tree.get("error") or said
    broken = len(text.encode("utf-8", "replace")) != len(data)  # bytes that are not UTF-8 were replaced
    made: dict[str, Any] = {"choices": [_choice(one, broken) for one in choices if isinstance(one, dict)]}
    if isinstance(tree.get("usage"), dict):
        made["usage"] = _plain(tree["usage"])
    if isinstance(tree.get("model"), str):
        made["model"] = _whole(tree["model"])
    if tree.get("error"):
        made["error"] = _plain(tree["error"])
    return _encode(made)


def _choice(row: dict[str, Any], broken: bool) -> dict[str, Any]:
    made: dict[str, Any] = {}
    text, message = row.get("text"), row.get("message")
    if isinstance(text, str):
        made["text"] = text
    if isinstance(message, str):
        made["message"] = {"content": message}
    elif isinstance(message, dict):
        made["message"] = {name: message[name] for name in SPOKEN if isinstance(message.get(name), str | list)}
    if isinstance(row.get("logprobs"), dict):
        made["logprobs"] = _listing(row["logprobs"])
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
        made["prompt_logprobs"] = [_scored(one) for one in row["prompt_logprobs"]]
    found = _plain(made)
    if broken or _halved([made.get("text"), made.get("message")]):
        found["replaced"] = True
    return found


def _listing(row: dict[str, Any]) -> dict[str, Any]:
    if isinstance(row.get("content"), list):
        return {"content": [_entry(one) for one in row["content"] if isinstance(one, dict)]}
    made: dict[str, Any] = {}
    kinds: dict[str, Callable[[Any], Any]] = {
        "tokens": lambda one: one if isinstance(one, str) else None,
        "token_logprobs": _number,
        "top_logprobs": _table,
        "text_offset": lambda one: one,
    }
    for name in LISTS:
        if isinstance(row.get(name), list):
            made[name] = [kinds[name](one) for one in row[name]]
    if any(type(one) is not int for one in made.get("text_offset", ())):
        del made["text_offset"]
    return made


def _entry(row: dict[str, Any]) -> dict[str, Any]:
    made: dict[str, Any] = {"token": row["token"] if isinstance(row.get("token"), str) else ""}
    for name in ("logprob", "prob"):
        if name in row:
            made[name] = _number(row[name])
    if type(row.get("id")) is int:
        made["id"] = row["id"]
    told = row.get("bytes")
    if isinstance(told, list) and all(type(one) is int and 0 <= one < 256 for one in told):
        made["bytes"] = told
    for name in ("top_logprobs", "top_probs"):
        if isinstance(row.get(name), list):
            made[name] = [_entry(one) for one in row[name] if isinstance(one, dict)]
        elif isinstance(row.get(name), dict):
            made[name] = [{"token": token, "logprob": _number(value)} for token, value in row[name].items()]
    return made


def _table(row: Any) -> dict[str, float | None] | None:
    return {token: _number(value) for token, value in row.items()} if isinstance(row, dict) else None


def _scored(row: Any) -> dict[str, Any] | None:
    if not isinstance(row, dict):
        return None
    return {
        name: {
            "logprob": _number(one.get("logprob")),
            "decoded_token": one["decoded_token"] if isinstance(one.get("decoded_token"), str) else None,
        }
        for name, one in row.items()
        if isinstance(one, dict)
    }


def _number(value: Any) -> float | None:
    """A number, also one that is written as a string; None for any other value, NaN and infinities among them."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _plain(value: Any) -> Any:
    """The value with whole strings and with numbers that JSON has."""
    if isinstance(value, str):
        return _whole(value)
    if isinstance(value, dict):
        return {_whole(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_plain(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
        return None
    return value


def _whole(text: str) -> str:
    """The text with each half of a surrogate pair replaced by U+FFFD; halves that belong together make a character."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _halved(value: Any) -> bool:
    """Whether half of a surrogate pair stands in a string of the value."""
    if isinstance(value, str):
        return _HALF.search(value) is not None
    if isinstance(value, dict):
        return any(map(_halved, value.values()))
    return isinstance(value, list) and any(map(_halved, value))
