"""A server that speaks legacy completions and chat completions, and fails as asked: standard library only.

    python tests/support/stub.py --port 8123 --faults 0.05      # a process of its own
    with running(faults=0.05) as server: server.url     # a thread of this one

What it writes depends on the prompt and the seed alone: a few steps and an answer that is right six times out of ten
("What is 3 + 4?"). Each fault strikes the given share of requests, one at most each; the draw is seeded by a counter.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import json
import random
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

FAULTS = (
    "429", "429 retry-after", "500", "503", "half a body", "malformed", "fewer texts", "more texts",
    "entries missing", "no log-probabilities", "slow drip", "reset", "hang",
)  # fmt: skip
WORDS = [b" so", b" we", b" add", b" take", b" both", b" and", b" then", b" it", b" makes", b" of", b" the", b" sum"]


Script = Callable[[dict], tuple[int, bytes, dict[str, str]] | None]  # body -> status, data, headers


@dataclass
class Stub:
    """What it does, and what it saw. `refuses`: parameters that it answers 400 to; `silent`: that it passes over."""

    faults: float = 0.0
    kinds: tuple[str, ...] = FAULTS
    latency: float = 0.0
    length: int = 24  # tokens before the answer
    cap: int = 20
    api_key: str = ""
    refuses: tuple[str, ...] = ()
    silent: tuple[str, ...] = ()
    tempered: bool = False
    wrong: bool = False  # no answer is ever right
    late: bool = False  # of a text that it is given it says other numbers than of what it writes
    poison: str = ""  # a question with this text is answered 400
    dead: bool = False  # everything is answered 500
    reasoning: str = ""
    script: Script | None = None  # what it answers to a request in place of what it would; None: what it would
    stuck: float = 3600.0  # seconds that a hang or a drip lasts
    retry_after: str = "0.02"
    limit: int = 10**9  # more at once than this are answered 429
    seen: list[dict] = field(default_factory=list)
    keep: bool = True
    struck: Counter = field(default_factory=Counter)
    most: int = 0
    written: int = 0  # tokens of answers, prompts counted as bytes / 4
    running: int = 0
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while (head := await reader.readuntil(b"\r\n\r\n")) != b"":
                length = int(re.search(rb"content-length: (\d+)", head, re.I)[1])
                body = json.loads(await reader.readexactly(length))
                self.running += 1
                self.most = max(self.most, self.running)
                try:
                    if not await self.answer(head, body, writer):
                        break
                finally:
                    self.running -= 1
        writer.close()

    async def answer(self, head: bytes, body: dict, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; False if the connection is done for."""
        if self.keep:
            self.seen.append(body)
        if self.latency:
            await asyncio.sleep(self.latency)
        scripted = self.script(body) if self.script else None
        if scripted is not None:
            status, data, headers = scripted
            lines = {"Content-Type": "application/json", "Content-Length": str(len(data)), **headers}
            writer.write(f"HTTP/1.1 {status} X\r\n".encode())
            writer.write("".join(f"{name}: {value}\r\n" for name, value in lines.items()).encode() + b"\r\n" + data)
            await writer.drain()
            return "Connection" not in headers
        refusal = self.refusal(head, body)
        if refusal is not None:
            return _send(writer, *refusal)
        strikes = random.Random(f"{len(self.seen)} {sum(self.struck.values())} {self.written}")
        drawn = strikes.random()
        fault = self.kinds[int(drawn / self.faults)] if self.faults and drawn < self.faults * len(self.kinds) else ""
        if body.get("max_tokens", 99) <= 24:
            fault = ""  # the probe
        self.struck[fault or "none"] += 1
        if fault.startswith("429"):
            return _send(writer, 429, b'{"error": "slow down"}', self.retry_after if "after" in fault else None)
        if fault in ("500", "503"):
            return _send(writer, int(fault), b"oh no")
        if fault == "hang":
            await asyncio.sleep(self.stuck)
            return False
        if fault == "reset":
            writer.transport.abort()
            return False
        data = self.written_body(head, body, fault)
        if fault == "malformed":
            return _send(writer, 200, data[: len(data) // 2])
        if fault == "half a body":
            writer.write(_head(200, len(data)) + data[: len(data) // 2])
            return False
        if fault == "slow drip":
            writer.write(_head(200, len(data)))
            for at in range(0, len(data), 8):
                writer.write(data[at : at + 8])
                await asyncio.sleep(self.stuck / 50)
            return False
        writer.write(_head(200, len(data)) + data)
        return True

    def refusal(self, head: bytes, body: dict) -> tuple[int, bytes] | None:
        if self.dead:
            return 500, b"out of memory"
        if self.running > self.limit:
            return 429, b"too many at once"
        given = (re.search(rb"authorization: bearer (\S+)", head, re.I) or [b"", b""])[1].decode()
        if self.api_key and given != self.api_key:
            return 401, json.dumps({"error": {"message": f"Incorrect API key provided: {given}"}}).encode()
        for name in self.refuses:
            if name in body:
                return 400, json.dumps({"error": {"message": f"Unrecognized request argument: {name}"}}).encode()
        asked = body.get("top_logprobs", body.get("logprobs") or 0)
        if asked > self.cap:
            said = f"Requested sample logprobs of {asked}, greater than max allowed: {self.cap}"
            return 400, json.dumps({"error": {"message": said, "param": "logprobs"}}).encode()
        if self.poison and self.poison in json.dumps(body):
            return 400, b'{"error": {"message": "this model\'s maximum context length is 12 tokens"}}'
        return None

    def scored_body(self, body: dict) -> bytes:
        """The prompt's own words with log-probabilities, and one token more."""
        names = re.findall(r" ?\S+|\s", body["prompt"])
        entries = [entry(name, body["logprobs"], 0.1 if self.late else 1.0) for name in [*names, "<end>"]]
        first = f'{{"token":{json.dumps(names[0])},"logprob":null,"top_logprobs":null}}'
        listing = ",".join([first, *entries[1:]])
        text = json.dumps(body["prompt"])
        return (
            f'{{"choices":[{{"text":{text},"logprobs":{{"content":[{listing}]}},"finish_reason":"length"}}]}}'.encode()
        )

    def written_body(self, head: bytes, body: dict, fault: str) -> bytes:
        if body.get("echo"):
            return self.scored_body(body)
        chat = b"/chat/completions" in head.split(b"\r\n", 1)[0]
        prompt = body["messages"][-1]["content"] if chat else body["prompt"]
        n = 1 if "n" in self.silent else body.get("n", 1)
        n = n - 1 if fault == "fewer texts" and n > 1 else n + 1 if fault == "more texts" else n
        asked = body.get("top_logprobs") if chat else body.get("logprobs")
        if "logprobs" in self.silent or fault == "no log-probabilities":
            asked = None
        temperature = body["temperature"] if self.tempered and body.get("temperature") else 1.0
        most = body.get("max_tokens", body.get("max_completion_tokens", 10**6))
        texts, spent = [], 0
        for index in range(n):
            text, entries, count = written(
                prompt, body.get("seed", 0) + index, asked or 0, self.length, most, temperature, self.wrong
            )
            if fault == "entries missing" and asked:
                middle = len(entries) // 2
                entries = entries[:middle] + entries[middle + 1 :]
            spent += count
            listing = '{"content":[' + ",".join(entries) + "]}" if asked else "null"
            said = json.dumps(text)
            thought = f',"reasoning_content":{json.dumps(self.reasoning)}' if self.reasoning else ""
            own = f'"message":{{"role":"assistant","content":{said}{thought}}}' if chat else f'"text":{said}'
            reason = "stop" if count < most else "length"
            texts.append(f'{{"index":{index},{own},"logprobs":{listing},"finish_reason":"{reason}"}}')
        self.written += spent + len(prompt) // 4
        usage = f'{{"prompt_tokens":{len(prompt) // 4},"completion_tokens":{spent}}}'
        return f'{{"model":"stub","choices":[{",".join(texts)}],"usage":{usage}}}'.encode()


@functools.lru_cache(65536)
def entry(token: str, k: int, temperature: float) -> str:
    """A token's entry as JSON: its true bytes and k outcomes, the same for every place."""
    value = -0.2 / temperature
    others = [(f" other{i}", (-3.0 - i) / temperature) for i in range(k - 1)]
    tops = ",".join(_outcome(name, p) for name, p in [(token, value), *others])
    return _outcome(token, value)[:-1] + f',"top_logprobs":[{tops}]}}'


def _outcome(token: str, value: float) -> str:
    return f'{{"token":{json.dumps(token)},"logprob":{value},"bytes":{list(token.encode())}}}'


@functools.lru_cache(4096)
def written(
    prompt: str, seed: int, k: int, length: int, most: int, temperature: float, wrong: bool = False
) -> tuple[str, list[str], int]:
    """Text, entries and number of tokens, the end's among them."""
    draw = random.Random(f"{prompt} {seed}")
    answer = sum(map(int, re.findall(r"\d+", prompt.rpartition("uestion: ")[2])[:2]))
    answer += 0 if draw.random() < 0.6 and not wrong else draw.randint(1, 9)
    tokens = [draw.choice(WORDS).decode() for _ in range(length)] + [
        ".",
        "\n",
        "The",
        " answer",
        " is",
        f" {answer}",
        ".",
    ]
    tokens = tokens[:most]
    entries = [entry(token, k, temperature) for token in tokens] if k else []
    if len(tokens) < most:
        entries += [entry("<end>", k, temperature)] if k else []
        return "".join(tokens), entries, len(tokens) + 1
    return "".join(tokens), entries, len(tokens)


def _head(status: int, length: int, retry_after: str | None = None) -> bytes:
    wait = f"Retry-After: {retry_after}\r\n" if retry_after else ""
    return f"HTTP/1.1 {status} X\r\n{wait}Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n".encode()


def _send(writer: asyncio.StreamWriter, status: int, data: bytes, retry_after: str | None = None) -> bool:
    writer.write(_head(status, len(data), retry_after) + data)
    return True


@contextlib.contextmanager
def running(kind: type[Stub] = Stub, **settings) -> Iterator[Stub]:
    """A stub in a thread, on a port of its own; `kind`: a class that extends Stub."""
    stub, loop, started = kind(**settings), asyncio.new_event_loop(), threading.Event()

    async def main() -> None:
        server = await asyncio.start_server(stub.serve, "127.0.0.1", 0, limit=1 << 24)
        stub.port = server.sockets[0].getsockname()[1]
        started.set()
        with contextlib.suppress(asyncio.CancelledError):
            await server.serve_forever()

    thread = threading.Thread(target=lambda: loop.run_until_complete(task), daemon=True)
    task = loop.create_task(main())
    thread.start()
    started.wait(10)
    try:
        yield stub
    finally:
        loop.call_soon_threadsafe(task.cancel)
        thread.join(5)


async def _alone(stub: Stub) -> None:
    server = await asyncio.start_server(stub.serve, "127.0.0.1", stub.port, limit=1 << 24, backlog=512)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    for name, kind in (("port", int), ("faults", float), ("latency", float), ("length", int), ("stuck", float)):
        parser.add_argument(f"--{name}", type=kind, default=getattr(Stub(), name))
    asyncio.run(_alone(Stub(keep=False, **vars(parser.parse_args()))))
