"""Response bodies of OpenAI-compatible servers, decoded into the fields that potstill reads.

    >>> decode_body(b'{"choices": [{"text": " 4", "finish_reason": "stop"}], "usage": null, "id": "x"}').choices[0].text
    ' 4'

One schema serves legacy completions and chat completions. A body that does not follow it is cleaned and decoded again:

    >>> clean_body(b'{"choices": [{"index": null, "text": " 4", "logprobs": {"token_logprobs": [NaN, "-0.5"]}}]}')
    b'{"choices":[{"text":" 4","logprobs":{"token_logprobs":[null,-0.5]}}]}'

Servers written in Python may send NaN and Infinity, which are not JSON. Other servers send numbers as strings, null
instead of a list, or half of a surrogate pair. Cleaning drops every value of a wrong type and keeps the rest. NaN and
infinities become null, which means a hidden log-probability. Half of a surrogate pair becomes U+FFFD, and the choice is
marked as `replaced`.

The many names of finish reasons are mapped to a few meanings:

    >>> [read_finish_reason(name) for name in ("stop", "COMPLETE", "MAX_TOKENS", "network_error", None, "tired")]
    ['end', 'end', 'length', 'broken', 'unsaid', 'unknown']
"""

from __future__ import annotations

import json
import math
import re
import types
from typing import Any, Final, Literal, get_args, get_origin

import msgspec

from potstill import prompts

ERROR_FIELDS: Final = ("error", "errors", "detail", "message", "msg", "base_resp")
THOUGHT_TYPES: Final = ("thinking", "reasoning", "thought", "reasoning_text", "redacted_thinking")
TEXT_FIELDS: Final = ("text", "content", "thinking", "reasoning", "summary", "output_text")
COMPLETION_TOKENS_KEY: Final = b'"completion_tokens"'
USAGE_WINDOW: Final = 4096  # bytes around that key in which the other count is searched
MAX_COUNT: Final = 10**9  # maximum number of tokens of one request; a larger count is ignored
_SURROGATE: Final = re.compile("[\ud800-\udfff]")


# gc=False: a body has hundreds of these objects, and they form no cycles. The garbage collector would double the time of
# decoding.
class TokenOutcome(msgspec.Struct, gc=False):
    """One alternative of a token position.

    `bytes` stays undecoded until `token_bytes` reads it, because the string usually suffices.
    """

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
    """The answer of a chat model. A field may be a list of parts, some of which are thoughts; see `message_texts`."""

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
    error: Any = None  # an error of this text only
    replaced: bool = False  # set by `clean_body`: half of a surrogate pair was replaced

    def count_entries(self) -> int:
        """The number of tokens that have an entry."""
        if self.logprobs is None:
            return 0
        return len(self.logprobs.content if self.logprobs.content is not None else self.logprobs.tokens or ())


class Usage(msgspec.Struct):
    """Token counts of the server; None without a credible count."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class ResponseBody(msgspec.Struct):
    choices: list[Choice]
    usage: Any = None  # the received JSON; `decode_body` replaces it with a Usage
    model: str | None = None
    error: Any = None


DECODE_ERRORS = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_body_decoder = msgspec.json.Decoder(ResponseBody)
_bytes_decoder = msgspec.json.Decoder(list[int] | None)
encode = msgspec.json.Encoder().encode


def decode_body(data: bytes) -> ResponseBody:
    """The decoded body of a response. It has choices, or an `error` that says why not. Raises one of DECODE_ERRORS."""
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
    """The bytes that the server lists for an outcome; None if it lists no bytes. Raises one of DECODE_ERRORS."""
    numbers = _bytes_decoder.decode(outcome.bytes)
    if numbers is None:
        return None
    if any(not 0 <= number < 256 for number in numbers):
        raise msgspec.ValidationError("a byte is a number from 0 to 255")
    return bytes(numbers)


def message_texts(choice: Choice) -> tuple[str, str]:
    """The thought in a separate field or part of a choice, and the text of the choice; empty if missing.

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
        thought, answer = _flatten(thoughts), _flatten([part for part in answer if part not in thoughts])
    fields = (message.reasoning, message.reasoning_content, message.thinking)
    return next(filter(None, map(_flatten, fields)), thought), answer or ""


def _flatten(value: Any) -> str:
    """The text of a message field, which is a string, a list of parts, or a part."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "".join(map(_flatten, value))
    if isinstance(value, dict):
        return next((text for name in TEXT_FIELDS if (text := _flatten(value.get(name)))), "")
    return ""


def parse_usage(row: Any, data: bytes = b"") -> Usage:
    """The token counts of a body; None for an impossible count, or if `data` contains two different values of a count.

    >>> parse_usage({"prompt_tokens": "5", "completion_tokens": -3}), parse_usage({"input_tokens": 5, "output_tokens": 7.0})
    (Usage(prompt_tokens=5, completion_tokens=None), Usage(prompt_tokens=5, completion_tokens=7))
    """
    if not isinstance(row, dict):
        return Usage()
    # One search shows whether the body contains the key twice; only then is the whole body searched.
    last = data.rfind(COMPLETION_TOKENS_KEY)
    twice = data.find(COMPLETION_TOKENS_KEY, 0, max(last, 0)) >= 0
    searched = data if twice else data[max(0, last - USAGE_WINDOW) : last + USAGE_WINDOW]
    counts = []
    for name, other_name in (("prompt_tokens", "input_tokens"), ("completion_tokens", "output_tokens")):
        key = f'"{name}"'.encode()  # the quotes exclude matches within JSON strings, where quotes are escaped
        values = set(re.findall(key + rb'\s*:\s*("?[^\s,}"]*)', searched)) if searched.count(key) > 1 else ()
        counts.append(_parse_count(row.get(name, row.get(other_name))) if len(values) < 2 else None)
    return Usage(*counts)


def _parse_count(value: Any) -> int | None:
    if isinstance(value, str) and value.isascii() and value.isdecimal():
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MAX_COUNT:
        return None
    return int(value) if value == int(value) else None


# --- Bodies that do not follow the schema


def clean_body(data: bytes) -> bytes:
    """The body as JSON that `ResponseBody` can decode. Raises ValueError or RecursionError if it has no choices."""
    text = data.decode("utf-8", "replace")
    tree = json.loads(text, parse_constant=lambda _: None)
    if not isinstance(tree, dict):
        raise ValueError("a body must be a JSON object")
    if not isinstance(tree.get("choices"), list):
        errors = {name: tree[name] for name in ERROR_FIELDS if tree.get(name)}
        if not errors:
            raise ValueError("the body has no choices")
        tree |= {"choices": [], "error": tree.get("error") or errors}
    invalid_utf8 = len(text.encode("utf-8", "replace")) != len(data)
    body = _fit(tree, ResponseBody)
    for choice in body["choices"]:
        if invalid_utf8 or _has_surrogate([choice.get("text"), choice.get("message")]):
            choice["replaced"] = True
    return encode(_clean_value(body))


def _fit(value: Any, kind: Any) -> Any:
    """The part of a JSON value that fits a type of the schema; None if no part fits."""
    for option in get_args(kind) if isinstance(kind, types.UnionType) else (kind,):
        container, item_type = get_origin(option), (get_args(option) or (None,))[-1]
        if option is Any:
            return value
        if option is float and (number := _parse_number(value)) is not None:
            return number
        if option in (str, int) and type(value) is option:
            return value
        if option is msgspec.Raw and isinstance(value, list) and all(_is_byte(number) for number in value):
            return value
        if container is list and isinstance(value, list):
            items = [_fit(item, item_type) for item in value]
            if item_type is int and None in items:  # without one of its numbers, the list would have another meaning
                return None
            return items if _allows_none(item_type) else [item for item in items if item is not None]
        if container is dict and item_type is not Any and isinstance(value, dict):
            table = {name: _fit(item, item_type) for name, item in value.items()}
            return {name: item for name, item in table.items() if item is not None or _allows_none(item_type)}
        if isinstance(option, type) and issubclass(option, msgspec.Struct) and isinstance(value, dict):
            return _fit_struct(value, option)
    return None


def _allows_none(kind: Any) -> bool:
    return kind is Any or types.NoneType in get_args(kind)


def _fit_struct(row: dict[str, Any], struct: type[msgspec.Struct]) -> dict[str, Any]:
    row = dict(row)
    if struct is Choice:
        if isinstance(row.get("message"), str):
            row["message"] = {"content": row["message"]}
        reason = row.get("finish_reason")
        if isinstance(reason, dict):
            reason = reason.get("type") or reason.get("reason")
        row["finish_reason"] = None if reason is None else str(reason)[:100]
    elif struct is TokenLogprobs and isinstance(row.get("top_logprobs"), dict):
        row["top_logprobs"] = [{"token": name, "logprob": value} for name, value in row["top_logprobs"].items()]
    fitted = {field.name: _fit(row.get(field.name), field.type) for field in msgspec.structs.fields(struct)}
    return {name: value for name, value in fitted.items() if value is not None}


def _is_byte(value: Any) -> bool:
    return type(value) is int and 0 <= value < 256


def _parse_number(value: Any) -> float | None:
    """The value of a number, or of a string that contains a number; None for all other values, NaN and infinities."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _clean_value(value: Any) -> Any:
    """The value with valid Unicode strings, and with numbers that fit JSON and int64."""
    if isinstance(value, str):
        # An unpaired surrogate becomes U+FFFD; a pair becomes its character.
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, dict):
        return {_clean_value(key): _clean_value(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_clean_value(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
        return None
    return value


def _has_surrogate(value: Any) -> bool:
    if isinstance(value, str):
        return _SURROGATE.search(value) is not None
    if isinstance(value, dict):
        return any(map(_has_surrogate, value.values()))
    return isinstance(value, list) and any(map(_has_surrogate, value))


# --- Finish reasons

FinishReason = Literal["end", "string", "length", "filter", "broken", "unsaid", "unknown"]
FINISH_REASONS: Final[dict[FinishReason, str]] = {
    "end": "stop eos eos_token eos_token_id eot end_turn end end_of_text end_of_sequence endoftext complete completed"
    " finish finished done normal success natural stop_token stopped",
    "string": "stop_sequence stop_string stop_word stop_words stop_str word",
    "length": "length max_tokens max_token max_length max_output_tokens max_completion_tokens max_new_tokens"
    " model_length max_tokens_reached token_limit tokens_limit length_limit limit context_length"
    " context_length_exceeded model_context_window_exceeded max_context_length truncated incomplete time_limit",
    "filter": "content_filter content_filtered filter filtered safety image_safety recitation blocklist"
    " prohibited_content spii language refusal moderation sensitive guardrail guardrails guardrail_intervened blocked"
    " error_toxic violation",
    "broken": "error errored network_error insufficient_system_resource insufficient_system_resources server_error"
    " internal_error internal_server_error connection_error system_error engine_error backend_error upstream_error"
    " abort aborted cancel cancelled canceled interrupted timeout timed_out failed failure overloaded preempted"
    " malformed_response error_limit",
    "unsaid": "null none finish_reason_unspecified unspecified",
}  # fmt: skip
_MEANING: Final[dict[str, FinishReason]] = {
    name: kind for kind, names in FINISH_REASONS.items() for name in names.split()
}


def read_finish_reason(reason: str | None) -> FinishReason:
    """The meaning of a server's finish reason."""
    if reason is None or not reason.strip():
        return "unsaid"
    name = "_".join(re.findall(r"[a-z0-9]+", reason.lower()))
    return _MEANING.get(name.removeprefix("finish_reason_").removeprefix("stop_reason_"), "unknown")


def fill_finish_reasons(body: ResponseBody, max_tokens: int) -> None:
    """Set the finish reason of every text that lacks one.

    max_tokens  the limit of each text
    A text is complete if the server counts fewer tokens than the limit. Without a count, it is complete if it ends with
    a complete answer sentence.
    """
    for choice in body.choices:
        if choice.error:
            choice.finish_reason = "error"
        elif read_finish_reason(choice.finish_reason) == "unsaid":
            entries, usage = choice.count_entries(), body.usage or Usage()
            count = entries or usage.completion_tokens  # the server counts all texts
            ambiguous = count is None or (count >= max_tokens and not entries and len(body.choices) > 1)
            complete = _has_complete_answer(message_texts(choice)[1]) if ambiguous else (count or 0) < max_tokens
            choice.finish_reason = "stop" if complete else "length"


def unknown_finish_reasons(body: ResponseBody) -> list[str]:
    """The unknown finish reasons of a body. The texts count as truncated."""
    reasons = {choice.finish_reason or "" for choice in body.choices}
    return sorted(reason for reason in reasons if read_finish_reason(reason) == "unknown")


def _has_complete_answer(text: str) -> bool:
    text = text.rstrip()
    return prompts.find_answer_end(text) == len(text) and text.endswith((".", "!", "?", ")", "]", "}", "$", "*"))
