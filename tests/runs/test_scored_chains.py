"""`teacher.score` with a server: existing chains get the server's scores, each asked once whatever the server does and
wherever a process is killed."""

from __future__ import annotations

import contextlib
import json
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import scoring_stub
import stub
import tiny
from crashing import Crash, crash
from fork_server import start
from potstill import dry_run, runner, teachers
from potstill.errors import UserError
from potstill.recipe import Recipe
from potstill.records import Chain, Question
from potstill.storage import ledger, manifest, parquet, segments
from potstill.storage.scores import ScoreStore
from potstill.storage.segments import Shard
from potstill.teachers import SamplingState, UsageMeter
from potstill.teachers.openai_api import teacher as openai_teacher
from scoring_stub import ScoringStub

TABLE = Path("sample") / "chains.parquet"
PRICED = "teacher.budget.prices={prompt: 1.0, completion: 1.0}"
TEXTS = 14  # solutions of the recipe in `human`


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.world(tmp_path_factory.mktemp("world"))


def serving(**settings):
    return stub.running(ScoringStub, **settings)


@contextlib.contextmanager
def small_groups(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Three texts in a batch, and one batch scored at a time: many moments between them."""
    with monkeypatch.context() as patch:
        patch.setattr("potstill.teachers.reference_solutions.BATCH_SIZE", 3)
        patch.setattr(openai_teacher, "GROUP_REQUESTS", 1)
        yield


def human(folder: Path, url: str, *keys: str) -> tuple[str, ...]:
    """A recipe of solutions that the server scores."""
    questions = folder / "sums.jsonl"
    questions.write_text("".join(json.dumps(row) + "\n" for row in tiny.rows("sums", 40)))
    teacher = (
        f"teacher={{kind: human, top_logprobs: 3, score: {{kind: openai, model: m}}, server: {{urls: ['{url}']}}}}"
    )
    return f"sets.sums.file={questions}", teacher, "teacher.server.concurrency=2", *keys


def sample(world: Path, run: Path, folder: Path, url: str, *keys: str) -> bytes:
    """The table of chains of a run."""
    return (tiny.make(world, run, *human(folder, url, *keys), until="sample") / TABLE).read_bytes()


def spent(run: Path) -> float:
    usage = ledger.total_usage(run)
    return usage["prompt_tokens"] + usage["completion_tokens"]


def stored(run: Path) -> int:
    """The number of scores that a run has stored."""
    return sum(len(ScoreStore(path)) for path in (run / "sample" / "scores").rglob("scores*.jsonl"))


# --- Crashes and kills -----------------------------------------------------------------------------------------------


def test_a_crash_at_every_operation_doubles_no_request_and_loses_no_charge(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the server is probed, while texts are scored, between the scores and the chains, and while the table is
    written: the table is the same, and what was stored is not asked again."""
    tiny.make(world, tmp_path / "collected", *human(tmp_path, "http://127.0.0.1:9/v1"), until="collect")
    phases, number, finished = set(), 0, False
    with small_groups(monkeypatch):
        with serving() as server:
            whole = sample(world, tmp_path / "whole", tmp_path, server.url)
            once = server.billed
        while not finished:
            run = tiny.before(tmp_path / "collected", tmp_path / str(number), "sample")
            with serving() as server:
                with crash(number):
                    try:
                        sample(world, run, tmp_path, server.url)
                        finished = True
                    except Crash:
                        pass
                known, at_crash = stored(run), sum(server.scored.values())
                has_table = (run / TABLE).exists()
                phases.add((known > 0, known == TEXTS, has_table))
                assert sample(world, run, tmp_path, server.url) == whole
                again = sum(server.scored.values()) - at_crash
                assert again <= (0 if has_table else TEXTS - known + 3 * (known < TEXTS)), "texts are asked once"
                assert spent(run) >= server.billed, "nothing that was billed is missing"
            assert not (run / "sample" / "scores").exists()
            number += 1 if number < 8 else 7
    assert spent(run) == server.billed == once
    assert phases >= {(False, False, False), (True, False, False), (True, True, False), (True, True, True)}


KILLS = int(os.environ.get("POTSTILL_KILLS", "2"))


@pytest.mark.slow
def test_killed_again_and_again_every_text_is_scored_once(world: Path, tmp_path: Path) -> None:
    """`kill -9` within the first batch, with faults."""
    draw, run, output = random.Random(1), tmp_path / "run", tmp_path / "output"
    with serving() as server:
        whole = sample(world, tmp_path / "whole", tmp_path, server.url)
    with serving(latency=0.1, faults=0.02, stuck=1.0) as server:
        keys = human(tmp_path, server.url, "teacher.server.timeout=2")
        known = 0
        for _ in range(KILLS):
            process = start(tiny.make, world, run, *keys, until="sample", output=output)
            while process.is_alive() and stored(run) == known:
                time.sleep(0.01)
            time.sleep(draw.random() / 10)
            assert process.is_alive(), output.read_text()
            process.kill()
            process.join()
            known = stored(run)
            time.sleep(0.3)  # until the server has ended the requests of the killed process
            assert spent(run) >= server.billed + server.billed_otherwise
            if known > TEXTS - 4:
                break
        assert 0 < known < TEXTS and not segments.segment_paths(run / "sample")[0].read_bytes()
        before = sum(server.scored.values())
        assert sample(world, run, tmp_path, server.url, "teacher.server.timeout=2") == whole
        assert sum(server.scored.values()) - before <= TEXTS - known


# --- Faults ----------------------------------------------------------------------------------------------------------


def solutions(n: int) -> list[Question]:
    return [
        Question(f"s/{i}", f"What is {i} + {i % 7}?", str(i + i % 7), "s", "train", "number", f"{i} + {i % 7} is it.")
        for i in range(n)
    ]


def scored(url: str, questions: list[Question], state: SamplingState, **server) -> list[Chain]:
    server = {"urls": [url], "concurrency": 32, "timeout": 0.5, "patience": 60} | server
    section = {"kind": "human", "top_logprobs": 3, "score": {"kind": "openai", "model": "m"}, "server": server}
    teacher = teachers.from_recipe(Recipe(name="t", teacher=section))
    return [chain for batch in teacher.sample(questions, state) for chain in batch]


@pytest.mark.parametrize(
    "kinds", [scoring_stub.REFUSED + scoring_stub.BROKEN, scoring_stub.UNUSABLE + scoring_stub.ODD]
)
def test_every_fault_at_five_per_cent(tmp_path: Path, kinds: tuple[str, ...]) -> None:
    questions = solutions(150)
    with serving() as server:
        whole = scored(server.url, questions, SamplingState())
    assert len(whole) == 150 and all(chain.semantics == "raw" and not chain.defects for chain in whole)
    with serving(faults=0.05, kinds=kinds, stuck=2.0) as server:
        usage = UsageMeter()
        assert scored(server.url, questions, SamplingState(scores=tmp_path, usage=usage)) == whole
        assert set(server.struck) - {"none"} == set(kinds)
        late = sum(number for message, number in usage.faults.items() if message.startswith("no complete response"))
        assert sum(server.scored.values()) <= 150 + 10 + late, "usable scores are not requested again"
        assert usage.prompt_tokens + usage.completion_tokens >= server.billed + server.billed_otherwise
        requests = len(server.seen)
        assert scored(server.url, questions, SamplingState(scores=tmp_path)) == whole
        assert len(server.seen) == requests, "not even a probe"


def test_a_server_that_goes_away_loses_no_score(tmp_path: Path) -> None:
    """The chains whose scores arrived are returned before the error, and are not asked again."""
    questions = solutions(60)
    with serving(poison="What is 41 + 6?") as server:
        found: list[Chain] = []
        teacher_of = {"concurrency": 2, "timeout": 5}
        with pytest.raises(UserError, match="E-teacher-refused-request"):
            section = {
                **{"kind": "human", "top_logprobs": 3, "score": {"kind": "openai", "model": "m"}},
                "server": {"urls": [server.url], **teacher_of},
            }
            for batch in teachers.from_recipe(Recipe(name="t", teacher=section)).sample(
                questions, SamplingState(scores=tmp_path)
            ):
                found += batch
        assert len(found) == len(ScoreStore(tmp_path / "scores.jsonl")) >= 40
        server.poison, before = "", sum(server.scored.values())
        assert len(scored(server.url, questions, SamplingState(scores=tmp_path), **teacher_of)) == 60
        assert sum(server.scored.values()) - before == 60 - len(found)


# --- Shards ----------------------------------------------------------------------------------------------------------


def test_shards_make_the_table_of_one_process(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if a shard was killed: whoever completes its work reads what it has stored."""
    run = tmp_path / "run"
    with small_groups(monkeypatch):
        with serving() as server:
            whole = sample(world, tmp_path / "whole", tmp_path, server.url)
        with serving() as server:
            recipe = tiny.recipe(world, *human(tmp_path, server.url))
            tiny.make(world, run, *human(tmp_path, server.url), until="collect")
            runner.run_shard(recipe, Shard(2, 2), run_dir=run)
            names = [path.name for path in sorted((run / "sample" / "scores").glob("s*"))]
            assert names == ["scorer.json", "scores-0002-of-0002.jsonl"]
            number, before = 0, stored(run)
            while stored(run) < before + 2:
                with crash(number):
                    try:
                        runner.run_shard(recipe, Shard(1, 2), run_dir=run)
                    except Crash:
                        number += 3
            lost = sum(server.scored.values()) - stored(run) - 3
            known = stored(run)
            assert known < TEXTS
            assert sample(world, run, tmp_path, server.url) == whole
            assert sum(server.scored.values()) <= TEXTS + lost + 3 and server.billed <= spent(run)


def test_shards_share_the_budget(world: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with serving() as server:
        whole = sample(world, tmp_path / "whole", tmp_path, server.url)
        total = server.billed
        recipe = tiny.recipe(world, *human(tmp_path, server.url, f"teacher.budget.tokens={total}"))
        tiny.make(world, run, *human(tmp_path, server.url), until="collect")
        with pytest.raises(UserError, match="E-teacher-budget-spent"):
            runner.run_shard(recipe, Shard(1, 2), run_dir=run)
        assert 0 < server.billed - total <= total / 2 and spent(run) == server.billed - total
        larger = human(tmp_path, server.url, f"teacher.budget.tokens={3 * total}")
        for number in (1, 2):
            runner.run_shard(tiny.recipe(world, *larger), Shard(number, 2), run_dir=run)
    assert (run / TABLE).read_bytes() == whole
    assert spent(run) == server.billed - total


def test_two_sources_have_stores_of_their_own(world: Path, tmp_path: Path) -> None:
    with serving() as server:
        questions, teacher, *_ = human(tmp_path, server.url)
        section, run = teacher.removeprefix("teacher="), tmp_path / "run"
        keys = (questions, "teacher={}", f"teachers={{one: {section}, two: {section}}}")
        number, seen = 30, set[str]()
        while not (run / TABLE).exists():
            with contextlib.suppress(Crash), crash(number):
                tiny.make(world, run, *keys, until="sample")
            seen |= {path.parent.name for path in (run / "sample" / "scores").rglob("scores.jsonl")}
            number += 30
        assert seen == {"one", "two"} and sum(server.scored.values()) <= 2 * TEXTS + 8 * number / 30
    chains = list(parquet.read_chains(run / TABLE))
    assert {chain.source for chain in chains} == {"one", "two"} and len(chains) == 2 * TEXTS
    assert len({chain.candidates for chain in chains}) == TEXTS


# --- Budget ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ends", ["stop", "seal"])
@pytest.mark.parametrize("key", ["tokens", "money"])
def test_the_budget_is_kept(world: Path, tmp_path: Path, key: str, ends: str) -> None:
    run = tmp_path / "run"
    with serving() as server:
        table = sample(world, tmp_path / "whole", tmp_path, server.url, PRICED)
        whole = server.billed
        limit = whole - 20 if key == "tokens" else (whole - 20) / 1e6
        limited = (PRICED, f"teacher.budget.{key}={limit}", f"teacher.budget.spent={ends}")
        if ends == "seal":
            sample(world, run, tmp_path, server.url, *limited)
        else:
            with pytest.raises(UserError, match=r"teacher\.budget(.|\n)*E-teacher-budget-spent") as raised:
                sample(world, run, tmp_path, server.url, *limited)
            assert "seal" in raised.value.hint
        billed = server.billed - whole
        assert 0 < billed < whole and spent(run) == billed
        assert ledger.total_usage(run)["money"] == pytest.approx(billed / 1e6)
        if ends == "stop":
            known, before = stored(run), sum(server.scored.values())
            assert len(segments.stored_keys(segments.segment_paths(run / "sample"))) == known > 0
            assert sample(world, run, tmp_path, server.url, PRICED) == table
            assert spent(run) == server.billed - whole
            assert sum(server.scored.values()) - before == TEXTS - known
    chains = list(parquet.read_chains(run / TABLE))
    assert len(chains) == len({chain.key for chain in chains}) and (len(chains) == TEXTS) == (ends == "stop")
    assert chains and all(len(step) == 3 for chain in chains for step in chain.candidates)


# --- The plan --------------------------------------------------------------------------------------------------------


def plan_lines(world: Path, run: Path, *keys: str) -> list[str]:
    """The plan's lines from the teacher on, up to an empty line."""
    before = tiny.contents(run) if run.exists() else None
    lines = dry_run.describe_run(tiny.recipe(world, *keys), run).splitlines()
    assert before == (tiny.contents(run) if run.exists() else None), "a plan writes nothing"
    start = next(number for number, line in enumerate(lines) if line.startswith("teacher"))
    return lines[start : lines.index("", start)]


def tokens_of(lines: list[str]) -> int:
    line = next(line for line in lines if line.startswith("  tokens"))
    return int(line.split("about ")[1].split()[0])


def test_the_plan_has_what_the_server_bills(world: Path, tmp_path: Path) -> None:
    """Requests, tokens and money; less after a part of the texts is scored; and nothing after all of them."""
    run, millions = tmp_path / "run", "teacher.budget.prices={prompt: 1e6, completion: 1e6}"
    with serving() as server:
        keys = human(tmp_path, server.url)
        lines = plan_lines(world, run, *keys)
        assert lines[0] == f"teacher           human: {TEXTS} solutions of the sets, scored by m"
        assert lines[1] == f"scores            openai: m at {server.url} (not contacted yet)"
        assert lines[2].startswith(f"  requests        {TEXTS} texts, each once;")
        assert "  cost            unknown: no prices were given (teacher.budget.prices)" in lines
        assert not server.seen, "a plan asks no server"
        cost = next(line for line in plan_lines(world, run, *keys, millions) if line.startswith("  cost"))
        tokens = tokens_of(lines)
        assert cost == f"  cost            about {tokens + TEXTS}.00, at 1e+06 and 1e+06 per million tokens"
        with pytest.raises(UserError, match="E-teacher-budget-spent"):
            sample(world, run, tmp_path, server.url, "teacher.budget.tokens=500")
        known = stored(run)
        assert 0 < known < TEXTS
        lines = plan_lines(world, run, *keys)
        assert lines[2].startswith(f"  requests        {TEXTS - known} texts, each once;")
        assert tokens_of(lines) < tokens, "stored scores cost nothing"
        before = server.billed
        sample(world, run, tmp_path, server.url)
        assert 0.5 * (server.billed - before) < tokens_of(lines) < 2 * (server.billed - before)
    assert plan_lines(world, run, *keys)[0].endswith("nothing is left to sample")


def test_scores_whose_chains_are_not_stored_yet_cost_nothing_in_the_plan(world: Path, tmp_path: Path) -> None:
    """A process is killed while it scores its first batch: the scores are stored, the chains are not."""
    run, number = tmp_path / "run", 30
    with serving() as server:
        keys = human(tmp_path, server.url)
        while not stored(run):
            with contextlib.suppress(Crash), crash(number):
                sample(world, run, tmp_path, server.url)
            number += 3
        known = stored(run)
        assert not segments.count_by_question(segments.segment_paths(run / "sample"))
        lines = plan_lines(world, run, *keys)
    left = "none: " if known == TEXTS else f"{TEXTS - known} texts, each once;"
    assert lines[2].startswith(f"  requests        {left}") and f"the scores of {known} texts are stored" in "".join(
        lines
    )


def test_the_plan_of_stored_chains_counts_each_text_once(world: Path, tmp_path: Path) -> None:
    """Two equal texts of a question are one request; chains of other questions are none."""
    _, teacher, *keys = human(tmp_path, "http://127.0.0.1:9/v1")
    questions = f"sets.sums.file={tmp_path / 'sums.jsonl'}"
    names = [row["question"] for row in tiny.rows("sums", 40)]
    rows = [{"question": name, "text": text} for name in names for text in ("It is 2.", "It is 2.", "2")]
    (tmp_path / "chains.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    replay = teacher.replace("kind: human", f"kind: replay, chains: {tmp_path / 'chains.jsonl'}")
    lines = plan_lines(world, tmp_path / "run", questions, replay, *keys)
    assert lines[0].startswith(f"teacher           replay: {3 * TEXTS} chains in ") and ", scored by m" in lines[0]
    assert lines[2].startswith(f"  requests        {2 * TEXTS} texts, each once;")


def test_a_scorer_in_this_process_is_named(world: Path, tmp_path: Path) -> None:
    local = f"teacher={{kind: human, score: {{kind: local, model: {world / 'teacher'}}}}}"
    lines = plan_lines(world, tmp_path / "run", human(tmp_path, "http://x/v1")[0], local)
    assert lines[1] == f"scores            local: {world / 'teacher'} scores {TEXTS} texts in this process"


# --- Identity --------------------------------------------------------------------------------------------------------


def test_chains_scored_by_another_version_are_refused(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    with serving() as server:
        sample(world, run, tmp_path, server.url)
        made = manifest.read_finished(run / "sample")
        assert made is not None and "version of scores" in made.identity.inputs
        monkeypatch.setattr("potstill.teachers.openai_api.stored_scores.VERSION", 9)
        with pytest.raises(UserError, match="version of scores"):
            sample(world, run, tmp_path, server.url)


def test_scores_without_log_probabilities_are_refused_before_the_run(world: Path, tmp_path: Path) -> None:
    keys = human(tmp_path, "http://127.0.0.1:9/v1", "teacher.top_logprobs=0")
    checks = teachers.from_recipe(tiny.recipe(world, *keys)).checks()
    with pytest.raises(UserError, match="E-teacher-no-scores"):
        for check in checks:
            check()
