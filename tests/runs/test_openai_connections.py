"""Connections of the client: proxies of the environment, idle connections that a server closes, certificates."""

from __future__ import annotations

import asyncio
import base64
import shutil
import ssl
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from potstill.errors import UserError
from potstill.teachers.openai_api.client import Client, Reply, find_proxy
from potstill.teachers.openai_api.request import ServerSettings

BODY = b'{"choices": [{"text": " 4"}]}'
GOOD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(BODY), BODY)
REQUEST: dict[str, Any] = {"model": "m", "prompt": "2 + 2 =", "max_tokens": 4}


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


class Server:
    """Answers every request. `close_after`: seconds after an answer when it closes the connection; None: never."""

    def __init__(self, close_after: float | None = None) -> None:
        self.close_after, self.heads, self.connections = close_after, list[bytes](), 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                self.heads.append(head)
                length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length"))
                await reader.readexactly(int(length.split(b":")[1]))
                writer.write(GOOD)
                if self.close_after is not None:
                    await asyncio.sleep(self.close_after)
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        writer.close()


def ask(server: Server, address: str = "http://127.0.0.1:{port}/v1", requests: int = 1, pause: float = 0.0,
        monkeypatch: pytest.MonkeyPatch | None = None, proxy: str = "") -> list[Reply]:  # fmt: skip
    """The replies to requests that follow one another. proxy: the value of HTTP_PROXY, in which {port} is the server's."""

    async def run() -> list[Reply]:
        listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
        port = listening.sockets[0].getsockname()[1]
        if monkeypatch is not None:
            monkeypatch.setenv("HTTP_PROXY", proxy.format(port=port))
        url, replies = address.format(port=port), []
        client = Client(ServerSettings("m", urls=(url,), timeout=5.0))
        for _ in range(requests):
            replies.append(await client.send(url, REQUEST))
            await asyncio.sleep(pause)
        await client.close()
        listening.close()
        return replies

    return asyncio.run(run())


def test_one_connection_serves_requests_that_follow_one_another() -> None:
    server = Server()
    assert [reply.outcome for reply in ask(server, requests=5)] == ["good"] * 5
    assert server.connections == 1


def test_an_idle_connection_that_the_server_closed_costs_no_request() -> None:
    server = Server(close_after=0.02)
    assert [reply.outcome for reply in ask(server, requests=4, pause=0.2)] == ["good"] * 4
    assert server.connections == len(server.heads) == 4


def test_a_connection_that_the_server_closes_under_a_request_counts_as_charged() -> None:
    """The server may have read the request, so it is not sent again without a new reservation."""
    server = Server(close_after=0.1)
    second = ask(server, requests=2)[1]
    assert (second.outcome, second.charged) == ("again", True) and len(server.heads) == 1


def test_a_proxy_of_the_environment_is_used_with_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server()
    proxy = "http://me:secret@127.0.0.1:{port}"
    (reply,) = ask(server, "http://teacher.invalid/v1", monkeypatch=monkeypatch, proxy=proxy)
    assert reply.outcome == "good", reply
    assert server.heads[0].startswith(b"POST http://teacher.invalid/v1/completions ")
    assert b"Proxy-Authorization: Basic " + base64.b64encode(b"me:secret") in server.heads[0]


@pytest.mark.parametrize(
    "environment, url, proxy",
    [
        ({}, "http://a/v1", None),
        ({"HTTP_PROXY": "http://p:1"}, "http://a/v1", "http://p:1"),
        ({"http_proxy": "http://p:1"}, "https://a/v1", None),
        ({"HTTPS_PROXY": "http://p:1"}, "https://a/v1", "http://p:1"),
        ({"ALL_PROXY": "http://p:1"}, "https://a/v1", "http://p:1"),
        ({"HTTP_PROXY": "http://p:1", "NO_PROXY": "b,a"}, "http://a:80/v1", None),
        ({"HTTP_PROXY": "http://p:1", "NO_PROXY": ".b"}, "http://a.b/v1", None),
        ({"HTTP_PROXY": "http://p:1", "NO_PROXY": "*"}, "http://a/v1", None),
        ({"HTTP_PROXY": "http://p:1", "NO_PROXY": "b"}, "http://a/v1", "http://p:1"),
    ],
)
def test_proxies(environment: dict[str, str], url: str, proxy: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert find_proxy(url) == proxy


def test_a_proxy_that_speaks_no_http_is_refused_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5://me:secret@p:1")
    with pytest.raises(UserError) as raised:
        Client(ServerSettings("m", urls=("https://a/v1",)))
    assert raised.value.code == "E-teacher-proxy" and "secret" not in str(raised.value)


def test_a_server_without_tls_is_not_tried_again() -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    assert_refused(refuse, None, "SSL")


def test_a_certificate_that_nobody_signed_is_refused(tmp_path: Path) -> None:
    if (openssl := shutil.which("openssl")) is None:
        pytest.skip("no openssl to make a certificate")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    names = ("-keyout", str(key), "-out", str(certificate), "-subj", "/CN=localhost")
    command = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *names]
    subprocess.run(command, check=True, capture_output=True)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    assert_refused(Server().serve, context, "certificate")


def assert_refused(serve: Callable[..., Awaitable[None]], context: ssl.SSLContext | None, reason: str) -> None:
    """Asserts that a request over TLS fails for good, for this reason, and without cost."""

    async def run() -> Reply:
        listening = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
        url = f"https://localhost:{listening.sockets[0].getsockname()[1]}/v1"
        client = Client(ServerSettings("m", urls=(url,), timeout=30.0))
        reply = await client.send(url, REQUEST)
        await client.close()
        listening.close()
        return reply

    reply = asyncio.run(run())
    assert (reply.outcome, reply.permanent, reply.charged) == ("away", True, False), reply
    assert reason in reply.message
