"""Batch files: chains from a batch are stored like chains from a server, in whatever order and form they come back."""

from __future__ import annotations

import contextlib
import itertools
import json
import random
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from typer.testing import CliRunner

import stub
import tiny
from batch_service import served
from crashing import Crash, crash
from potstill import cli, runner, storage
from potstill.data import run_questions
from potstill.errors import UserError
from potstill.records import Prompt, Question
from potstill.storage import atomic, manifest, parquet, segments
from potstill.storage.segments import Shard
from potstill.teachers.openai_api import batch_api
from potstill.teachers.openai_api.request import Capabilities, ServerSettings
from potstill.teachers.openai_api.token_entries import ReaderContext

ASKED, SAMPLES = 4, 10  # training questions of the tiny world


def changes(url: str, *more: str) -> list[str]:
    return [
        tiny.SERVER, f"teacher.samples={SAMPLES}", "teacher.max_tokens=64",
        f"teacher.server.urls=['{url}']", "teacher.server.samples_per_request=4", *more,
    ]  # fmt: skip


def asked(world: Path, run_dir: Path, url: str, name: str, *more: str) -> list[dict[str, Any]]:
    """The requests that the run at `at` writes now."""
    runner.run_batch(tiny.recipe(world, *changes(url, *more)), out=run_dir.parent / name, run_dir=run_dir)
    found = sorted((run_dir.parent / name).glob("*")) if (run_dir.parent / name).exists() else []
    assert all(path.name.startswith("requests-") for path in found)
    return [row for path in found for _, row in storage.read_jsonl(path)]


def read(world: Path, run_dir: Path, lines: list[bytes], *more: str, split: int = 1) -> Path:
    """The run after it was given results, in so many files; no server is there any more."""
    paths = [run_dir.parent / f"results-{part}.jsonl" for part in range(split)]
    for part, path in enumerate(paths):
        path.write_bytes(b"".join(lines[part::split]))
    runner.run_batch(tiny.recipe(world, *changes("http://127.0.0.1:9/v1", *more)), paths, run_dir=run_dir)
    return run_dir / "sample"


def chains(folder: Path) -> bytes:
    return (folder / "chains.parquet").read_bytes()


def spent(folder: Path) -> dict[str, float]:
    rows = [row for _, row in storage.read_jsonl(folder.parent / "spent-0000.jsonl")]
    return {name: sum(row.get(name, 0) for row in rows) for name in ("requests", "prompt_tokens", "completion_tokens")}


@pytest.fixture(scope="module")
def live(world: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """The stage as it samples at once, and the bodies that it sent."""
    with stub.running() as server:
        run_dir = tiny.make(world, tmp_path_factory.mktemp("live") / "run", *changes(server.url), until="sample")
    return run_dir / "sample", [body for body in server.seen if body["max_tokens"] == 64]


def test_the_same_requests_and_of_their_answers_the_same_chains(world: Path, tmp_path: Path, live) -> None:
    """Shuffled, in three files; the server is gone when they are read and sealed."""
    with stub.running() as server:
        requests = asked(world, tmp_path / "run", server.url, "out")
        lines = served(server, requests)
    assert sorted(map(json.dumps, (row["body"] for row in requests))) == sorted(map(json.dumps, live[1]))
    names = [row["custom_id"] for row in requests]
    assert len(set(names)) == len(names) == ASKED * 3 and max(map(len, names)) <= 64
    assert {row["url"] for row in requests} == {"/v1/completions"}
    random.Random(1).shuffle(lines)
    folder = read(world, tmp_path / "run", lines, split=3)
    same = chains(folder) == chains(live[0])
    assert same and segments.segment_paths(folder) == []
    one, other = (manifest.read_finished(each) for each in (folder, live[0]))
    assert one is not None and other is not None and one.counts == other.counts
    assert spent(folder) == spent(live[0])
    assert read(world, tmp_path / "run", lines) == folder, "too late: nothing changes"


def test_chat_without_log_probabilities(world: Path, tmp_path: Path) -> None:
    """A paid reasoning model, which refuses parameters: the probe finds out which, the requests leave them out."""
    more = ("teacher.server.api=chat", "teacher.top_logprobs=0")
    with stub.running(refuses=("top_k", "min_p"), reasoning="It is 4.") as server:
        run_dir = tiny.make(world, tmp_path / "live", *changes(server.url, *more), until="sample")
        requests = asked(world, tmp_path / "run", server.url, "out", *more)
        lines = served(server, requests)
    assert {row["url"] for row in requests} == {"/v1/chat/completions"} and "top_k" not in requests[0]["body"]
    same = chains(read(world, tmp_path / "run", lines, *more)) == chains(run_dir / "sample")
    assert same


def test_what_is_missing_is_asked_again_and_nothing_else(world: Path, tmp_path: Path, capfd) -> None:
    """Some results have not come, some expired, some failed, some have fewer texts; twice, then all is well."""
    run_dir, kinds = tmp_path / "run", itertools.cycle(["good", "absent", "expired", "500", "fewer", "no body"])

    def change(row: dict[str, Any]) -> dict[str, Any] | None:
        kind = next(kinds)
        if kind == "absent":
            return None
        if kind == "expired":
            return row | {"response": None, "error": {"code": "batch_expired", "message": "too late"}}
        if kind == "500":
            return row | {"response": {"status_code": 500, "body": {"error": {"message": "oh no"}}}}
        if kind == "fewer":
            row["response"]["body"]["choices"].pop()
        if kind == "no body":  # as vLLM tells of a fault
            return row | {"response": {"status_code": 500, "body": None}, "error": {"error": {"message": "oh dear"}}}
        return row

    rounds = []
    with stub.running() as server:
        requests = asked(world, run_dir, server.url, "out-0")
        probes = len(server.seen)
        while requests:
            rounds.append(requests)
            lines = served(server, requests, change if len(rounds) < 3 else lambda row: row)
            folder = read(world, run_dir, lines)
            before = tiny.contents(folder)
            read(world, run_dir, [*lines, *lines])
            same = tiny.contents(folder) == before
            assert same, "a result that is read again brings nothing and costs nothing"
            requests = asked(world, run_dir, server.url, f"out-{len(rounds)}")
    assert probes + sum(map(len, rounds)) == len(server.seen), "nothing but the first round asks the server itself"
    assert len(rounds) == 3
    first, second = ({row["custom_id"]: row["body"] for row in rounds[n]} for n in (0, 1))
    assert sum(name in first for name in second) == 4, "absent and expired: the same request again"
    assert not {body["seed"] for name, body in second.items() if name not in first} & {
        b["seed"] for b in first.values()
    }
    keys = [chain.key for chain in parquet.read_chains(run_dir / "sample" / "chains.parquet")]
    assert len(keys) == len(set(keys)) == ASKED * SAMPLES
    output = capfd.readouterr().err
    assert (
        "batch_expired too late" in output and "HTTP 500 oh dear" in output and "fewer texts than requested" in output
    )
    assert "some chains are not stored yet" in output


def test_a_table_of_the_server_is_sealed_without_it(world: Path, tmp_path: Path, live) -> None:
    """Half of the chains by file, the others at once; a run that has all is sealed by itself."""
    run_dir = tmp_path / "run"
    with stub.running() as server:
        lines = served(server, asked(world, run_dir, server.url, "out")[::2])
        assert not (read(world, run_dir, lines) / "chains.parquet").exists()
        tiny.make(world, run_dir, *changes(server.url), until="sample")
        same = chains(run_dir / "sample") == chains(live[0])
        assert same
        assert len(server.seen) < 3 * ASKED + 12, "what had come by file was not asked again"


def test_enough_right_chains_end_a_question(world: Path, tmp_path: Path) -> None:
    run_dir, more = tmp_path / "run", ("teacher.enough=3", "teacher.samples=40", "teacher.server.samples_per_request=2")
    with stub.running() as server:
        for number in range(12):
            requests = asked(world, run_dir, server.url, f"out-{number}", *more)
            if not requests:
                break
            assert len(requests) == len({row["body"]["prompt"] for row in requests}), "one request a question"
            read(world, run_dir, served(server, requests), *more)
    assert manifest.read_finished(run_dir / "sample") is not None and 1 < number < 8


def test_refused_questions_are_told_and_can_be_skipped(world: Path, tmp_path: Path, capfd) -> None:
    run_dir = tmp_path / "run"
    with stub.running() as server:
        requests = asked(world, run_dir, server.url, "out")
        server.poison = re.findall(r"Tom has .* pens and gets \d+ ", requests[0]["body"]["prompt"])[-1]
        lines = served(server, requests)
    folder = read(world, run_dir, lines)
    assert not (folder / "chains.parquet").exists()
    assert "3 results: HTTP 400 this model's maximum context length" in capfd.readouterr().err
    again = asked(world, run_dir, "http://127.0.0.1:9/v1", "again")
    assert {row["body"]["prompt"] for row in again} == {requests[0]["body"]["prompt"]}
    read(world, run_dir, lines, "teacher.server.refused=skip")
    assert parquet.count_rows(folder / "chains.parquet") == (ASKED - 1) * SAMPLES


def test_a_service_that_refuses_everything(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not for the questions, then: none is skipped afterwards."""
    monkeypatch.setattr(batch_api, "MAX_REFUSED", 3)
    run_dir, more = tmp_path / "run", "teacher.server.refused=skip"
    with stub.running() as server:
        requests = asked(world, run_dir, server.url, "out", more)
        server.poison = "pens"
        with pytest.raises(UserError, match=r"refused 4 questions[^\n]*\n.*context length"):
            read(world, run_dir, served(server, requests), more)
    assert len(asked(world, run_dir, server.url, "again", more)) == len(requests)


def test_what_is_no_result_of_this_run_is_named_by_file_and_line(world: Path, tmp_path: Path) -> None:
    with stub.running() as server:
        requests = asked(world, tmp_path / "run", server.url, "out")
        others = asked(world, tmp_path / "other", server.url, "others", "seed=4")
        lines, strange = served(server, requests), served(server, others)
    run_dir = tmp_path / "run"
    for line, message in (
        (strange[0], "results-0.jsonl line 3: the result belongs to another run"),
        (
            b'{"custom_id": "mine-1", "error": "x"}\n',
            "line 3: the result belongs to another run\n  found: custom_id mine-1; the ids",
        ),
        (lines[2][:60] + b"\n", "results-0.jsonl line 3: the line is not a complete result"),
        (b"[]\n", "results-0.jsonl line 3: the line is not a complete result"),
        (
            json.dumps(requests[2]).encode() + b"\n",
            "line 3: the line has neither a response nor an error\n  found: a request",
        ),
    ):
        with pytest.raises(UserError) as raised:
            read(world, run_dir, [*lines[:2], line, *lines[2:4]])
        assert message in str(raised.value) and "hint: " in str(raised.value)
        assert len(segments.stored_keys(segments.segment_paths(run_dir / "sample"))) == len(
            {key for row in requests[:2] for key in _keys(row)}
        ), "what came before it is stored"
    with pytest.raises(UserError, match="E-run-no-batch"):
        read(world, tmp_path / "new", lines)
    with pytest.raises(UserError, match="E-storage-folder-exists"):
        asked(world, run_dir, server.url, "out")


def _keys(request: dict[str, Any]) -> list[tuple[int, int]]:
    name = batch_api.parse_custom_id(request["custom_id"])
    assert name is not None
    return [(name[1], index) for index in name[2]]


def test_a_ceiling_leaves_requests_out(world: Path, tmp_path: Path, capfd) -> None:
    run_dir, most = tmp_path / "run", "teacher.budget={tokens: 700, prices: {prompt: 1, completion: 2}}"
    with stub.running() as server:
        requests = asked(world, run_dir, server.url, "out", most)
        output = capfd.readouterr().err
        assert (
            len(requests) == 2
            and "2 requests for 8 chains" in output
            and "the budget allows only these requests" in output
        )
        assert "at most 512 in answers" in output and "cost      at most about 0.00, at 1 and 2" in output
        read(world, run_dir, served(server, requests), most)
        assert spent(run_dir / "sample")["completion_tokens"] > 200
        with pytest.raises(UserError, match="E-teacher-budget-spent"):
            for number in itertools.count():
                read(world, run_dir, served(server, asked(world, run_dir, server.url, f"out-{number}", most)), most)


@pytest.mark.parametrize("more", [(), ("teacher.enough=4",)], ids=["all", "enough"])
def test_a_crash_at_every_operation(world: Path, tmp_path: Path, more: tuple[str, ...]) -> None:
    """Written and read again after each: the same requests, the same chains, no bill twice."""
    run_dir, crashes, rounds = tmp_path / "run", list[int](), 0
    with stub.running() as server:
        live = tiny.make(world, tmp_path / "live", *changes(server.url, *more), until="sample") / "sample"
        while not (run_dir / "sample" / "chains.parquet").exists():
            name, rounds = f"out-{rounds}", rounds + 1
            crashes.append(again(partial(_asked_once, world, run_dir, server.url, name, *more)))
            requests = [row for _, row in storage.read_jsonl(tmp_path / name / "requests-0001.jsonl")]
            crashes.append(again(partial(read, world, run_dir, served(server, requests), *more)))
    assert crashes[0] > 8 and sum(crashes[1::2]) > 8 and rounds > len(more)
    same = chains(run_dir / "sample") == chains(live)
    assert same
    billed = [name for row in storage.read_complete_lines(run_dir / "spent-0000.jsonl") for name in row.get("ids", ())]
    assert len(billed) == len(set(billed)) > 0, "a crash may lose a bill, and writes none twice"


def _asked_once(world: Path, run_dir: Path, url: str, name: str, *more: str) -> None:
    if not (run_dir.parent / name).exists():
        asked(world, run_dir, url, name, *more)


@pytest.mark.parametrize("shard", [segments.UNSHARDED, Shard(2, 3)], ids=str)
def test_a_torn_segment_does_not_keep_enough_from_being_counted(world: Path, tmp_path: Path, shard: Shard) -> None:
    """The process was killed while it stored a chain: its own segment, or one that somebody else goes on with."""
    run_dir, more = tmp_path / "run", ("teacher.enough=2", "teacher.samples=40", "teacher.server.samples_per_request=2")
    with stub.running() as server:
        recipe = tiny.recipe(world, *changes(server.url, *more))
        with pytest.raises(Crash), _torn(segments.segment_name(shard)):
            runner.run_shard(recipe, shard, run_dir=run_dir)
        torn = run_dir / "sample" / segments.segment_name(shard)
        assert torn.stat().st_size and not torn.read_bytes().endswith(b"\n")
        runner.run_shard(recipe, Shard(1, 3), run_dir=run_dir)  # beside a process that may be in the middle of a line
        requests = asked(world, run_dir, server.url, "out", *more)
        assert 0 < len(requests) <= ASKED
        read(world, run_dir, served(server, requests[:1]), *more)
        tiny.make(world, run_dir, *changes(server.url, *more), until="sample")
    keys = [chain.key for chain in parquet.read_chains(run_dir / "sample" / "chains.parquet")]
    assert len(set(keys)) == len(keys) and {name for name, _, _ in keys} == {
        question.id for question in run_questions.read_questions(run_dir, recipe.questions.train, "train")
    }


@contextlib.contextmanager
def _torn(name: str) -> Iterator[None]:
    """A crash in the middle of the first line that is appended to a file of this name."""

    def stop(operation: str, moment: str, path: Path) -> None:
        if (moment, path.name) == ("middle", name):
            raise Crash

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(atomic, "crash", stop)
        yield


def again(work: Callable[[], object]) -> int:
    """Do it until it ends well, with a crash at the first moment, then at the second, ...; how many there were."""
    for number in itertools.count():
        try:
            with crash(number):
                work()
            return number
        except Crash:
            pass
    raise AssertionError


def test_files_hold_no_more_than_they_may(tmp_path: Path) -> None:
    rows = [b"x" * size + b"\n" for size in (5, 90, 5, 5, 5, 5)]
    paths = atomic.write_rolling_files(tmp_path / "out", iter(rows), "requests", max_lines=3, max_bytes=97)
    assert [path.read_bytes().count(b"\n") for path in paths] == [2, 3, 1]
    assert b"".join(path.read_bytes() for path in paths) == b"".join(rows)
    assert atomic.write_rolling_files(tmp_path / "none", iter(()), "requests", max_lines=1, max_bytes=1) == []
    assert not (tmp_path / "none").exists()


def test_ids_say_everything() -> None:
    for indices in ((0,), (7,), (0, 1, 2, 3), (40, 42, 79), tuple(range(900, 1000))):
        name = batch_api.format_custom_id("0123456789ab", 298919, indices, 12)
        assert len(name) <= 64 and batch_api.parse_custom_id(name) == ("0123456789ab", 298919, indices, 12)
    assert all(
        batch_api.parse_custom_id(text) is None
        for text in ("", "request-1", "0123456789ab-1-0-0-0", "0123456789ab-1-0-f")
    )


@given(
    per_request=st.integers(1, 400), samples=st.integers(1, 500), stored=st.sets(st.integers(0, 499), max_size=40),
    number=st.integers(0, 10**9 - 1), first=st.integers(0, 10**9 - 1), tries=st.integers(0, 10**5 - 1),
)  # fmt: skip
@example(per_request=257, samples=257, stored=set(), number=10**9 - 1, first=10**9 - 1, tries=10**5 - 1)
@hypothesis.settings(max_examples=40)
def test_every_id_is_short_and_is_read_back(per_request, samples, stored, number, first, tries) -> None:
    """However many chains a request may have; of the first question as of the last that a run could have."""
    settings = ServerSettings("m", samples=samples, samples_per_request=per_request, top_logprobs=0)
    question, tag, asked = Question("q", "2 + 2?", "4", "s", "train", "number"), "0123456789ab", list[int]()
    before = batch_api.FailedResults(tries={(0, index): tries for index in range(samples)})
    reader = ReaderContext("openai", "none")
    batch = batch_api.Batch(tag, settings, Capabilities(), reader, [question], lambda _: Prompt(()), before)
    done = {("q", "openai", index) for index in stored}
    for line in batch.iter_request_lines(done, {}):
        row = json.loads(line)
        name = batch_api.parse_custom_id(row["custom_id"])
        assert name is not None and name[:2] == (tag, 0) and name[3] == tries and len(row["custom_id"]) <= 64
        assert row["body"]["n"] == len(name[2]) <= per_request
        asked += name[2]
        far = tuple(first + index - name[2][0] for index in name[2])
        longest = batch_api.format_custom_id(tag, number, far, tries)
        assert len(longest) <= 64 and batch_api.parse_custom_id(longest) == (tag, number, far, tries)
    assert asked == [index for index in range(samples) if index not in stored]


def test_the_command(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    local, human = (
        next(line for line in tiny.RECIPE.splitlines() if line.startswith("teacher:")),
        "teacher: {kind: human}",
    )
    Path("human.yaml").write_text(tiny.RECIPE.replace(local, human) + f"data: {world}\n")
    with pytest.raises(UserError, match=r"teacher\.kind: this teacher is not behind a server\n  found: human"):
        sample("human.yaml", "--batch-out", "out")
    with stub.running() as server:
        tiny.make(world, Path("run"), *changes(server.url), until="collect")
        result = sample("run", "--batch-out", "out")
        requests = [row for _, row in storage.read_jsonl(Path("out/requests-0001.jsonl"))]
        storage.write_file(Path("results/a.jsonl"), b"".join(served(server, requests)))
    with pytest.raises(UserError, match="E-cli-batch-shard"):
        sample("run", "--batch-in", "results", "--shard", "1/2")
    with pytest.raises(UserError, match="a folder without"):
        sample("run", "--batch-in", "results", "--batch-in", "run/sample")
    result += sample("run", "--batch-in", "results", "--batch-out", "more")
    assert "1 files in out: 12 requests for 40 chains" in result and "40 chains read, 40 stored in total" in result
    assert parquet.count_rows(Path("run/sample/chains.parquet")) == ASKED * SAMPLES and not Path("more").exists()


def sample(*arguments: str) -> str:
    """What the command says."""
    return CliRunner().invoke(cli.app, ["sample", *arguments], catch_exceptions=False).stderr
