"""Faults around sampling: disk, permissions, clock, a second process. Each gives one clear message, and no chain is lost or
doubled. Other libraries read the table of chains."""

from __future__ import annotations

import datetime
import errno
import itertools
import os
import time
from pathlib import Path

import pytest

import stub
import tiny
from fork_server import exit_code, start
from potstill import storage
from potstill.data import contamination, load_set
from potstill.errors import UserError
from potstill.recipe.teacher import FilterSection
from potstill.records import END, Chain
from potstill.storage import atomic, parquet, run_folder
from potstill.teachers.openai_api import scheduler

ASKED = 4  # training questions of the tiny world
SAMPLES = 40
RULES = FilterSection()


def changes(url: str) -> list[str]:
    return [
        tiny.SERVER, f"teacher.samples={SAMPLES}", "teacher.max_tokens=64",
        f"teacher.server.urls=['{url}']", "teacher.server.samples_per_request=2", "teacher.server.concurrency=4",
    ]  # fmt: skip


def keys(run: Path) -> list[tuple[str, str, int]]:
    return [chain.key for chain in parquet.read_chains(run / "sample" / "chains.parquet")]


@pytest.mark.parametrize(
    "code, advice",
    [
        (errno.ENOSPC, "free some disk space"),
        (errno.EACCES, "give yourself the permission"),
        (errno.EROFS, "choose a folder on a writable disk"),
    ],
)
def test_a_disk_that_refuses_while_chains_arrive(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, advice: str
) -> None:
    """In the middle of a write, some of which it took: what was whole before stays and is not asked again."""
    plain, writes = atomic.Appender._write, itertools.count()

    def refusing(self: atomic.Appender, data: bytes) -> None:
        if self.path.name.startswith("segment") and next(writes) >= 5:
            plain(self, data[: len(data) // 3])
            raise OSError(code, os.strerror(code))
        plain(self, data)

    with stub.running(latency=0.01) as server:
        monkeypatch.setattr(atomic.Appender, "_write", refusing)
        with pytest.raises(UserError, match=rf"segment-0000\.jsonl: .*\n  hint: {advice}"):
            tiny.make(world, tmp_path / "run", *changes(server.url), until="sample")
        monkeypatch.setattr(atomic.Appender, "_write", plain)
        lines = (tmp_path / "run" / "sample" / "segment-0000.jsonl").read_bytes()
        arrived = -1
        while arrived != len(server.seen):  # requests that were in flight may arrive a little later
            arrived = len(server.seen)
            time.sleep(0.3)
        stored, asked = lines.count(b"\n"), arrived
        assert stored > 0 and lines.endswith(b"\n")
        run = tiny.make(world, tmp_path / "run", *changes(server.url), until="sample")
    found = keys(run)
    assert len(found) == len(set(found)) == ASKED * SAMPLES
    again = sum(body["n"] for body in server.seen[asked:] if body["max_tokens"] == 64)
    assert again == ASKED * SAMPLES - stored


@pytest.mark.parametrize("unread", [0, 3])
def test_a_server_that_is_faster_than_the_reader(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unread: int
) -> None:
    """Only a few responses wait to be decoded, and every chain is stored once."""
    waiting, read = list[int](), scheduler.Scheduler._settle

    def watch(self: scheduler.Scheduler, *args: object) -> None:
        waiting.append(self.unread)
        read(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(scheduler, "MAX_UNREAD", unread)
    monkeypatch.setattr(scheduler.Scheduler, "_settle", watch)
    with stub.running() as server:
        run = tiny.make(world, tmp_path / "run", *changes(server.url), until="sample")
    assert len(set(keys(run))) == len(keys(run)) == ASKED * SAMPLES
    assert max(waiting) <= unread + 1 + 4, "those that were in flight when the limit was reached may follow"


def test_a_clock_that_steps_back(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a day at every look: nothing waits for it, and no request is taken for one of the past."""
    ticks = itertools.count()

    class Clock(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> datetime.datetime:
            return cls(2026, 1, 1, tzinfo=tz) - datetime.timedelta(days=next(ticks))

    monkeypatch.setattr(time, "time", lambda: 2e9 - 86400.0 * next(ticks))
    monkeypatch.setattr(datetime, "datetime", Clock)
    with stub.running(latency=0.01, limit=2, retry_after="0.01") as server:
        run = tiny.make(world, tmp_path / "run", *changes(server.url), until="sample")
    found = keys(run)
    assert len(found) == len(set(found)) == ASKED * SAMPLES
    moments = [row["time"] for _, row in storage.read_jsonl(run / "log.jsonl")]
    assert moments == sorted(moments, reverse=True) and len(moments) > 3


@pytest.mark.slow
def test_two_processes_on_one_run(world: Path, tmp_path: Path) -> None:
    """The second stops with a message and changes nothing; the first continues."""
    run = tmp_path / "run"
    with stub.running(latency=0.3) as server:
        first = start(tiny.make, world, run, *changes(server.url), until="sample")
        segment = run / "sample" / "segment-0000.jsonl"
        while first.is_alive() and not (segment.exists() and segment.stat().st_size):
            time.sleep(0.02)
        with pytest.raises(UserError, match="E-run-locked"):
            tiny.make(world, run, *changes(server.url), until="sample")
        assert exit_code(first) == 0
    found = keys(run)
    assert len(found) == len(set(found)) == ASKED * SAMPLES
    with run_folder.lock_run(run):
        pass  # nobody holds it any more


@pytest.mark.parametrize("library", ["duckdb", "pandas", "datasets"])
def test_others_read_the_chains(tmp_path: Path, library: str) -> None:
    pytest.importorskip(library)
    steps = [[(b"4", -0.5), (b" 5", -1.25)], [(b"\xff", -0.25), (END, -2.5)], [(END, -0.125)]]
    rows = [Chain.from_tokens("q/é", index, [b"4", b"\xff"], steps) for index in range(3)]
    path = tmp_path / "chains.parquet"
    parquet.write_chains(path, [*rows, Chain.from_text("r", 0, "bare", source="human")])
    if library == "duckdb":
        import duckdb  # pyright: ignore[reportMissingImports]

        shown = "question, count(*), sum(len(tokens)), max(candidates[1][1].log_probability)"
        counted = f"select {shown} from '{path}' group by question order by question"
        assert duckdb.sql(counted).fetchall() == [("q/é", 3, 6, -0.5), ("r", 1, 0, None)]
        return
    if library == "pandas":
        import pandas  # pyright: ignore[reportMissingImports]

        table = pandas.read_parquet(path).to_dict("records")
    else:
        import datasets  # pyright: ignore[reportMissingImports]

        table = list(datasets.Dataset.from_parquet(str(path), cache_dir=str(tmp_path / "cache")))
    assert [(row["question"], row["index"]) for row in table] == [("q/é", 0), ("q/é", 1), ("q/é", 2), ("r", 0)]
    first = table[0]
    assert first["content"] == b"4\xff" and [list(span) for span in first["spans"]] == [[0, 1], [1, 2]]
    assert first["candidates"][1][1]["bytes"] is None and first["candidates"][0][1]["log_probability"] == -1.25


def test_the_guard_against_contamination_on_the_real_sets(data: Path) -> None:
    """GSM8K's training questions against everything held out: the default takes none, as no two share nine tenths of
    their runs of eight words; it would take a held-out question with a few words more."""
    train = [q for q in load_set("gsm8k", data) if q.split == "train"]
    sets = ("gsm8k", "multiarith", "asdiv", "svamp")
    held = [q.text for name in sets for q in load_set(name, data) if q.split != "train"]
    near = contamination.overlap_shares({q.id: q.text for q in train}, held)
    assert len(train) == 7473 and len(held) > 5000
    assert [sum(share >= least for share in near.values()) for least in (0.9, 0.7, 0.6, 0.5)] == [0, 0, 3, 4]
    longer = {str(place): f"{text} Show your work." for place, text in enumerate(held) if len(text.split()) > 60}
    shares = contamination.overlap_shares(longer, held)
    assert len(longer) > 200 and all(shares[place] >= RULES.contamination_threshold for place in longer)
