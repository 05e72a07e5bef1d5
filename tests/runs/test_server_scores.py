"""Scores of texts from a server: each text is scored once whatever the server does and wherever a process is killed, and
everything that the server bills is counted."""

from __future__ import annotations

import itertools
import os
import random
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

import scoring_stub
import stub
import tiny
from crashing import Crash, crash
from fork_server import start
from model_stub import ModelStub
from potstill import inference, models, prompts
from potstill.errors import UserError
from potstill.recipe import Recipe
from potstill.recipe.teacher import TeacherSection
from potstill.records import END, Chain, Prompt, Turn
from potstill.report.model import billed_costs
from potstill.storage import ledger
from potstill.storage.scores import ScoreStore
from potstill.teachers import local_model
from potstill.teachers.openai_api import stored_scores
from potstill.teachers.openai_api.stored_scores import StoredScorer
from power_loss import PowerLoss, cut_at
from scoring_stub import ScoringStub

ZERO_SHOT = prompts.FORMATS["zero-shot-rationale"]
Rows = list[tuple[Prompt, Chain]]
WORDS = (" so", " we", " add", " Zoë", " 12", " cafés", ".", "\n", " =", " it", " 🙂", "s")


def serving(**settings):
    return stub.running(ScoringStub, **settings)


def plan(*urls: str, budget: dict | None = None, **server) -> Recipe:
    server = {"timeout": 5, "patience": 30, "concurrency": 8} | server
    section = {
        "kind": "openai",
        "model": "m",
        "top_logprobs": 4,
        "server": {"urls": list(urls), **server},
        "budget": budget or {},
    }
    return Recipe(name="t", teacher=TeacherSection(**section))


def rows(n: int, first: int = 0) -> Rows:
    """n texts of a student with their prompts; every third was cut at its length."""
    found = []
    for i in range(first, first + n):
        draw = random.Random(i)
        text = "".join(draw.choice(WORDS) for _ in range(draw.randint(1, 30)))
        prompt = Prompt((Turn("user", f"Question: What is {i} + {i % 7}?\nAnswer:"),), "\n" if i % 2 else "")
        found.append((prompt, Chain.from_text(f"s/{i}", i % 3, text, source="own", stop="end" if i % 3 else "length")))
    return found


def scorer(recipe: Recipe, folder: Path) -> StoredScorer:
    opened = StoredScorer(recipe, folder=folder / "train", usage=stored_scores.open_usage(folder, ledger.SCORES))
    opened.settings = replace(opened.settings, first_backoff=0.01)
    return opened


def scored(recipe: Recipe, folder: Path, texts: Rows, at_once: int = 10**6) -> list[Chain]:
    with scorer(recipe, folder) as opened:
        return [chain for at in range(0, len(texts), at_once) for chain in opened.score(texts[at : at + at_once])]


def asked(server: ScoringStub) -> list[str]:
    """The prompts of all requests that score a text."""
    bodies = [body for body in server.seen if "echo" in body or "prompt_logprobs" in body]
    return [body["prompt"] for body in bodies]


def spent(folder: Path) -> float:
    usage = ledger.total_usage(folder, ledger.SCORES)
    return usage["prompt_tokens"] + usage["completion_tokens"]


def check(chains: Sequence[Chain], texts: Rows, k: int = 4) -> None:
    """Texts and keys are those of `texts`, tokens and probabilities those of the server."""
    assert [(c.key, c.content, c.stop) for c in chains] == [(c.key, c.content, c.stop) for _, c in texts]
    for chain, (prompt, _) in zip(chains, texts, strict=True):
        entries = scoring_stub.entries_of(prompt.plain + prompt.lead + chain.text, k)
        own = entries[-1 - len(chain.tokens) : -1]
        assert chain.tokens == tuple(token.encode() for token, _, _ in own), chain.defects
        assert b"".join(chain.tokens) == chain.content and not chain.defects
        values = [dict(step)[token] for step, token in zip(chain.candidates, chain.tokens, strict=False)]
        assert values == pytest.approx([value for _, value, _ in own], abs=1e-6)
        assert len(chain.candidates) == len(chain.tokens) + (chain.stop != "length")
        assert chain.stop == "length" or dict(chain.candidates[-1])[END] == pytest.approx(entries[-1][1], abs=1e-6)
        assert all(len(step) == k for step in chain.candidates) and chain.semantics == "raw"


# --- scores ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("methods", [("prompt_logprobs", "echo"), ("echo",)])
def test_the_scores_are_those_of_the_server(tmp_path: Path, methods: tuple[str, ...]) -> None:
    texts = rows(30)
    with serving(methods=methods) as server:
        with scorer(plan(server.url), tmp_path) as opened:
            chains = opened.score(texts)
            found = opened._server
        check(chains, texts)
    assert found is not None and found["method"] == methods[0]
    assert server.billed == spent(tmp_path)


def test_the_scores_are_those_of_the_same_model_in_this_process(world: Path, tmp_path: Path) -> None:
    """`StoredScorer.score` means what `local_model.score_chains` means: equal texts, tokens and log-probabilities."""
    student, k = models.open_student(world / "teacher"), 5
    texts = []
    for row in tiny.rows("sums", 10):
        prompt = prompts.build_prompt(row["question"], ZERO_SHOT, style=prompts.TEACHER_STYLE)
        text = prompts.format_solution(row["rationale"], row["answer"])
        texts.append((prompt, Chain.from_text(row["id"], 0, text, source="own", stop="end")))
        texts.append((prompt, Chain.from_text(row["id"], 1, text[:12], source="own", stop="length")))
    with stub.running(ModelStub, student=student) as server:
        recipe = plan(server.url, tokenizer=str(world / "teacher"))
        recipe = recipe.model_copy(update={"teacher": recipe.teacher.model_copy(update={"top_logprobs": k})})
        chains = scored(recipe, tmp_path, texts)
        assert spent(tmp_path) == server.billed
    engine = inference.open_engine(student)
    local = local_model.score_chains(engine, texts, top_logprobs=k, batch_tokens=400)
    for chain, same in zip(chains, local, strict=True):
        assert (chain.key, chain.content, chain.stop) == (same.key, same.content, same.stop)
        assert (chain.tokens, chain.spans, chain.semantics) == (same.tokens, same.spans, same.semantics)
        assert len(chain.candidates) == len(same.candidates)
        for step, other in zip(chain.candidates, same.candidates, strict=True):
            assert {piece: pytest.approx(value, abs=2e-5) for piece, value in other} == dict(step)


def test_an_empty_text_has_the_probability_of_its_end(tmp_path: Path) -> None:
    texts = [
        (prompt, Chain.from_text(chain.question, 0, "", source="own", stop=chain.stop)) for prompt, chain in rows(4)
    ]
    with serving() as server:
        chains = scored(plan(server.url), tmp_path, texts)
    check(chains, texts)
    assert [len(chain.candidates) for chain in chains] == [0, 1, 1, 0]


def test_the_end_is_named_by_a_longer_text_than_the_probes(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    texts = rows(5)
    with serving(length=60) as server:
        check(scored(plan(server.url), tmp_path, texts), texts)
    with serving(length=600) as server:  # longer than teacher.max_tokens
        chains = scored(plan(server.url), tmp_path / "other", texts)
    assert "ended no text" in capfd.readouterr().err
    assert all(len(chain.candidates) == len(chain.tokens) for chain in chains)
    assert spent(tmp_path / "other") == server.billed


def test_a_text_is_scored_once(tmp_path: Path) -> None:
    """Within a call, in later calls, in later processes, and with another key or stop reason."""
    texts = rows(20)
    with serving() as server:
        recipe = plan(server.url)
        first = scored(recipe, tmp_path, [*texts, *texts[::-1]])
        assert first[:20] == first[:19:-1]
        requests = len(server.seen)
        again = scored(recipe, tmp_path, texts, at_once=3)
        assert again == first[:20] and len(server.seen) == requests, "not even a probe"
        other = [(p, Chain.from_text("other", 9, c.text, source="x", stop="end")) for p, c in texts]
        check(scored(recipe, tmp_path, other), other)
        assert len(server.seen) == requests
        check(scored(recipe, tmp_path, rows(25)), rows(25))
        assert sum(server.scored.values()) == 25 + 3  # the first text tests the method, and a generated text its values
    assert spent(tmp_path) == server.billed


def test_no_text_asks_no_server(tmp_path: Path) -> None:
    assert scored(plan("http://127.0.0.1:9/v1"), tmp_path, []) == []
    assert ledger.ledger_paths(tmp_path) == []


def test_replicas_share_the_texts(tmp_path: Path) -> None:
    texts = rows(60)
    with serving(latency=0.02) as one, serving(latency=0.02) as two:
        check(scored(plan(one.url, two.url, concurrency=4), tmp_path, texts), texts)
        assert min(len(asked(one)), len(asked(two))) > 15 and max(one.most, two.most) <= 4
    assert spent(tmp_path) == one.billed + two.billed


def test_a_replica_that_is_away_or_serves_another_model_is_replaced_by_the_other(tmp_path: Path) -> None:
    texts = rows(20)
    with serving() as server, serving(model="another") as other:
        recipe = plan(server.url, other.url, "http://127.0.0.1:9/v1", concurrency=1)
        check(scored(recipe, tmp_path, texts), texts)
        assert other.seen, "it was asked, but no score of it is stored"
    assert spent(tmp_path) == server.billed + other.billed


# --- faults ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["prompt_logprobs", "echo"])
@pytest.mark.parametrize(
    "kinds", [scoring_stub.REFUSED + scoring_stub.BROKEN, scoring_stub.UNUSABLE + scoring_stub.ODD]
)
def test_every_fault_at_five_per_cent(tmp_path: Path, method: str, kinds: tuple[str, ...]) -> None:
    """Every second request goes wrong: no text is stored twice or wrongly, and everything billed is counted."""
    texts = rows(150)
    with serving(methods=(method,), faults=0.05, kinds=kinds, stuck=2.0) as server:
        recipe = plan(server.url, timeout=0.5, patience=60, concurrency=32)
        with scorer(recipe, tmp_path) as opened:
            chains = [chain for at in (0, 50, 100) for chain in opened.score(texts[at : at + 50])]
            usage, lines = opened._open_client()[1].usage, len(opened._store)
        check(chains, texts)
        assert set(server.struck) - {"none"} == set(kinds)
        requests = len(server.seen)
        assert scored(recipe, tmp_path, texts) == chains and len(server.seen) == requests
    assert lines == 150 == len((tmp_path / "train" / "scores.jsonl").read_bytes().splitlines())
    timeouts = sum(number for message, number in usage.faults.items() if message.startswith("no complete response"))
    late = max(0, timeouts - server.struck["hang"] - server.struck["slow drip"])  # on a busy machine
    assert sum(server.scored.values()) <= 150 + 10 + late, "usable scores are not requested again"
    largest = max(len(p.plain + p.lead + c.text) for p, c in texts) + 1
    assert server.billed + server.billed_otherwise <= spent(tmp_path) <= server.billed + usage.retries * largest
    assert usage.retries > 50
    print(f"{requests} requests, {usage.retries} retries, billed {server.billed} + {server.billed_otherwise}, ledger"
          f" {spent(tmp_path):.0f}; {dict(server.struck)}")  # fmt: skip


@pytest.mark.parametrize("kind", scoring_stub.FAULTS)
def test_each_fault_alone(tmp_path: Path, kind: str) -> None:
    texts = rows(30)
    with serving(faults=0.3, kinds=(kind,), stuck=1.0) as server:
        timeout = 0.3 if kind in ("hang", "slow drip") else 5
        chains = scored(plan(server.url, timeout=timeout, patience=60), tmp_path, texts)
        assert server.struck[kind] > 3
    check(chains, texts)
    if kind not in scoring_stub.BROKEN and kind != "no usage":
        assert spent(tmp_path) == server.billed


# --- errors ----------------------------------------------------------------------------------------------------------


def fails(code: str, recipe: Recipe, folder: Path, texts: Rows) -> UserError:
    with pytest.raises(UserError) as raised:
        scored(recipe, folder, texts)
    assert raised.value.code == code, str(raised.value)
    return raised.value


def test_a_server_that_does_not_score_is_refused(tmp_path: Path) -> None:
    with serving(methods=()) as server:
        fails("E-teacher-cannot-score", plan(server.url), tmp_path, rows(3))
    assert spent(tmp_path) == server.billed > 0


def test_a_text_that_the_server_refuses_stops_the_run_and_the_others_are_stored(tmp_path: Path) -> None:
    texts = rows(20)
    with serving(poison="What is 13 + 6?") as server:
        error = fails("E-teacher-refused-request", plan(server.url, concurrency=2), tmp_path, texts)
        assert error.where == "s/13" and "context length" in error.found
        before = len(asked(server))
        server.poison = ""
        check(scored(plan(server.url), tmp_path, texts), texts)
        assert len(asked(server)) - before <= 20 - 10, "what was scored before the error is stored"
    assert spent(tmp_path) == server.billed


@pytest.mark.parametrize("key, code", [("api_key", "E-teacher-refuses"), ("dead", "E-teacher-no-answer")])
def test_a_server_that_stops_to_answer(tmp_path: Path, key: str, code: str) -> None:
    with serving() as server, scorer(plan(server.url, patience=0.5), tmp_path) as opened:
        opened.score(rows(5))
        setattr(server, key, "another" if key == "api_key" else True)
        with pytest.raises(UserError) as raised:
            opened.score(rows(10))
        assert raised.value.code == code
        setattr(server, key, "" if key == "api_key" else False)
        check(opened.score(rows(10)), rows(10))
    assert spent(tmp_path) == server.billed


def test_scores_of_another_model_are_not_used(tmp_path: Path) -> None:
    texts = rows(3)
    with serving() as server, serving(model="another") as other:
        scored(plan(server.url), tmp_path, texts)
        fails("E-teacher-server-changed", plan(other.url), tmp_path, rows(4))
        changed = plan(server.url).model_copy(
            update={"teacher": plan(server.url).teacher.model_copy(update={"top_logprobs": 5})}
        )
        error = fails("E-teacher-server-changed", changed, tmp_path, texts)
        assert "top_logprobs: 4 -> 5" in error.found
        check(scored(plan(server.url), tmp_path, rows(4)), rows(4))


@pytest.mark.parametrize(
    "keys, code", [({"budget": {"spent": "seal"}}, "E-teacher-cannot-seal"), ({}, "E-teacher-no-scores")]
)
def test_a_recipe_that_does_not_fit_is_refused(tmp_path: Path, keys: dict, code: str) -> None:
    recipe = plan("http://127.0.0.1:9/v1", **keys)
    if not keys:
        recipe = recipe.model_copy(update={"teacher": recipe.teacher.model_copy(update={"top_logprobs": 0})})
    fails(code, recipe, tmp_path, rows(1))


# --- budget ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [{"tokens": 2000}, {"money": 0.002, "prices": {"prompt": 1.0, "completion": 2.0}}])
def test_the_budget_stops_the_run_and_a_larger_one_continues_it(tmp_path: Path, limit: dict) -> None:
    texts = rows(120)
    with serving() as server:
        error = fails("E-teacher-budget-spent", plan(server.url, budget=limit), tmp_path, texts)
        assert error.where == f"teacher.budget.{next(iter(limit))}" and "seal" not in error.hint
        assert 1500 < server.billed <= 2000 and spent(tmp_path) == server.billed
        fails("E-teacher-budget-spent", plan(server.url, budget=limit), tmp_path, texts)
        assert server.billed <= 2000
        larger = limit | {name: limit[name] * 100 for name in limit if name != "prices"}
        check(scored(plan(server.url, budget=larger), tmp_path, texts), texts)
    assert spent(tmp_path) == server.billed
    assert sum(server.scored.values()) <= 120 + 3
    usage = ledger.total_usage(tmp_path)
    assert usage["money"] == pytest.approx(
        (usage["prompt_tokens"] + 2 * usage["completion_tokens"]) / 1e6 if "money" in limit else 0.0
    )


def test_what_scores_cost_is_in_the_runs_total_and_not_in_the_budget_of_sampling(tmp_path: Path) -> None:
    with ledger.LedgerWriter(ledger.ledger_path(tmp_path)) as writer:
        writer.record({"requests": 3, "prompt_tokens": 100, "completion_tokens": 50, "money": 0.5})
    with serving() as server:
        scored(plan(server.url, budget={"tokens": 5000}), tmp_path, rows(5))
        requests = len(server.seen)
    assert ledger.total_usage(tmp_path, "")["prompt_tokens"] == 100, "a budget of sampling does not count scores"
    total = ledger.total_usage(tmp_path)
    assert total["prompt_tokens"] + total["completion_tokens"] == 150 + server.billed
    assert ledger.describe_usage(tmp_path) == (
        f"{3 + requests} requests, {150 + server.billed} tokens ({round(total['completion_tokens'])} generated), cost 0.5000;"
        f" {requests} of these requests and {server.billed} tokens for scores of own texts"
    )
    rows_of_report = {cost.label: cost.number for cost in billed_costs("train", ledger.scoring_usage(tmp_path))}
    assert rows_of_report["requests to the teacher's server"] == requests and len(rows_of_report) == 3


def test_a_budget_that_does_not_allow_the_probe_sends_nothing(tmp_path: Path) -> None:
    with serving() as server:
        fails("E-teacher-budget-spent", plan(server.url, budget={"tokens": 20}), tmp_path, rows(2))
        with scorer(plan(server.url, budget={"tokens": 100}), tmp_path) as opened:
            for _ in range(2):  # enough for the probe, and for nothing else
                with pytest.raises(UserError, match="E-teacher-budget-spent"):
                    opened.score(rows(2))
    assert 0 < server.billed <= 100 and spent(tmp_path) == server.billed


def test_the_forecast_is_what_is_billed(tmp_path: Path) -> None:
    texts = rows(100)
    sizes = [len((prompt.plain + prompt.lead).encode()) for prompt, _ in texts]
    tokens = [len(scoring_stub.entries_of(chain.text, 1)) - 1 for _, chain in texts]
    with serving() as server:
        recipe = plan(server.url, budget={"prices": {"prompt": 1.0, "completion": 2.0}})
        mean = sum(sizes) / len(sizes)
        forecast = stored_scores.forecast_scoring(recipe, texts=100, max_tokens=max(tokens), prompt_bytes=mean)
        scored(recipe, tmp_path, texts)
    assert forecast.completion_tokens == 100
    assert 0.9 * server.billed < forecast.prompt_tokens + 100 < 3 * server.billed
    lines = "\n".join(stored_scores.describe_forecast(recipe, forecast))
    assert "100 texts" in lines and f"{forecast.money:.2f}" in lines


# --- crashes ---------------------------------------------------------------------------------------------------------


def test_a_crash_at_every_operation_loses_no_charge_and_doubles_no_text(tmp_path: Path) -> None:
    """Before, in and after every write, among them those between a response and its scores, and between its cost and its
    scores."""
    texts, number, finished = rows(6), 0, False
    while not finished:
        folder = tmp_path / str(number)
        with serving() as server:
            recipe = plan(server.url, concurrency=2)
            with crash(number):
                try:
                    scored(recipe, folder, texts, at_once=4)
                    finished = True
                except Crash:
                    pass
            stored = len(lines_of(folder))
            at_crash = sum(server.scored.values())
            check(scored(recipe, folder, texts, at_once=4), texts)
            assert len(lines_of(folder)) == 6, "nothing is doubled"
            assert spent(folder) >= server.billed, "nothing that was billed is missing"
            assert sum(server.scored.values()) - at_crash <= 6 - stored + 3, "what was stored is not scored again"
        number += 1
    assert number > 40
    assert spent(folder) == server.billed


@pytest.mark.parametrize("torn", [False, True])
def test_a_power_loss_keeps_the_scores_that_were_used_and_their_cost(tmp_path: Path, torn: bool) -> None:
    texts, finished = rows(6), False
    for number in itertools.count(0, 3):
        folder, left = tmp_path / str(number), tmp_path / f"left-{number}"
        folder.mkdir()
        with serving() as server:
            recipe, returned, billed = plan(server.url, concurrency=2), 0, 0
            draw = random.Random(number) if torn else None
            try:
                with cut_at(folder, number, left, draw), scorer(recipe, folder) as opened:
                    for at in (0, 3):
                        opened.score(texts[at : at + 3])
                        returned, billed = at + 3, server.billed
                finished = True
            except PowerLoss:
                assert len(ScoreStore(left / "train" / "scores.jsonl")) >= returned
                assert spent(left) >= billed
                check(scored(recipe, left, texts), texts)
        if finished:
            break
    assert number > 40


# --- kills -----------------------------------------------------------------------------------------------------------


KILLS = int(os.environ.get("POTSTILL_KILLS", "2"))


@pytest.mark.slow
def test_killed_again_and_again_every_text_is_stored_once_and_every_charge_counted(tmp_path: Path) -> None:
    """`kill -9` at random moments of a call, with faults: the ledger has at least what the server billed, and at most the
    reservation of each killed process more."""
    texts, draw = rows(120), random.Random(1)
    with serving(latency=0.02, faults=0.02, stuck=1.0) as server:
        recipe = plan(server.url, timeout=2, concurrency=4)
        for _ in range(KILLS):
            before = len(lines_of(tmp_path))
            process = start(scored, recipe, tmp_path, texts, 16, output=tmp_path / "output")
            while process.is_alive() and len(lines_of(tmp_path)) == before:
                time.sleep(0.01)
            time.sleep(draw.random() / 5)
            assert process.is_alive(), (tmp_path / "output").read_text()
            process.kill()
            process.join()
            stored = len(lines_of(tmp_path))
            assert before < stored < 120
            time.sleep(0.3)  # until the server has ended the requests of the killed process
            assert spent(tmp_path) >= server.billed + server.billed_otherwise
        known = sum(server.scored.values())
        check(scored(recipe, tmp_path, texts), texts)
        assert sum(server.scored.values()) - known <= 120 - stored, "what was stored is not scored again"
    largest = max(len(p.plain + p.lead + c.text) for p, c in texts) + 1
    lost = server.billed + server.billed_otherwise + KILLS * 4 * largest + server.unread * largest
    assert server.billed + server.billed_otherwise <= spent(tmp_path) <= lost
    assert len(lines_of(tmp_path)) == 120


def lines_of(folder: Path) -> list[bytes]:
    path = folder / "train" / "scores.jsonl"
    data = path.read_bytes() if path.exists() else b""
    return [line for line in data.splitlines(keepends=True) if line.endswith(b"\n")]
