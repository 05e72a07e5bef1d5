"""Finishing: what a server's `finish_reason` means, by whichever of its names.

    >>> [ending(name) for name in ("stop", "COMPLETE", "MAX_TOKENS", "network_error", None, "tired")]
    ['end', 'end', 'length', 'broken', 'unsaid', 'unknown']

A text without a reason is complete if the server counts fewer tokens than it was allowed; without a count, if it closes
with a finished answer sentence. An unknown reason counts as a text that was cut off: what else it may mean nobody can
say, so the probe and the run report it.
"""

from __future__ import annotations

import re
from typing import Final, Literal

from potstill import prompts
from potstill.teachers.openai.body import Body, Usage, spoken

Ending = Literal["end", "string", "length", "filter", "broken", "unsaid", "unknown"]
NAMES: Final[dict[Ending, str]] = {
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
_MEANING: Final[dict[str, Ending]] = {name: kind for kind, names in NAMES.items() for name in names.split()}


def ending(reason: str | None) -> Ending:
    """How a text came to its end."""
    if reason is None or not reason.strip():
        return "unsaid"
    name = "_".join(re.findall(r"[a-z0-9]+", reason.lower()))
    return _MEANING.get(name.removeprefix("finish_reason_").removeprefix("stop_reason_"), "unknown")


def settled(body: Body, most: int) -> Body:
    """The body with a reason for every text that has none. most: tokens that a text was allowed."""
    for choice in body.choices:
        if choice.error:
            choice.finish_reason = "error"
        elif ending(choice.finish_reason) == "unsaid":
            usage = body.usage or Usage()
            count = choice.entries() or usage.completion_tokens  # of all texts: at least as many as of one
            if count is None or (count >= most and not choice.entries() and len(body.choices) > 1):
                choice.finish_reason = "stop" if _closed(spoken(choice)[1]) else "length"
            else:
                choice.finish_reason = "stop" if count < most else "length"
    return body


def unknown(body: Body) -> list[str]:
    """The reasons of a body that have no meaning here."""
    return sorted({choice.finish_reason or "" for choice in body.choices if ending(choice.finish_reason) == "unknown"})


def _closed(text: str) -> bool:
    """Whether a text closes with an answer sentence that has ended."""
    text = text.rstrip()
    return prompts.answer_end(text) == len(text) and text.endswith((".", "!", "?", ")", "]", "}", "$", "*"))
