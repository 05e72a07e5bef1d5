"""Response bodies of OpenAI-compatible servers, decoded into the fields that potstill reads.

    >>> decode_body(b'{"choices": [{"text": " 4", "finish_reason": "stop"}], "usage": null, "id": "x"}').choices[0].text
    ' 4'

One shape serves legacy completions and chat completions: a choice has a `text` or a `message`, and its
log-probabilities are four parallel lists or a list of entries. Unknown fields are ignored.

A body that does not follow its schema is cleaned first (`clean_body`) and decoded again:

    >>> body = b'{"choices": [{"index": null, "text": " 4", "logprobs": {"tokens": [" 4"], "token_logprobs": [NaN]}}]}'
    >>> clean_body(body)
    b'{"choices":[{"text":" 4","logprobs":{"tokens":[" 4"],"token_logprobs":[null]}}]}'

Servers written in Python send NaN and Infinity, which JSON does not have; others send numbers as strings, null instead
of a list, or half of a surrogate pair. Cleaning drops every value of a wrong type and keeps the rest. NaN and infinities
become null, which stands for a hidden log-probability. Half of a surrogate pair becomes U+FFFD, and the choice is marked
as `replaced`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from typing import Any, Final

import msgspec

MESSAGE_FIELDS: Final = ("content", "reasoning", "reasoning_content", "thinking")
ERROR_FIELDS: Final = ("error", "errors", "detail", "message", "msg", "base_resp")
THOUGHT_TYPES: Final = ("thinking", "reasoning", "thought", "reasoning_text", "redacted_thinking")
TEXT_FIELDS: Final = ("text", "content", "thinking", "reasoning", "summary", "output_text")
COMPLETION_TOKENS_KEY: Final = b'"completion_tokens"'
USAGE_WINDOW: Final = 4096  # bytes around that key in which the other count is searched
MAX_COUNT: Final = 10**9  # tokens of one request; a larger count is ignored
_SURROGATE: Final = re.compile("[\ud800-\udfff]")


# gc=False: a body has hundreds of these, none of them in a cycle; tracking them would double the time of decoding.
class TokenOutcome(msgspec.Struct, gc=False):
    """One alternative of a token position. `bytes` stays undecoded until `token_bytes` reads it, because the string
    usually suffices."""

    token: str = ""
    logprob: float | None = None
    bytes: msgspec.Raw = msgspec.Raw(b"null")
    id: int | None = None


class TokenLogprobs(TokenOutcome, gc=False):
    """The sampled token of a position, with its alternatives."""

    top_logprobs: list[TokenOutcome] | None = None


class Logprobs(msgspec.Struct):
    """Log-probabilities of a choice: parallel lists (legacy completions) or `content` (chat completions)."""

    tokens: list[str | None] | None = None
    token_logprobs: list[float | None] | None = None
    top_logprobs: list[dict[str, float | None] | None] | None = None
    text_offset: list[int] | None = None
    content: list[TokenLogprobs] | None = None


class Message(msgspec.Struct):
    """The answer of a chat model. A field may also be a list of parts, some of which are thoughts: see
    `message_texts`."""

    content: str | list[Any] | None = None
    reasoning: str | list[Any] | dict[str, Any] | None = None
    reasoning_content: str | list[Any] | dict[str, Any] | None = None
    thinking: str | list[Any] | dict[str, Any] | None = None


class PromptToken(msgspec.Struct, gc=False):
    """One alternative of a prompt token, as vLLM scores it."""

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
    error: Any = None  # an error of this text alone
    replaced: bool = False  # set by `clean_body`: half of a surrogate pair was replaced

    def count_entries(self) -> int:
        """The number of tokens that have an entry."""
        if self.logprobs is None:
            return 0
        return len(self.logprobs.content if self.logprobs.content is not None else self.logprobs.tokens or ())


class Usage(msgspec.Struct):
    """Token counts of the server; None where it gives no credible count."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class ResponseBody(msgspec.Struct):
    choices: list[Choice]
    usage: Any = None  # as received; `decode_body` replaces it by a Usage
    model: str | None = None
    error: Any = None


DECODE_ERRORS = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_body_decoder = msgspec.json.Decoder(ResponseBody)
_bytes_decoder = msgspec.json.Decoder(list[int] | None)
encode = msgspec.json.Encoder().encode


def decode_body(data: bytes) -> ResponseBody:
    """The body of a response, which has choices or says in `error` why not. Raises one of DECODE_ERRORS."""
    try:
        body = _body_decoder.decode(data)
    except DECODE_ERRORS as error:
        try:
            body = _body_decoder.decode(clean_body(data))
        except (ValueError, RecursionError):
            raise msgspec.DecodeError(str(error)) from None
    body.usage = parse_usage(body.usage, data)
    return body


def token_bytes(outcome: TokenOutcome) -> bytes | None:
    """The bytes that the server gives for an outcome; None if it gives none. Raises one of DECODE_ERRORS."""
    numbers = _bytes_decoder.decode(outcome.bytes)
    if numbers is None:
        return None
    if any(not 0 <= number < 256 for number in numbers):
        raise msgspec.ValidationError("a byte is a number from 0 to 255")
    return bytes(numbers)


def message_texts(choice: Choice) -> tuple[str, str]:
    """The thought that a choice carries in a separate field or part, and its text; empty strings for missing ones.

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
    """The text of a message field: a string, a list of parts, or a part."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "".join(map(_flatten, value))
    if isinstance(value, dict):
        return next((text for name in TEXT_FIELDS if (text := _flatten(value.get(name)))), "")
    return ""


def parse_usage(row: Any, data: bytes = b"") -> Usage:
    """The token counts of a body; None for an impossible count, and for one that `data` holds twice with two values.

    >>> parse_usage({"prompt_tokens": "5", "completion_tokens": -3}), parse_usage({"input_tokens": 5, "output_tokens": 7.0})
    (Usage(prompt_tokens=5, completion_tokens=None), Usage(prompt_tokens=5, completion_tokens=7))
    >>> parse_usage({"prompt_tokens": 1}, b'{"usage": {"prompt_tokens": 900, "prompt_tokens": 1}}')
    Usage(prompt_tokens=None, completion_tokens=None)
    """
    if not isinstance(row, dict):
        return Usage()
    # One search shows whether the key stands twice in the body; only then the whole body is searched.
    last = data.rfind(COMPLETION_TOKENS_KEY)
    twice = data.find(COMPLETION_TOKENS_KEY, 0, max(last, 0)) >= 0
    searched = data if twice else data[max(0, last - USAGE_WINDOW) : last + USAGE_WINDOW]
    counts = []
    for name, other_name in (("prompt_tokens", "input_tokens"), ("completion_tokens", "output_tokens")):
        key = f'"{name}"'.encode()  # within a JSON string its quotes would be escaped
        values = set(re.findall(key + rb'\s*:\s*("?[^\s,}"]*)', searched)) if searched.count(key) > 1 else ()
        counts.append(_parse_count(row.get(name, row.get(other_name))) if len(values) < 2 else None)
    return Usage(*counts)


def _parse_count(value: Any) -> int | None:
    if isinstance(value, str) and value.isascii() and value.isdecimal():
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MAX_COUNT:
        return None
    return int(value) if value == int(value) else None


def clean_body(data: bytes) -> bytes:
    """The body as JSON that `ResponseBody` decodes. Raises ValueError or RecursionError if it has no choices."""
    text = data.decode("utf-8", "replace")
    tree = json.loads(text, parse_constant=lambda _: None)
    if not isinstance(tree, dict):
        raise ValueError("a body must be a JSON object")
    choices = tree.get("choices")
    if not isinstance(choices, list):
        errors = {name: tree[name] for name in ERROR_FIELDS if tree.get(name)}
        if not errors:
            raise ValueError("the body has no choices")
        choices, tree["error"] = [], tree.get("error") or errors
    invalid_utf8 = len(text.encode("utf-8", "replace")) != len(data)
    body: dict[str, Any] = {"choices": [_clean_choice(row, invalid_utf8) for row in choices if isinstance(row, dict)]}
    if isinstance(tree.get("usage"), dict):
        body["usage"] = _clean_value(tree["usage"])
    if isinstance(tree.get("model"), str):
        body["model"] = _replace_surrogates(tree["model"])
    if tree.get("error"):
        body["error"] = _clean_value(tree["error"])
    return encode(body)


def _clean_choice(row: dict[str, Any], replaced: bool) -> dict[str, Any]:
    choice: dict[str, Any] = {}
    text, message = row.get("text"), row.get("message")
    if isinstance(text, str):
        choice["text"] = text
    if isinstance(message, str):
        choice["message"] = {"content": message}
    elif isinstance(message, dict):
        choice["message"] = {
            name: message[name] for name in MESSAGE_FIELDS if isinstance(message.get(name), str | list)
        }
    if isinstance(row.get("logprobs"), dict):
        choice["logprobs"] = _clean_logprobs(row["logprobs"])
    reason = row.get("finish_reason")
    if isinstance(reason, dict):
        reason = reason.get("type") or reason.get("reason")
    if reason is not None:
        choice["finish_reason"] = str(reason)[:100]
    if type(row.get("stop_reason")) in (str, int):
        choice["stop_reason"] = row["stop_reason"]
    if row.get("error"):
        choice["error"] = row["error"]
    if _is_int_list(row.get("prompt_token_ids")):
        choice["prompt_token_ids"] = row["prompt_token_ids"]
    if isinstance(row.get("prompt_logprobs"), list):
        choice["prompt_logprobs"] = [_clean_prompt_logprobs(alternatives) for alternatives in row["prompt_logprobs"]]
    cleaned = _clean_value(choice)
    if replaced or _has_surrogate([choice.get("text"), choice.get("message")]):
        cleaned["replaced"] = True
    return cleaned


def _clean_logprobs(row: dict[str, Any]) -> dict[str, Any]:
    if isinstance(row.get("content"), list):
        return {"content": [_clean_entry(entry) for entry in row["content"] if isinstance(entry, dict)]}
    cleaners: dict[str, Callable[[Any], Any]] = {
        "tokens": lambda token: token if isinstance(token, str) else None,
        "token_logprobs": _parse_number,
        "top_logprobs": lambda table: _clean_table(table) if isinstance(table, dict) else None,
    }
    logprobs: dict[str, Any] = {
        name: [clean(value) for value in row[name]]
        for name, clean in cleaners.items()
        if isinstance(row.get(name), list)
    }
    if _is_int_list(row.get("text_offset")):
        logprobs["text_offset"] = row["text_offset"]
    return logprobs


def _clean_entry(row: dict[str, Any]) -> dict[str, Any]:
    entry: dict[str, Any] = {"token": row["token"] if isinstance(row.get("token"), str) else ""}
    if "logprob" in row:
        entry["logprob"] = _parse_number(row["logprob"])
    if type(row.get("id")) is int:
        entry["id"] = row["id"]
    if _is_int_list(row.get("bytes")) and all(0 <= number < 256 for number in row["bytes"]):
        entry["bytes"] = row["bytes"]
    alternatives = row.get("top_logprobs")
    if isinstance(alternatives, list):
        entry["top_logprobs"] = [_clean_entry(outcome) for outcome in alternatives if isinstance(outcome, dict)]
    elif isinstance(alternatives, dict):
        entry["top_logprobs"] = [
            {"token": token, "logprob": value} for token, value in _clean_table(alternatives).items()
        ]
    return entry


def _clean_table(table: dict[str, Any]) -> dict[str, float | None]:
    return {token: _parse_number(value) for token, value in table.items()}


def _clean_prompt_logprobs(table: Any) -> dict[str, Any] | None:
    if not isinstance(table, dict):
        return None
    return {
        name: {
            "logprob": _parse_number(row.get("logprob")),
            "decoded_token": row["decoded_token"] if isinstance(row.get("decoded_token"), str) else None,
        }
        for name, row in table.items()
        if isinstance(row, dict)
    }


def _is_int_list(value: Any) -> bool:
    return isinstance(value, list) and all(type(number) is int for number in value)


def _parse_number(value: Any) -> float | None:
    """A number, or a string that contains one; None for any other value, NaN and infinities included."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _clean_value(value: Any) -> Any:
    """The value with valid Unicode strings and with numbers that JSON and int64 can represent."""
    if isinstance(value, str):
        return _replace_surrogates(value)
    if isinstance(value, dict):
        return {_replace_surrogates(key): _clean_value(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_clean_value(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
        return None
    return value


def _replace_surrogates(text: str) -> str:
    """The text with each unpaired surrogate replaced by U+FFFD; a pair becomes the character that it stands for."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _has_surrogate(value: Any) -> bool:
    if isinstance(value, str):
        return _SURROGATE.search(value) is not None
    if isinstance(value, dict):
        return any(map(_has_surrogate, value.values()))
    return isinstance(value, list) and any(map(_has_surrogate, value))
