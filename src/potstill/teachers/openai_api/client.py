"""The HTTP client: it sends one request to one server and reports the outcome.

    >>> parse_reply(b'{"error": {"message": "Rate limit reached", "code": 429}}').outcome
    'busy'

The API key comes from the environment and is sent only in the header of requests. Before a server's message is displayed
or stored, the key and all characters that would move a terminal's cursor are removed from it.
"""

from __future__ import annotations

import asyncio
import datetime
import email.utils
import math
import os
import socket
import ssl
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final
from urllib.parse import urlsplit

import aiohttp

from potstill import progress
from potstill.errors import UserError, escape_hidden
from potstill.http_body import BodyDecoder, BodyTooLarge
from potstill.teachers.openai_api import response, server_errors
from potstill.teachers.openai_api.request import ENDPOINTS, ServerSettings
from potstill.teachers.openai_api.response import ResponseBody
from potstill.teachers.openai_api.server_errors import Outcome, Redactor, ServerError, classify_error

KEEP_ALIVE_SECONDS: Final = 5.0  # an idle connection is closed after this time, because many servers close it then
MAX_MESSAGE_CHARS: Final = 300  # maximum length of a displayed server message
MAX_ERROR_BYTES: Final = 1 << 16  # bytes of an error's body that are read
BYTES_PER_OUTCOME: Final = 512  # maximum bytes of one alternative of a token in a body
MAX_BODY_BYTES: Final = 1 << 30
MAX_WARNINGS: Final = 20  # maximum number of lines about odd behaviour of servers
MAX_RETRY_AFTER: Final = 3600.0  # seconds; a longer Retry-After is shortened to this


@dataclass(frozen=True, slots=True)
class Reply:
    """The result of a request.

    data         the undecoded body of a good response, until `Client.read` decodes it
    parameter    the request parameter that an error names
    retry_after  seconds of the pause that the server requests
    charged      whether the server may have written, and billed, tokens that were not received
    permanent    whether a retry is pointless, because the other side is not an OpenAI-compatible server
    """

    outcome: Outcome
    body: ResponseBody | None = None
    data: bytes | None = None
    message: str = ""
    parameter: str = ""
    retry_after: float | None = None
    charged: bool = False
    permanent: bool = False


class Client:
    """Connections to the servers, with the key in the headers. Call `close` at the end.

    Of the HTTP library only the connect timeout is used, because one timeout here covers the whole response. Bodies are
    decompressed here, and no redirect is followed.
    """

    def __init__(self, settings: ServerSettings) -> None:
        api_key = read_api_key(settings)
        self._redact = Redactor(api_key)
        self._warned: set[str] = set()
        self._headers = {
            "Content-Type": "application/json",
            "User-Agent": "potstill",
            "Accept-Encoding": "gzip, deflate",
        }
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._timeout, self._endpoint = settings.timeout, ENDPOINTS[settings.api]
        # A third of the timeout: connecting and TLS may each take this long, and both must end before the timeout of the
        # whole response, after which the request counts as billed.
        self._connect_timeout = min(10.0, settings.timeout / 3)
        self._proxies = {url: find_proxy(url) for url in settings.urls}
        self._session: aiohttp.ClientSession | None = None
        self.on_reply: Callable[[dict[str, Any], Reply], None] | None = None  # called after each `send`

    def _open_session(self) -> aiohttp.ClientSession:
        """The session, which the library can only open in a running event loop."""
        if self._session is None:
            self._session = aiohttp.ClientSession(
                headers=self._headers,
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_SECONDS),
                timeout=aiohttp.ClientTimeout(total=None, connect=self._connect_timeout, ceil_threshold=math.inf),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
            )
        return self._session

    async def send(self, url: str, body: dict[str, Any], endpoint: str | None = None) -> Reply:
        """Send a request and read its response. Never raises because of a server's behaviour."""
        reply = self.read(await self.post(url, body, endpoint))
        if self.on_reply is not None:
            self.on_reply(body, reply)
        return reply

    async def post(self, url: str, body: dict[str, Any], endpoint: str | None = None) -> Reply:
        """Send a request and read its response as `send` does, but do not decode a good response."""
        address, data = url + (endpoint or self._endpoint), response.encode(body)
        try:
            async with (
                asyncio.timeout(self._timeout),  # the library's timeout restarts with every byte
                self._open_session().post(
                    address, data=data, proxy=self._proxies[url], allow_redirects=False
                ) as http_response,
            ):
                return await self._receive(http_response, body)
        except aiohttp.ConnectionTimeoutError:  # no request was sent
            return Reply("busy", message=f"no connection within {self._connect_timeout:g} s")
        except TimeoutError:
            return Reply("busy", message=f"no complete response within {self._timeout:g} s", charged=True)
        except aiohttp.ClientConnectorError as error:
            message, permanent = _connection_error(error)
            return Reply("away", message=self._clean(message), permanent=permanent)
        except (BodyTooLarge, ValueError) as error:
            return Reply("again", message=self._clean(str(error)), charged=True)
        except (aiohttp.ClientError, OSError) as error:
            return Reply("again", message=self._clean(f"{type(error).__name__} {error}".strip()), charged=True)

    async def _receive(self, http_response: aiohttp.ClientResponse, body: dict[str, Any]) -> Reply:
        status, headers = http_response.status, http_response.headers
        if status == 200 and "event-stream" in headers.get("content-type", "").lower():  # it may never end
            return Reply("again", message="an event stream", charged=True, permanent=True)
        if 300 <= status < 400:
            message = f"HTTP {status}, a redirect to {headers.get('location', 'nothing')}"
            return Reply("stop", message=self._clean(message), permanent=True)
        encoding = headers.get("content-encoding")
        if status == 200:
            unpack = BodyDecoder(encoding, max_response_bytes(body))
            data = b"".join([unpack(chunk) async for chunk in http_response.content.iter_any()])
            if (other_format := _name_other_format(data)) is None:
                return Reply("good", data=data)
            return Reply("again", message=self._clean(other_format), charged=True, permanent=True)
        error = server_errors.read_server_error(await _read_beginning(http_response, encoding))
        wait = parse_retry_after(headers.get("retry-after"), datetime.datetime.now(datetime.UTC))
        message = self._clean(f"HTTP {status} {_error_text(error)}")
        return Reply(classify_error(status, error, wait), message=message, parameter=error.parameter, retry_after=wait)

    def read(self, reply: Reply) -> Reply:
        """The reply with its data decoded."""
        if reply.data is None:
            return reply
        parsed = parse_reply(reply.data)
        if parsed.body is None:
            return replace(parsed, message=self._clean(parsed.message))
        if self._contains_key(reply.data, parsed.body):
            return Reply("again", message="the response contains the API key", charged=True)
        if parsed.body.model is not None:
            parsed.body.model = self._clean(parsed.body.model)
        return parsed

    def _contains_key(self, data: bytes, body: ResponseBody) -> bool:
        """Whether a response contains the key outside the model's name, from which `read` removes it."""
        if self._redact.count(data) > self._redact.count((body.model or "").encode("utf-8", "replace")):
            return True
        texts = (
            text
            for choice in body.choices
            for text in (*response.message_texts(choice), choice.finish_reason, choice.error)
            if text
        )
        return any(self._redact.count(str(text).encode("utf-8", "replace")) for text in texts)

    def _clean(self, text: str) -> str:
        """A server's message for display. The key is removed first, because truncation could leave a part of the key."""
        return to_one_line(self._redact(text))

    def warn(self, message: str) -> None:
        """Display a message about a server, once."""
        message = self._redact(message)
        if message not in self._warned and len(self._warned) < MAX_WARNINGS:
            self._warned.add(message)
            progress.print_line(f"teacher   {message}", "yellow")

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()


def find_proxy(url: str) -> str | None:
    """The proxy that the environment names for an address (HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, NO_PROXY)."""
    parts, proxies = urlsplit(url), urllib.request.getproxies()
    if urllib.request.proxy_bypass(parts.hostname or ""):
        return None
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if proxy is None or urlsplit(proxy).scheme in ("http", "https"):
        return proxy
    raise UserError(
        "only proxies with http:// or https:// can be used",
        code="E-teacher-proxy",
        where=f"the environment's proxy for {url}",
        found=f"{urlsplit(proxy).scheme or 'no scheme'}, {urlsplit(proxy).hostname}",
        hint="set another proxy, or list the host in the environment variable NO_PROXY",
    )


def to_one_line(text: str) -> str:
    """A server's message in one line of at most MAX_MESSAGE_CHARS characters, with control characters made visible."""
    return " ".join(escape_hidden(text).split())[:MAX_MESSAGE_CHARS]


def _name_other_format(data: bytes) -> str | None:
    """The name of the format of a body that cannot be JSON; None for any other body."""
    start = data[:512].lstrip()
    if start.startswith((b"data:", b"event:", b": ")):
        return "an event stream"
    if start.startswith(b"<"):
        return server_errors.read_server_error(data[:MAX_ERROR_BYTES]).message
    return None


async def _read_beginning(http_response: aiohttp.ClientResponse, encoding: str | None) -> bytes:
    """The first bytes of an error's body."""
    try:
        unpack, parts = BodyDecoder(encoding, MAX_ERROR_BYTES), []
        async for chunk in http_response.content.iter_any():
            try:
                parts.append(unpack(chunk))
            except BodyTooLarge:
                parts.append(chunk[:MAX_ERROR_BYTES] if encoding is None else b"")
                break
        return b"".join(parts)[:MAX_ERROR_BYTES]
    except (ValueError, aiohttp.ClientError, OSError):
        return b""


def max_response_bytes(body: dict[str, Any]) -> int:
    """The maximum size in bytes of the response to a request."""
    tokens = body.get("n", 1) * (body.get("max_tokens") or body.get("max_completion_tokens") or 1)
    prompt = body.get("prompt") or "".join(str(turn) for turn in body.get("messages", ()))
    alternatives = max(int(body.get(name) or 0) for name in ("logprobs", "top_logprobs", "prompt_logprobs"))
    return min(MAX_BODY_BYTES, (1 << 22) + (tokens + len(str(prompt))) * (alternatives + 2) * BYTES_PER_OUTCOME)


def parse_reply(data: bytes) -> Reply:
    """The reply in the body of a response with status 200."""
    try:
        body = response.decode_body(data)
    except response.DECODE_ERRORS as error:
        return Reply("again", message=f"the response cannot be decoded: {error}", charged=True)
    if body.error and not body.choices:
        error = server_errors.parse_error(body.error)
        no_credit = server_errors.is_out_of_credit(error)
        outcome = "stop" if no_credit else classify_error(server_errors.error_status(error), error)
        message = f"an error in a response with status 200: {_error_text(error)}"
        # A server that refuses the request or names a limit has written no tokens.
        return Reply(outcome, message=message, parameter=error.parameter, charged=outcome == "again")
    return Reply("good", body)


def _error_text(error: ServerError) -> str:
    names_code = error.code.lower() in server_errors.NO_CREDIT_CODES and error.code not in error.message
    return f"{error.message} ({error.code})" if names_code else error.message


def _connection_error(error: aiohttp.ClientConnectorError) -> tuple[str, bool]:
    """The reason for a failed connection, and whether a retry is pointless."""
    cause = getattr(error, "certificate_error", None) or error.os_error
    if isinstance(cause, socket.gaierror):
        unknown_host = cause.errno in (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME))
        return f"no connection: {cause.strerror}", unknown_host
    if isinstance(cause, ssl.SSLError | ssl.CertificateError):
        return f"no connection: {cause}", True
    return f"no connection: {cause.strerror or cause}", False


def parse_retry_after(header: str | None, now: datetime.datetime) -> float | None:
    """The seconds of a Retry-After header (a number or a date), at most one hour; None without a valid header.

    >>> now = datetime.datetime(2026, 10, 21, 7, 27, 30, tzinfo=datetime.UTC)
    >>> parse_retry_after("Wed, 21 Oct 2026 07:28:00 GMT", now)
    30.0
    """
    if not header:
        return None
    try:
        seconds = float(header)
    except ValueError:
        try:
            date = email.utils.parsedate_to_datetime(header)
            seconds = ((date if date.tzinfo else date.replace(tzinfo=datetime.UTC)) - now).total_seconds()
        except (ValueError, TypeError, OverflowError):  # the date is outside the calendar
            return None
    return None if math.isnan(seconds) else min(max(0.0, seconds), MAX_RETRY_AFTER)


def read_api_key(settings: ServerSettings) -> str:
    """The API key from the environment; empty if the recipe names no variable.

    Raises UserError if the variable is missing or cannot be a key. The error does not contain the key.
    """
    name, where = settings.key, "teacher.server.key"
    if name is None:
        return ""
    api_key = os.environ.get(name, "").strip()
    if not api_key:
        found, hint = (
            f"{name} is not set",
            f"put the key into the environment variable {name}; potstill does not store it",
        )
        raise UserError("the API key is missing", code="E-teacher-missing-key", where=where, found=found, hint=hint)
    invalid = next((letter for letter in api_key if not "!" <= letter <= "~"), None)
    if invalid is not None:
        raise UserError(
            "the API key contains an invalid character",
            code="E-teacher-invalid-key",
            where=where,
            found=f"{name} has {len(api_key)} characters, among them U+{ord(invalid):04X}",
            hint=f"put only the key into {name}: one line, without surrounding spaces and quotation marks",
        )
    return api_key
