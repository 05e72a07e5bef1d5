"""The client: one request to one server, and what came of it. The only owner of the HTTP library.

The API key comes from the environment, stands in the header of a request and nowhere else: what a server says is
cleared of it before anybody sees it.
"""

from __future__ import annotations

import asyncio
import datetime
import os
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Final, Literal

import httpx2

from potstill.errors import UserError
from potstill.teachers.openai import body
from potstill.teachers.openai.asking import PATHS, Settings
from potstill.teachers.openai.body import Body
from potstill.teachers.openai.pacing import retry_after

POOL: Final = 8  # connections to one server that a pool keeps

# again: a fault that may pass; busy: the same, and the server has too much to do; refused: this request is wrong;
# stop: every request is
Outcome = Literal["good", "again", "busy", "refused", "stop"]


@dataclass(frozen=True, slots=True)
class Answer:
    """data     of a good answer as long as it is unread
    charged  whether the server may have written (and billed) tokens that nobody saw
    """

    outcome: Outcome
    body: Body | None = None
    data: bytes | None = None
    said: str = ""
    named: str = ""  # the parameter that an error names
    wait: float | None = None  # seconds, if the server asked for them
    charged: bool = False


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

    def __init__(self, settings: Settings) -> None:
        self._key = key(settings)
        headers = {"Content-Type": "application/json", "User-Agent": "potstill"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        self._timeout = settings.timeout
        self._path = PATHS[settings.api]
        secure = any(url.startswith("https:") for url in settings.urls)  # certificates take a while to load
        verify = httpx2.create_ssl_context() if secure else False
        # A third: connecting and TLS may each take so long, and both end before ours does, which is charged.
        self._connect = min(10.0, settings.timeout / 3)
        timeout = httpx2.Timeout(None, connect=self._connect)
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=POOL)
        self._pools = {
            url: [
                _Pool(httpx2.AsyncClient(headers=headers, verify=verify, limits=limits, timeout=timeout))
                for _ in range(-(-settings.concurrency // POOL))
            ]
            for url in settings.urls
        }
        self._addresses: dict[str, httpx2.URL] = {}

    async def ask(self, url: str, request: dict[str, Any], path: str | None = None) -> Answer:
        """Send a request and say what came of it. Raises nothing that a server can cause."""
        return self.read(await self.post(url, request, path))

    async def post(self, url: str, request: dict[str, Any], path: str | None = None) -> Answer:
        """As `ask`, but an answer that has arrived is not yet read."""
        address = url + (path or self._path)
        where = self._addresses.get(address) or self._addresses.setdefault(address, httpx2.URL(address))
        pool = min(self._pools[url], key=_Pool.busy)
        pool.running += 1
        try:
            async with asyncio.timeout(self._timeout):  # a drip of bytes would never let the library's own run out
                response = await pool.client.post(where, content=body.encode(request))
        except TimeoutError:
            return Answer("busy", said=f"no whole answer within {self._timeout:g} s", charged=True)
        except httpx2.ConnectTimeout:  # the only one of the library's own that is used; no request has left
            return Answer("busy", said=f"no connection within {self._connect:g} s")
        except httpx2.RequestError as fault:
            broke = not isinstance(fault, httpx2.ConnectError)
            return Answer("again", said=self._clear(f"{type(fault).__name__} {fault}".strip()), charged=broke)
        finally:
            pool.running -= 1
        status = response.status_code
        if status == 200:
            return Answer("good", data=response.content)
        said, named = body.complaint(response.content)
        said = self._clear(f"HTTP {status} {said}")
        wait = retry_after(response.headers.get("retry-after"), datetime.datetime.now(datetime.UTC))
        return Answer(outcome(status), said=said, named=named, wait=wait)

    def read(self, answer: Answer) -> Answer:
        """The answer with what its data say."""
        if answer.data is None:
            return answer
        found = opened(answer.data)
        return found if found.body is not None else replace(found, said=self._clear(found.said))

    def _clear(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text

    async def close(self) -> None:
        for pool in chain(*self._pools.values()):
            await pool.client.aclose()


def outcome(status: int) -> Outcome:
    """What an HTTP status says of a request. Raises nothing: an unknown one stops."""
    if status == 200:
        return "good"
    if status in (429, 503, 529):
        return "busy"
    if status in (408, 409, 425) or status >= 500:
        return "again"
    return "refused" if status in (400, 413, 422) else "stop"


def opened(data: bytes) -> Answer:
    """The answer that a good status came with."""
    try:
        return Answer("good", body.decode(data))
    except body.Malformed as fault:
        return Answer("again", said=f"no answer that can be read: {fault}", charged=True)


def key(settings: Settings) -> str:
    """The API key that the environment holds, empty if the recipe names none. Raises UserError if it is not there."""
    if settings.key is None:
        return ""
    found = os.environ.get(settings.key, "").strip()
    if not found:
        raise UserError(
            "the API key is not there",
            where="teacher.server.key",
            found=f"{settings.key} is not set",
            do=f"put the key into the environment variable {settings.key}; it is written nowhere",
        )
    return found


def advice(said: str) -> str:
    """What to do about an answer that stops everything."""
    if "HTTP 401" in said or "HTTP 403" in said:
        return "check the key that teacher.server.key names"
    if "HTTP 404" in said:
        return "check teacher.server.urls (they end in /v1), teacher.server.api and the name in teacher.model"
    return "check that the server runs, and teacher.server.urls"
