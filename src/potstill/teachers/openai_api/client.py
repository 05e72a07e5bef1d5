"""The client: one request to one server, and what came of it. The only owner of the HTTP library.

The API key comes from the environment, stands in the header of a request and nowhere else: what a server says is
cleared of it, and of what would move a terminal's cursor, before anybody sees it.
"""

from __future__ import annotations

import asyncio
import datetime
import os
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Final

import httpx2

from potstill import progress
from potstill.errors import UserError, escape_hidden
from potstill.http_body import BodyDecoder, BodyTooLarge
from potstill.teachers.openai_api import response, server_errors
from potstill.teachers.openai_api.rate_limit import parse_retry_after
from potstill.teachers.openai_api.request import ENDPOINTS, ServerSettings
from potstill.teachers.openai_api.response import ResponseBody, encode
from potstill.teachers.openai_api.server_errors import Outcome, Redactor, ServerError, classify_error, hint_for

__all__ = ["Client", "Outcome", "Reply", "classify_error", "hint_for", "parse_reply", "read_api_key"]
CONNECTIONS_PER_POOL: Final = 8  # connections to one server that a pool keeps
MAX_MESSAGE_CHARS: Final = 300  # characters of what a server says that are shown
MAX_ERROR_BYTES: Final = 1 << 16  # bytes of an error's body that are read
BYTES_PER_OUTCOME: Final = 512  # bytes that an outcome of a token may take in a body
MAX_BODY_BYTES: Final = 1 << 30  # bytes of any body
MAX_WARNINGS: Final = 20  # lines about what servers do oddly


@dataclass(frozen=True, slots=True)
class Reply:
    """data     of a good answer as long as it is unread
    charged  whether the server may have written (and billed) tokens that nobody saw
    lasting  whether waiting would not help: what answers is not such a server
    """

    outcome: Outcome
    body: ResponseBody | None = None
    data: bytes | None = None
    said: str = ""
    named: str = ""  # the parameter that an error names
    wait: float | None = None  # seconds, if the server asked for them
    charged: bool = False
    lasting: bool = False


@dataclass(slots=True)
class _Pool:
    client: httpx2.AsyncClient
    running: int = 0

    def busy(self) -> int:
        return self.running


class Client:
    """Connections with the key in their headers; closed with `close`.

    Three things make the library's part of a request cheaper: it looks at every connection of a pool twice a request,
    so there are many small pools; an address is parsed once; and its own timeouts, of which a request starts seven, are
    not used but for the connection's: ours covers the whole answer.
    """

    def __init__(self, settings: ServerSettings) -> None:
        secret = read_api_key(settings)
        self._redact = Redactor(secret)
        self._told: set[str] = set()
        headers = {"Content-Type": "application/json", "User-Agent": "potstill", "Accept-Encoding": "gzip, deflate"}
        if secret:
            headers["Authorization"] = f"Bearer {secret}"
        self._timeout = settings.timeout
        self._path = ENDPOINTS[settings.api]
        secure = any(url.startswith("https:") for url in settings.urls)  # certificates take a while to load
        verify = httpx2.create_ssl_context() if secure else False
        # A third: connecting and TLS may each take so long, and both end before ours does, which is charged.
        self._connect = min(10.0, settings.timeout / 3)
        timeout = httpx2.Timeout(None, connect=self._connect)
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=CONNECTIONS_PER_POOL)
        self._pools = {
            url: [
                _Pool(httpx2.AsyncClient(headers=headers, verify=verify, limits=limits, timeout=timeout))
                for _ in range(-(-settings.concurrency // CONNECTIONS_PER_POOL))
            ]
            for url in settings.urls
        }
        self._addresses: dict[str, httpx2.URL] = {}
        self.heard: Callable[[dict[str, Any], Reply], None] | None = None  # is told of what `ask` brings

    async def ask(self, url: str, request: dict[str, Any], path: str | None = None) -> Reply:
        """Send a request and say what came of it. Raises nothing that a server can cause."""
        answer = self.read(await self.post(url, request, path))
        if self.heard is not None:
            self.heard(request, answer)
        return answer

    async def post(self, url: str, request: dict[str, Any], path: str | None = None) -> Reply:
        """As `ask`, but an answer that has arrived is not yet read."""
        address = url + (path or self._path)
        where = self._addresses.get(address) or self._addresses.setdefault(address, httpx2.URL(address))
        pool = min(self._pools[url], key=_Pool.busy)
        pool.running += 1
        try:
            async with asyncio.timeout(self._timeout):  # a drip of bytes would never let the library's own run out
                sent = pool.client.build_request("POST", where, content=encode(request))
                response = await pool.client.send(sent, stream=True)
                try:
                    return await self._received(response, request)
                finally:
                    await response.aclose()
        except TimeoutError:
            return Reply("busy", said=f"no whole answer within {self._timeout:g} s", charged=True)
        except httpx2.ConnectTimeout:  # the only one of the library's own that is used; no request has left
            return Reply("busy", said=f"no connection within {self._connect:g} s")
        except httpx2.ConnectError as fault:
            said, lasting = _connection_error(fault)
            return Reply("away", said=self._shown(said), lasting=lasting)
        except (BodyTooLarge, ValueError) as fault:
            return Reply("again", said=self._shown(str(fault)), charged=True)
        except (httpx2.RequestError, httpx2.StreamError) as fault:
            return Reply("again", said=self._shown(f"{type(fault).__name__} {fault}".strip()), charged=True)
        finally:
            pool.running -= 1

    async def _received(self, response: httpx2.Response, request: dict[str, Any]) -> Reply:
        status, headers = response.status_code, response.headers
        kind = headers.get("content-type", "").lower()
        if status == 200 and "event-stream" in kind:  # it may have no end
            return Reply("again", said="an event stream", charged=True, lasting=True)
        if 300 <= status < 400:
            said = f"HTTP {status}, which points to {headers.get('location', 'nothing')}"
            return Reply("stop", said=self._shown(said), lasting=True)
        packed = headers.get("content-encoding")
        if status == 200:
            unpack = BodyDecoder(packed, max_response_bytes(request))
            data = b"".join([unpack(chunk) async for chunk in response.aiter_raw()])
            return self._unlike(data) or Reply("good", data=data)
        said = server_errors.read_server_error(await _read_beginning(response, packed))
        wait = parse_retry_after(headers.get("retry-after"), datetime.datetime.now(datetime.UTC))
        found = classify_error(status, said, wait)
        return Reply(found, said=self._shown(f"HTTP {status} {_error_text(said)}"), named=said.named, wait=wait)

    def _unlike(self, data: bytes) -> Reply | None:
        """What to say of a body that is no JSON at all; None for one that may be."""
        begin = data[:512].lstrip()
        if begin.startswith((b"data:", b"event:", b": ")):
            return Reply("again", said="an event stream", charged=True, lasting=True)
        if begin.startswith(b"<"):
            said = server_errors.read_server_error(data[:MAX_ERROR_BYTES]).said
            return Reply("again", said=self._shown(said), charged=True, lasting=True)
        return None

    def read(self, answer: Reply) -> Reply:
        """The answer with what its data say."""
        if answer.data is None:
            return answer
        found = parse_reply(answer.data)
        if found.body is None:
            return replace(found, said=self._shown(found.said))
        if self._repeats(answer.data, found.body):
            return Reply("again", said="an answer that repeats the API key", charged=True)
        if found.body.model is not None:
            found.body.model = self._shown(found.body.model)
        return found

    def _repeats(self, data: bytes, found: ResponseBody) -> bool:
        """Whether the key stands in an answer, but for the model's name, which is cleared of it."""
        if self._redact.count(data) > self._redact.count((found.model or "").encode("utf-8", "replace")):
            return True
        texts = (
            text
            for one in found.choices
            for text in (*response.message_texts(one), one.finish_reason, one.error)
            if text
        )
        return any(self._redact.count(str(text).encode("utf-8", "replace")) for text in texts)

    def _shown(self, text: str) -> str:
        """What a server says, as it may be shown: first without the key, then in one line, then cut."""
        return to_one_line(self._redact(text))

    def tell(self, line: str) -> None:
        """Say something of a server to the person who watches, once."""
        line = self._redact(line)
        if line not in self._told and len(self._told) < MAX_WARNINGS:
            self._told.add(line)
            progress.print_line(f"teacher   {line}", "yellow")

    async def close(self) -> None:
        for pool in chain(*self._pools.values()):
            await pool.client.aclose()


def to_one_line(text: str) -> str:
    """A server's words in one line, of which no character moves a cursor, cut to a length that can be read."""
    return " ".join(escape_hidden(text).split())[:MAX_MESSAGE_CHARS]


async def _read_beginning(response: httpx2.Response, packed: str | None) -> bytes:
    """The first bytes of an error's body, whatever comes behind them."""
    try:
        unpack, parts = BodyDecoder(packed, MAX_ERROR_BYTES), []
        async for chunk in response.aiter_raw():
            try:
                parts.append(unpack(chunk))
            except BodyTooLarge:
                parts.append(chunk[:MAX_ERROR_BYTES] if packed is None else b"")
                break
        return b"".join(parts)[:MAX_ERROR_BYTES]
    except (ValueError, httpx2.RequestError):
        return b""


def max_response_bytes(request: dict[str, Any]) -> int:
    """The most bytes that the answer to a request can have."""
    tokens = request.get("n", 1) * (request.get("max_tokens") or request.get("max_completion_tokens") or 1)
    asked = request.get("prompt") or "".join(str(turn) for turn in request.get("messages", ()))
    shown = max(int(request.get(name) or 0) for name in ("logprobs", "top_logprobs", "prompt_logprobs"))
    return min(MAX_BODY_BYTES, (1 << 22) + (tokens + len(str(asked))) * (shown + 2) * BYTES_PER_OUTCOME)


def parse_reply(data: bytes) -> Reply:
    """The answer that a good status came with."""
    try:
        found = response.decode_body(data)
    except response.DECODE_ERRORS as fault:
        return Reply("again", said=f"no answer that can be read: {fault}", charged=True)
    if found.error and not found.choices:
        said = server_errors.parse_error(found.error)
        what = (
            "stop" if server_errors.is_out_of_credit(said) else classify_error(server_errors.error_status(said), said)
        )
        # It named a refusal or a limit: then it wrote nothing.
        return Reply(what, said=f"an error in a 200: {_error_text(said)}", named=said.named, charged=what == "again")
    return Reply("good", found)


def _error_text(said: ServerError) -> str:
    spent = said.code.lower() in server_errors.NO_CREDIT_CODES and said.code not in said.said
    return f"{said.said} ({said.code})" if spent else said.said


def _connection_error(fault: httpx2.ConnectError) -> tuple[str, bool]:
    """Why there is no connection, and whether there will be none."""
    inner: BaseException | None = fault
    while inner is not None:
        if isinstance(inner, socket.gaierror):
            lasting = inner.errno in (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME))
            return f"no connection: {inner.strerror}", lasting
        if isinstance(inner, ssl.SSLError):
            return f"no connection: {inner}", True
        inner = inner.__cause__ or inner.__context__
    text = str(fault)
    return f"no connection: {text}", "SSL" in text or "CERTIFICATE" in text


def read_api_key(settings: ServerSettings) -> str:
    """The API key that the environment holds, empty if the recipe names none. Raises UserError, without the key, if it
    is not there or cannot be one."""
    if settings.key is None:
        return ""
    found = os.environ.get(settings.key, "").strip()
    if not found:
        raise UserError(
            "the API key is not there",
            where="teacher.server.key",
            found=f"{settings.key} is not set",
            hint=f"put the key into the environment variable {settings.key}; it is written nowhere",
        )
    odd = next((letter for letter in found if not "!" <= letter <= "~"), None)
    if odd is not None:
        raise UserError(
            "the API key holds a character that no key has",
            where="teacher.server.key",
            found=f"{settings.key} has {len(found)} characters, among them U+{ord(odd):04X}",
            hint=f"put the key alone into {settings.key}: one line, without spaces and quotation marks around it",
        )
    return found
