"""Live against two servers that nobody here wrote: what each says of a sampled chain is what its model says in this
process.

`make test-servers` builds their environments and runs these; elsewhere they skip. POTSTILL_VLLM and POTSTILL_LLAMA_CPP
name their interpreters.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

import potstill
import record_vllm
import servers
from potstill import inference, models, prompts, teachers
from potstill.errors import UserError
from potstill.models import Student
from potstill.recipe import Recipe, parse_recipe
from potstill.records import END, Chain, Prompt, Question, Turn
from potstill.serialization import decode_bytes
from potstill.teachers import SamplingState, UsageMeter
from potstill.teachers.openai_api import scoring
from potstill.teachers.openai_api.scoring import ScoringMethod
from potstill.teachers.openai_api.stored_scores import StoredScorer

pytestmark = pytest.mark.slow
CLOSE = 1e-5 + 5e-7  # and the rounding of stored log-probabilities
NEAR = 1e-3  # llama.cpp: other sums and other exponentials than torch's


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return servers.model(tmp_path_factory.mktemp("served") / "model")


@pytest.fixture(scope="module")
def student(folder: Path) -> Student:
    return models.open_student(folder)


@pytest.fixture(scope="module")
def url(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    python = os.environ.get("POTSTILL_VLLM")
    if not python:
        pytest.skip("POTSTILL_VLLM names no interpreter with vLLM: run `make test-servers`")
    port = servers.port()
    log = tmp_path_factory.mktemp("log") / "vllm.log"
    with servers.served(python, servers.vllm(folder, port), port, log, patience=900) as found:
        yield found


@pytest.fixture(scope="module")
def rambling(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return servers.rambling(tmp_path_factory.mktemp("rambling") / "model")


@pytest.fixture(scope="module")
def here(rambling: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """What the engine `vllm` wrote without a server, in vLLM's interpreter."""
    python = os.environ.get("POTSTILL_VLLM")
    if not python:
        pytest.skip("POTSTILL_VLLM names no interpreter with vLLM: run `make test-servers`")
    out, program = tmp_path_factory.mktemp("here") / "out.json", Path(record_vllm.__file__)
    path = os.pathsep.join([str(Path(potstill.__file__).parents[2]), str(program.parent)])
    environment = {**os.environ, **servers.SMALL, "PYTHONPATH": path}
    subprocess.run([python, str(program), str(rambling), str(out)], env=environment, check=True, timeout=900)
    return json.loads(out.read_text("utf-8"))["texts"]


@contextlib.contextmanager
def llama_cpp(folder: Path, tmp: Path, first: int | None = None) -> Iterator[str]:
    python = os.environ.get("POTSTILL_LLAMA_CPP")
    if not python:
        pytest.skip("POTSTILL_LLAMA_CPP names no interpreter with llama-cpp-python: run `make test-servers`")
    port = servers.port()
    with servers.served(python, servers.llama_cpp(python, folder, port, first), port, tmp / "log", 300) as found:
        yield found


@pytest.fixture(scope="module")
def llama_url(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with llama_cpp(folder, tmp_path_factory.mktemp("llama_cpp")) as found:
        yield found


def asked() -> list[Question]:
    return [Question(f"s/{i}", text, "4", "s", "train", "number") for i, (text, _) in enumerate(servers.rows(12))]


def plan(url: str, *changes: str) -> Recipe:
    base = "name: live\nteacher: {kind: openai, model: tiny, samples: 6, max_tokens: 40, top_logprobs: 5}\n"
    own = [
        f"teacher.server.urls=['{url}']",
        "teacher.server.samples_per_request=3",
        "teacher.temperature=0.8",
        *changes,
    ]
    return parse_recipe(base, "live.yaml", own)


def sampled(recipe: Recipe) -> tuple[dict, list[Chain]]:
    server = teachers.from_recipe(recipe).probe(asked())
    batches = teachers.from_recipe(recipe).sample(asked(), SamplingState(server=server, usage=UsageMeter()))
    return server, [chain for batch in batches for chain in batch]


def differences(chains: list[Chain], student: Student, first: tuple[int, ...] = ()) -> list[float]:
    """Of every candidate whose bytes are one token's: the server's log-probability against the model's own.

    first  tokens that the server puts before a prompt
    """
    tokenizer = student.tokenizer
    pieces = {
        tokenizer.token_bytes(token): token for token in reversed(range(tokenizer.size)) if tokenizer.token_bytes(token)
    }
    by_id = {question.id: question for question in asked()}
    found: list[float] = []
    for chain in chains:
        if chain.stop == "cut" or sum(map(len, chain.tokens)) != len(chain.content):
            continue  # cut inside a token, or with one whose bytes are unknown: which one it was cannot be said
        asking = prompts.build_prompt(
            by_id[chain.question].text, prompts.FORMATS["zero-shot-rationale"], style=prompts.TEACHER_STYLE
        )
        before = [*first, *student.encode(student.render(asking))]
        own = [pieces[token] for token in chain.tokens]
        table = servers.distributions(student, [*before, *own])
        for position, step in enumerate(chain.candidates[: len(own) + (chain.stop == "end")]):
            for what, value in step:
                token = tokenizer.eos if what is END else pieces[what]  # type: ignore[index]
                found.append(abs(float(table[len(before) - 1 + position, token]) - value))
    return found


@pytest.mark.parametrize("with_tokenizer", [True, False])
@pytest.mark.parametrize("api", ["completions", "chat"])
def test_sampled_chains_rescored_in_process_agree(url, folder, student, api: str, with_tokenizer: bool) -> None:
    tokenizer = [f"teacher.server.tokenizer={folder}"] if with_tokenizer else []
    server, chains = sampled(plan(url, f"teacher.server.api={api}", *tokenizer))
    assert server["semantics"] == "raw" and server["n"] and len(chains) == len({chain.key for chain in chains}) == 72
    if api == "chat":
        return  # its template joins turns in its own way: completions are compared
    values = differences(chains, student)
    print(f"{api}, bytes from {server['bytes']}: {len(values)} values, largest difference {max(values):.2e}")
    assert len(values) > 3000 and max(values) < CLOSE
    if with_tokenizer:
        assert server["bytes"] == "ids" and not any("unknown" in mark for chain in chains for mark in chain.defects)
        assert any(b"\xc3" in chain.tokens for chain in chains) or not any("é" in chain.text for chain in chains)


def test_texts_of_vllm_without_a_server_rescored_in_process_agree(here, rambling: Path) -> None:
    student = models.open_student(rambling)
    tokenizer, reference = student.tokenizer, inference.open_engine(student)
    values: list[float] = []
    for name, case in record_vllm.CASES.items():
        for request, text in zip(
            record_vllm.requests(reference, record_vllm.samples_of(case)), here[name], strict=True
        ):
            table = servers.distributions(student, [*request.prompt, *text["ids"]])[len(request.prompt) - 1 :]
            drawn = [*text["ids"], *([tokenizer.eos] if text["stop"] == "end" else [])]
            own = [float(table[position, token]) for position, token in enumerate(drawn)]
            if text["likelihood"] is not None:
                assert text["likelihood"] == pytest.approx(sum(own), abs=CLOSE * len(own))
            for position, step in enumerate(text["candidates"]):
                shown = {what if what is None else decode_bytes(what): value for what, value in step}
                for token in np.argsort(-table[position])[: case["top_logprobs"]]:
                    what = None if token == tokenizer.eos else tokenizer.token_bytes(int(token))
                    if what is None or what:  # else a special token, which adds nothing to a text
                        values.append(abs(shown[what] - float(table[position, token])))
    print(f"vLLM without a server: {len(values)} values, largest difference {max(values):.2e}")
    assert len(values) > 500 and max(values) < CLOSE


@pytest.mark.parametrize("name", ["greedy", "sentence"])
def test_greedy_texts_of_vllm_without_a_server_are_those_of_the_reference(here, rambling: Path, name: str) -> None:
    engine = inference.open_engine(rambling)
    requests = record_vllm.requests(engine, 1)
    theirs = record_vllm.told(engine.generate(requests, inference.Decode(**record_vllm.CASES[name])))
    for one, other in zip(here[name], theirs, strict=True):
        assert [one[key] for key in ("key", "ids", "content", "stop")] == [
            other[key] for key in ("key", "ids", "content", "stop")
        ]


@pytest.mark.parametrize("api", ["completions", "chat"])
def test_sampled_chains_of_llama_cpp_rescored_in_process_agree(llama_url, student, api: str) -> None:
    server, chains = sampled(plan(llama_url, f"teacher.server.api={api}", "teacher.server.concurrency=2"))
    assert server["semantics"] == "raw" and not server["n"] and server["bytes"] == "strings"
    assert len(chains) == len({chain.key for chain in chains}) == 72
    if api == "chat":
        return
    values = differences(chains, student)
    print(f"llama-cpp-python, {api}: {len(values)} values, largest difference {max(values):.2e}")
    assert len(values) > 1000 and max(values) < NEAR


@pytest.mark.parametrize("way", ["prompt_logprobs", "echo"])
def test_texts_that_exist_are_scored_by_the_server(url, folder, student, way, tmp_path) -> None:
    recipe = plan(url, f"teacher.server.tokenizer={folder}")
    values = differences(scored(recipe, student, way, tmp_path), student)
    print(f"{way}: {len(values)} values, largest difference {max(values):.2e}")
    assert len(values) > 500 and max(values) < CLOSE


def test_texts_that_exist_are_scored_by_llama_cpp(folder, student, tmp_path) -> None:
    """With a token before every prompt, as most of its models have one."""
    with llama_cpp(folder, tmp_path, first=0) as url:
        values = differences(
            scored(plan(url, "teacher.server.concurrency=2"), student, None, tmp_path), student, first=(0,)
        )
    print(f"llama-cpp-python, echo: {len(values)} values, largest difference {max(values):.2e}")
    assert len(values) > 100 and max(values) < NEAR


def test_scores_that_llama_cpp_gives_to_the_token_before_are_refused(llama_url, student, tmp_path) -> None:
    with pytest.raises(UserError, match="E-teacher-inconsistent-scores") as raised:
        scored(plan(llama_url, "teacher.server.concurrency=2"), student, None, tmp_path)
    print(raised.value)


def scored(recipe: Recipe, student: Student, way: ScoringMethod | None, folder: Path) -> list[Chain]:
    """The solutions of the questions asked, as the recipe's server scores them. way: None: any method."""
    rows = []
    for question, (_, text) in zip(asked(), servers.rows(12), strict=True):
        made = prompts.build_prompt(question.text, prompts.FORMATS["zero-shot-rationale"], style=prompts.TEACHER_STYLE)
        prompt = Prompt((Turn("user", student.render(made)),))
        rows.append((prompt, Chain.from_text(question.id, 0, text, source="human", stop="length")))
    methods = scoring.SCORING_METHODS if way is None else (way,)
    with (
        mock.patch.object(scoring, "SCORING_METHODS", methods),
        StoredScorer(recipe, folder=folder, usage=contextlib.nullcontext(UsageMeter())) as scorer,
    ):
        chains = scorer.score(rows)
    assert [(chain.key, chain.text) for chain in chains] == [(chain.key, chain.text) for _, chain in rows]
    return chains


def test_more_candidates_than_the_cap_are_refused_with_advice(url: str) -> None:
    with pytest.raises(UserError, match="E-teacher-top-logprobs"):
        sampled(plan(url, "teacher.top_logprobs=50"))


def test_the_model_is_neither_flat_nor_sharp(student: Student) -> None:
    """Else the comparison would say little."""
    ids = student.encode(student.render(prompts.build_prompt(asked()[0].text, prompts.FORMATS["zero-shot-rationale"])))
    table = servers.distributions(student, ids)
    assert 0.2 < float(-(np.exp(table) * table).sum(-1).mean()) < 4.5
