"""Teachers behind a server: every chain is stored once whatever the server does, every fault is reported, and no key is
stored."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

import stub
import tiny
from fork_server import start
from potstill import runner, teachers
from potstill.errors import UserError
from potstill.grading import grade
from potstill.recipe import Recipe, parse_recipe
from potstill.records import END, Chain, Prompt, Question, Turn
from potstill.storage import ledger, manifest, parquet, segments
from potstill.storage.segments import Shard
from potstill.teachers import SamplingState, UsageMeter
from potstill.teachers.openai_api import teacher
from potstill.teachers.openai_api.client import Client, Reply
from potstill.teachers.openai_api.limits import Budget, compute_cost
from potstill.teachers.openai_api.request import Capabilities, ServerSettings
from potstill.teachers.openai_api.token_entries import ReaderContext

CHAINS = int(os.environ.get("POTSTILL_CHAINS", "640"))  # 10000 for the whole
KEY = "sk-potstill-never-written-4711"


def questions(n: int) -> list[Question]:
    rows = ((i, 1 + i % 7, 2 + i % 11) for i in range(n))
    return [Question(f"s/{i}", f"What is {a} + {b}? ({i})", str(a + b), "s", "train", "number") for i, a, b in rows]


def plan(url: str, *lines: str) -> Recipe:
    """A recipe for the server at `url`; lines are keys of `teacher.server`, or of `teacher` where they say so."""
    base = "name: t\nteacher: {kind: openai, model: m, temperature: 0.7, top_logprobs: 3, samples: 4}\n"
    keys = [line if line.startswith("teacher.") else f"teacher.server.{line}" for line in lines]
    changes = ["teacher.server.timeout=5", "teacher.server.patience=3", *(key.replace(": ", "=") for key in keys)]
    return parse_recipe(base, "t.yaml", [f"teacher.server.urls=['{url}']", *changes])


def sampled(recipe: Recipe, questions: list[Question], watch: UsageMeter | None = None, **known) -> list[Chain]:
    server = teachers.from_recipe(recipe).probe(questions)
    state = SamplingState(server=server, usage=watch or UsageMeter(), **known)
    batches = teachers.from_recipe(recipe).sample(questions, state)
    return [chain for batch in batches for chain in batch]


def settings(url: str, **more) -> ServerSettings:
    more = {"samples": 4, "top_logprobs": 3, "timeout": 5.0, "patience": 3.0, "first_backoff": 0.01} | more
    return ServerSettings(model="m", urls=(url,), **more)


def prompt_of(question: Question) -> Prompt:
    return Prompt((Turn("user", question.text),), "\n")


def drawn(url: str | tuple[str, ...], questions: list[Question], watch: UsageMeter | None = None, **more):
    server_settings = settings(url if isinstance(url, str) else url[0], **more)
    if not isinstance(url, str):
        server_settings = ServerSettings(
            **{name: getattr(server_settings, name) for name in server_settings.__slots__} | {"urls": url}
        )
    reader = ReaderContext(server_settings.source, "raw", end_names=frozenset({"<end>"}))
    done = more.pop("done", ())
    batches = teacher.sample(
        server_settings, Capabilities(), reader, questions, prompt_of, SamplingState(done, usage=watch or UsageMeter())
    )
    return [row.as_chain() for batch in batches for row in batch]


# --- what is asked, and what comes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("api", ["completions", "chat"])
def test_every_chain_once_with_its_candidates(api: str) -> None:
    watch = UsageMeter()
    with stub.running() as server:
        chains = sampled(plan(server.url, f"api: {api}"), questions(6), watch)
    assert sorted(chain.key for chain in chains) == [(f"s/{i}", "openai", j) for i in range(6) for j in range(4)]
    assert len({chain.content for chain in chains}) == 24, "no two requests repeat each other"
    for chain in chains:
        assert chain.text.startswith(" ") and "The answer is" in chain.text and chain.stop == "end"
        assert len(chain.candidates) == len(chain.tokens) + 1 and all(len(step) == 3 for step in chain.candidates)
        assert chain.semantics == "raw" and not chain.defects
    assert watch.chains == watch.graded == 24 and 0.2 < watch.right / 24 < 0.95
    assert watch.completion_tokens == sum(len(chain.candidates) for chain in chains)
    body = server.seen[-1]
    assert {"top_p", "top_k", "min_p", "seed", "n", "temperature", "presence_penalty"} <= set(body)


def test_seeds_differ_for_every_request() -> None:
    with stub.running() as server:
        drawn(server.url, questions(20), samples_per_request=2)
    assert len({body["seed"] for body in server.seen}) == len(server.seen) == 40


def test_what_is_stored_is_not_asked_again() -> None:
    done = {("s/0", "openai", 0), ("s/0", "openai", 2), ("s/1", "openai", 3)}
    with stub.running() as server:
        chains = sampled(plan(server.url), questions(2), stored=done)
    assert sorted(chain.key for chain in chains) == sorted(
        {(f"s/{i}", "openai", j) for i in range(2) for j in range(4)} - done
    )


def test_the_cut_is_behind_the_answer_sentence() -> None:
    with stub.running() as server:
        recipe = plan(server.url, "teacher.max_tokens: 64")
        chains = sampled(recipe, [Question("q", "Say: answer is 1 + 1", "2", "s", "train", "number")])
    assert all(chain.text.count("answer is") == 1 for chain in chains)


def test_enough_right_chains_end_a_question() -> None:
    watch = UsageMeter()
    question_list = questions(10)
    with stub.running() as server:
        recipe = plan(server.url, "teacher.samples: 40", "teacher.enough: 2", "samples_per_request: 2")
        chains = sampled(recipe, question_list, watch, right={"s/3": 2})
    of = {question.id: [chain for chain in chains if chain.question == question.id] for question in question_list}
    assert of["s/3"] == []
    for question in question_list:
        if question.id != "s/3":
            right = [grade(chain.text, question.gold, "number").grade == "right" for chain in of[question.id]]
            assert 2 <= sum(right) <= 3 and sum(right[:-2]) < 2, "asked until enough were right, and no longer"


def test_replicas_share_the_work() -> None:
    with stub.running(latency=0.02) as one, stub.running(latency=0.02) as two, stub.running(dead=True) as three:
        chains = drawn((one.url, two.url, three.url), questions(40), samples_per_request=1, concurrency=4)
    assert len(chains) == 160
    assert min(len(one.seen), len(two.seen)) > 30


def test_concurrency_adapts_to_what_the_server_bears() -> None:
    watch = UsageMeter()
    with stub.running(latency=0.01, limit=6) as server:
        chains = drawn(server.url, questions(60), watch, samples_per_request=1, concurrency=64)
    assert len(chains) == 240 and watch.retries > 0
    assert watch.requests < 240 * 1.6, "it learns from refusals instead of hammering"


# --- the probe --------------------------------------------------------------------------------------------------------


def probed(url: str, *lines: str) -> dict:
    return teachers.from_recipe(plan(url, *lines)).probe(questions(1))


def test_the_probe_says_what_a_server_is() -> None:
    with stub.running() as server:
        found = probed(server.url)
    assert (found["n"], found["whole"], found["bytes"], found["semantics"]) == (True, True, "true", "raw")
    assert found["left_out"] == [] and found["served"] == "stub"


def test_temperature_in_the_numbers_is_seen() -> None:
    with stub.running(tempered=True) as server:
        assert probed(server.url)["semantics"] == "tempered"


def test_refused_parameters_are_left_out_or_renamed() -> None:
    with stub.running(refuses=("min_p", "repeat_penalty", "top_k", "max_tokens")) as server:
        found = probed(server.url)
        chains = sampled(plan(server.url), questions(2))
    assert set(found["left_out"]) == {"min_p", "repeat_penalty", "top_k"} and found["length"] == "max_completion_tokens"
    assert len(chains) == 8


def test_a_server_that_passes_over_n_gets_one_request_a_text() -> None:
    with stub.running(silent=("n",)) as server:
        assert probed(server.url)["n"] is False
        assert len(sampled(plan(server.url), questions(2))) == 8


@pytest.mark.parametrize(
    "server, lines, message",
    [
        ({"silent": ("logprobs",)}, (), "teacher.top_logprobs to 0.*E-teacher-no-logprobs"),
        ({"cap": 2}, (), "max allowed: 2.*E-teacher-top-logprobs"),
        ({"dead": True}, (), "500.*E-teacher-no-answer"),
        ({"poison": "What"}, (), "context length.*E-teacher-refused-request"),
    ],
)
def test_less_than_asked_is_the_users_decision(server, lines, message) -> None:
    with stub.running(**server) as running, pytest.raises(UserError) as raised:
        probed(running.url, *lines)
    assert re.search(message, str(raised.value), re.S), str(raised.value)


def test_a_server_that_is_not_there() -> None:
    with pytest.raises(UserError, match="E-teacher-no-answer"):
        probed("http://127.0.0.1:9/v1")


def test_another_server_is_not_taken_for_the_first() -> None:
    with stub.running() as first, stub.running(tempered=True) as second:
        before = probed(first.url)
        assert teachers.from_recipe(plan(first.url)).probe(questions(1), before) == before
        with pytest.raises(UserError, match="semantics: raw -> tempered"):
            teachers.from_recipe(plan(second.url)).probe(questions(1), before)


def test_teachers_without_log_probabilities_are_first_class() -> None:
    with stub.running(silent=("logprobs",), reasoning="3 + 4 = 7.", refuses=("top_k",)) as server:
        recipe = plan(server.url, "api: chat", "teacher.top_logprobs: 0")
        chains = sampled(recipe, questions(2))
        recipe = plan(server.url, "api: chat", "teacher.top_logprobs: 0", "reasoning: answer")
        answers = sampled(recipe, questions(2))
    assert all(chain.semantics == "none" and not chain.tokens for chain in chains)
    assert all(chain.text.startswith("3 + 4 = 7.\n") for chain in chains)
    assert not any("3 + 4 = 7." in chain.text for chain in answers)
    assert "logprobs" not in server.seen[-1]


def test_chains_that_exist_are_scored_in_their_order() -> None:
    question_list = questions(30)
    texts = [Chain.from_text(q.id, 0, f"{q.text} The answer is {q.gold}", source="old") for q in question_list]
    with stub.running(length=6) as server:  # so short that the probe sees how it names the end
        recipe = plan(server.url, "concurrency: 4")
        batches = list(teacher.OpenAITeacher(recipe).score(question_list, [texts[:20], texts[20:]]))
    made = [chain for batch in batches for chain in batch]
    assert [(chain.key, chain.content, chain.stop) for chain in made] == [(c.key, c.content, c.stop) for c in texts]
    for chain in made:
        assert b"".join(chain.tokens) == chain.content and chain.semantics == "raw" and not chain.defects
        assert len(chain.candidates) == len(chain.tokens) + 1 and all(len(step) == 3 for step in chain.candidates)
        assert chain.candidates[-1][0] == (END, -0.2)


def test_a_server_that_scores_a_text_otherwise_than_it_writes_it_is_refused() -> None:
    question_list = questions(2)
    texts = [Chain.from_text(q.id, 0, f"{q.text} The answer is {q.gold}", source="old") for q in question_list]
    with stub.running(length=30, late=True) as server, pytest.raises(UserError) as raised:
        list(teacher.OpenAITeacher(plan(server.url)).score(question_list, [texts]))
    assert "E-teacher-inconsistent-scores" in str(raised.value)
    assert "generated and scored: -0.20 and -2.00" in str(raised.value)


# --- faults -----------------------------------------------------------------------------------------------------------


def test_every_fault_at_five_per_cent_and_every_chain_once() -> None:
    """429 with and without Retry-After, 500, 503, half a body, malformed JSON, fewer and more texts, entries missing,
    no log-probabilities, slow drip, reset, hang: two requests in three go wrong."""
    watch = UsageMeter()
    with stub.running(faults=0.05, stuck=3.0) as server:
        question_list = questions(CHAINS // 40)
        chains = drawn(server.url, question_list, watch, samples=40, timeout=0.4, patience=60.0, concurrency=32)
    keys = [chain.key for chain in chains]
    assert len(keys) == len(set(keys)) == CHAINS // 40 * 40
    assert set(keys) == {(question.id, "openai", i) for question in question_list for i in range(40)}
    assert all(chain.candidates and chain.text.rstrip().endswith(".") for chain in chains)
    missing = sum("entries missing" in chain.defects for chain in chains)
    assert missing < 0.1 * len(chains), "a list with entries missing is asked again once, then stored and marked"
    if CHAINS >= 640:
        assert set(server.struck) - {"none"} == set(stub.FAULTS)
    print(f"{len(chains)} chains, {watch.requests} requests, {watch.retries} retries, {dict(server.struck)}")


def test_what_was_never_sent_is_not_charged() -> None:
    """A server that takes connections and says nothing: with TLS there is no connection, so no request has left."""

    async def ask(client: Client, url: str) -> Reply:
        try:
            return await client.send(url, {"prompt": "2 + 2"})
        finally:
            await client.close()

    with socket.create_server(("127.0.0.1", 0)) as silent:
        for scheme, answer in (
            ("https", Reply("busy", message="no connection within 1 s")),
            ("http", Reply("busy", message="no complete response within 3 s", charged=True)),
        ):
            server_settings = settings(f"{scheme}://127.0.0.1:{silent.getsockname()[1]}/v1", timeout=3.0)
            assert asyncio.run(ask(Client(server_settings), server_settings.urls[0])) == answer
            budget = Budget(server_settings, UsageMeter())
            aside = budget.reserve(prompt := Prompt((Turn("user", "2 + 2"),)), 2)
            assert aside is not None
            budget.settle(aside, prompt, 2, answer)
            assert (budget.tokens > 0) == answer.charged


def test_a_dead_server_is_given_up_with_a_clear_message() -> None:
    watch = UsageMeter()
    with stub.running() as server:
        question_list = questions(500)
        server_settings = settings(server.url, patience=0.2)
        reader = ReaderContext("openai", "raw", end_names=frozenset({"<end>"}))
        stream = teacher.sample(
            server_settings, Capabilities(), reader, question_list, prompt_of, SamplingState(usage=watch)
        )
        some = next(stream)
        server.dead = True
        with pytest.raises(UserError, match=r"not answered for .*\n.*out of memory") as raised:
            for batch in stream:
                some += batch
    assert some and "run the same command again" in str(raised.value)


def test_a_question_that_is_refused_stops_only_at_the_end() -> None:
    for refused, fails in (("stop", True), ("skip", False)):
        found: list[Chain] = []
        with stub.running(poison="(3)") as server:
            server_settings = settings(server.url, refused=refused)
            reader = ReaderContext("openai", "raw", end_names=frozenset({"<end>"}))
            stream = teacher.sample(server_settings, Capabilities(), reader, questions(12), prompt_of, SamplingState())
            try:
                for batch in stream:
                    found += [row.as_chain() for row in batch]
            except UserError as fault:
                assert fails and "E-teacher-refused-questions" in str(fault) and "context length" in str(fault)
            else:
                assert not fails
        assert len(found) == 11 * 4


def test_retry_after_is_honoured() -> None:
    with stub.running(faults=0.3, kinds=("429 retry-after",), retry_after="0.1") as server:
        began = time.monotonic()
        drawn(server.url, questions(2), samples_per_request=1, concurrency=1, patience=60.0)
        assert server.struck["429 retry-after"] > 0
        assert time.monotonic() - began > 0.1 * server.struck["429 retry-after"]


# --- the budget -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ceiling", [{"budget_tokens": 3000}, {"budget_money": 0.006, "prices": (1.0, 2.0)}])
def test_a_ceiling_is_not_passed(ceiling) -> None:
    watch, found = UsageMeter(), []
    with stub.running() as server:
        server_settings = settings(server.url, max_tokens=64, **ceiling)
        reader = ReaderContext("openai", "raw", end_names=frozenset({"<end>"}))
        stream = teacher.sample(
            server_settings, Capabilities(), reader, questions(100), prompt_of, SamplingState(usage=watch)
        )
        with pytest.raises(UserError, match=r"teacher\.budget(.|\n)*E-teacher-budget-spent"):
            for batch in stream:
                found += batch
    assert server.written <= 3000 and watch.prompt_tokens + watch.completion_tokens == server.written
    assert watch.money <= 0.006 or not server_settings.budget_money
    assert found and server.written > 2000, "it uses what it may"


def test_what_broke_off_counts_as_spent() -> None:
    watch = UsageMeter()
    budget = Budget(ServerSettings(model="m", max_tokens=10), watch)
    prompt = Prompt((Turn("user", "x" * 40),))
    aside = budget.reserve(prompt, 2)
    assert aside is not None
    budget.settle(aside, prompt, 2, Reply("again", message="half a body", charged=True))
    assert (watch.prompt_tokens, watch.completion_tokens) == (20, 20) and budget.reserved_tokens == 0
    assert compute_cost(ServerSettings(model="m", prices=(2.0, 4.0)), 1e6, 5e5) == 4.0


# --- the stage --------------------------------------------------------------------------------------------------------


def changes(url: str, *more: str) -> tuple[str, ...]:
    return (
        tiny.SERVER, "teacher.samples=4", f"teacher.server.urls=['{url}']", *more
    )  # fmt: skip


def test_the_stage_stores_what_the_server_was(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    keyed = "teacher.server.key=MY_KEY", "teacher.max_tokens=64"
    with stub.running(api_key=KEY) as server:
        run = tiny.make(world, tmp_path / "run", *changes(server.url, *keyed), until="align")
    made = manifest.read_finished(run / "sample")
    chains = list(parquet.read_chains(run / "sample" / "chains.parquet"))
    assert made is not None and made.counts["server"]["semantics"] == "raw"
    assert made.counts["chains"] == len(chains) == len({chain.key for chain in chains}) > 10
    spent = ledger.total_usage(run)
    assert spent["prompt_tokens"] + spent["completion_tokens"] == server.written, "with what the probe wrote"
    assert spent["completion_tokens"] > sum(len(chain.candidates) for chain in chains)
    assert _holds(tmp_path, KEY) == []


def test_a_sampling_that_was_refused_at_once_binds_nobody(world: Path, tmp_path: Path) -> None:
    """Nothing is made before a server has answered, so that another model may be named without consent."""
    run_dir, more = tmp_path / "run", ("teacher.enough=2", "teacher.max_tokens=64")
    with stub.running(api_key=KEY) as server:
        with pytest.raises(UserError, match="401"):
            tiny.make(world, run_dir, *changes(server.url, *more), until="sample")
        assert [path.name for path in (run_dir / "sample").iterdir()] == ["begun.json"]
        server.api_key = ""
        tiny.make(world, run_dir, *changes(server.url, *more, "teacher.model=other"), until="sample")
    assert parquet.count_rows(run_dir / "sample" / "chains.parquet") > 0


def test_the_key_is_in_no_message(world: Path, tmp_path: Path, monkeypatch, capfd) -> None:
    """A server that repeats a wrong key in its refusal: the message does not."""
    monkeypatch.setenv("MY_KEY", KEY)
    with stub.running(api_key="another") as server:
        with pytest.raises(UserError) as raised:
            tiny.make(world, tmp_path / "run", *changes(server.url, "teacher.server.key=MY_KEY"), until="sample")
        seen = capfd.readouterr()
    assert "***" in str(raised.value) and "check the key" in str(raised.value)
    assert KEY not in str(raised.value) + seen.out + seen.err and _holds(tmp_path, KEY) == []
    monkeypatch.delenv("MY_KEY")
    with pytest.raises(UserError, match="MY_KEY is not set"):
        tiny.make(world, tmp_path / "run", *changes(server.url, "teacher.server.key=MY_KEY"), until="sample")
    with pytest.raises(UserError, match="E-recipe-url"):
        tiny.make(world, tmp_path / "run", *changes("http://me:secret@host/v1"), until="sample")


def _holds(folder: Path, text: str) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and text.encode() in path.read_bytes()]


def test_a_ceiling_holds_over_processes_and_can_be_raised(world: Path, tmp_path: Path) -> None:
    with stub.running() as server:
        most = "teacher.max_tokens=64", "teacher.budget.tokens=400", "teacher.server.samples_per_request=1"
        for _ in range(2):  # the second knows what the first spent
            with pytest.raises(UserError, match="E-teacher-budget-spent"):
                tiny.make(world, tmp_path / "run", *changes(server.url, *most), until="sample")
        assert server.written <= 400, "with what the probes wrote"
        raised = tiny.make(world, tmp_path / "run", *changes(server.url, *most[:1]), until="sample")
    assert manifest.read_finished(raised / "sample") is not None


def test_a_spent_budget_can_be_sealed(world: Path, tmp_path: Path) -> None:
    with stub.running() as server:
        most = "teacher.max_tokens=64", "teacher.budget.tokens=400", "teacher.budget.spent=seal"
        run = tiny.make(world, tmp_path / "run", *changes(server.url, *most), until="sample")
    made = manifest.read_finished(run / "sample")
    assert made is not None and 0 < made.counts["chains"] < 16


def test_shards_share_a_servers_questions_and_its_ceiling(world: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    with stub.running() as server:
        recipe = tiny.recipe(world, *changes(server.url, "teacher.max_tokens=64", "teacher.budget.tokens=100000"))
        runner.run_shard(recipe, Shard(1, 2), run_dir=run_dir)
        first, asked = segments.stored_keys(segments.segment_paths(run_dir / "sample")), len(server.seen)
        runner.run_shard(recipe, Shard(2, 2), run_dir=run_dir)
        assert len(server.seen) == 2 * asked  # the last shard merges, and nothing was missing
    whole = [chain.key for chain in parquet.read_chains(run_dir / "sample" / "chains.parquet")]
    assert len(first) == len(whole) // 2 and len(whole) == len(set(whole)) == 16
    settings = teacher.settings_from_recipe(recipe)
    assert teacher.split_budget(settings, Shard(2, 4)).budget_tokens == 25000


def test_a_sets_own_solutions_scored_by_a_server(world: Path, tmp_path: Path) -> None:
    """`teacher.score` with a server: the texts are people's, the probabilities the server's."""
    with stub.running(length=6) as server:
        own = "teacher={kind: human, top_logprobs: 3, score: {kind: openai, model: m}}"
        folder = tiny.make(
            world, tmp_path / "run", own, f"teacher.server={{urls: ['{server.url}'], concurrency: 4}}", until="align"
        )
        moved = f"teacher.server={{urls: ['{server.url}'], concurrency: 2}}"  # may change, as nothing of a chain does
        tiny.make(world, tmp_path / "run", own, moved, until="align")
    chains = list(parquet.read_chains(folder / "sample" / "chains.parquet"))
    assert len(chains) == 4 and all(chain.source == "human" and chain.semantics == "raw" for chain in chains)
    assert all(len(step) == 3 for chain in chains for step in chain.candidates)
    made = manifest.read_finished(folder / "align")
    assert made is not None and made.counts["chains without probabilities"] == 0


KILLS = int(os.environ.get("POTSTILL_KILLS", "2"))


@pytest.mark.slow
def test_killed_again_and_again_nothing_is_lost_and_nothing_doubled(world: Path, tmp_path: Path) -> None:
    """`kill -9` every few seconds, with every fault at five per cent."""
    samples = CHAINS // 4  # the tiny world has four training questions
    server = subprocess.Popen(
        [sys.executable, "stub.py", "--faults", "0.05", "--stuck", "8", "--latency", "0.05"],
        cwd=Path(tiny.__file__).parent, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert server.stdout is not None
        url = f"http://127.0.0.1:{int(server.stdout.readline())}/v1"
        more = ("teacher.max_tokens=64", "teacher.server.timeout=2", f"teacher.samples={samples}")
        run, kills, output = tmp_path / "run", 0, tmp_path / "output"
        made = None
        for _ in range(KILLS + 3):  # without a kill, a run that ends has finished
            process = start(tiny.make, world, run, *changes(url, *more), until="sample", output=output)
            if kills < KILLS:
                before = _size(run)
                while process.is_alive() and _size(run) == before:
                    time.sleep(0.05)
                time.sleep(0.3 + kills % 3)
                if process.is_alive():
                    process.kill()
                    kills += 1
            process.join()
            made = manifest.read_finished(run / "sample") if (run / "sample").is_dir() else None
            if made is not None:
                break
        assert made is not None, output.read_text()[-2000:]
    finally:
        server.kill()
        server.wait()
    keys = [chain.key for chain in parquet.read_chains(run / "sample" / "chains.parquet")]
    asked = {key[0] for key in keys}
    assert len(keys) == len(set(keys)) == len(asked) * samples
    print(f"{len(keys)} chains of {len(asked)} questions, {kills} kills")


def _size(run: Path) -> int:
    segments = list((run / "sample").glob("segment-*")) if (run / "sample").is_dir() else []
    return sum(path.stat().st_size for path in segments)
