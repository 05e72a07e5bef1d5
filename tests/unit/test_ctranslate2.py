"""CTranslate2 compared with transformers: the same greedy texts and scores, and unsupported settings are refused."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch

import tiny
from potstill import inference, runner
from potstill.errors import UserError
from potstill.evaluation import checkpoint
from potstill.inference import Decode, Request, ctranslate2
from potstill.inference.transformers import TransformersEngine
from potstill.models import Head, Shape, Student, random_student
from potstill.recipe import Recipe, parse_recipe
from potstill.records import END, Checkpoint
from tools.toy_models.tokenizer_training import train_bpe, train_unigram

library = pytest.importorskip("ctranslate2", reason="CTranslate2 is not installed (pip install 'potstill[fast]')")
TEXTS = ["Tom has 3 apples and buys 4 more.", "3 + 4 = 7.", "The answer is 7", "Let's think step by step"] * 3


def small(family: str, *, tied: bool = False, spare: int = 3) -> Student:
    tokenizer = train_unigram(TEXTS, 60) if family == "t5" else train_bpe(TEXTS, 262)
    size = tokenizer.size + spare
    shape = Shape(family, d_model=16, layers=2, heads=2, d_ff=24, d_kv=8, vocabulary=size, tied=tied)  # type: ignore[arg-type]
    student = random_student(shape, tokenizer, 1)
    with torch.no_grad():  # sharper logits: the draws of a random model are nearly uniform
        student.head.weight.mul_(0.5 if tied else 3.0)
    return student


@pytest.fixture(scope="module", params=["t5", "t5-tied", "causal"])
def student(request: pytest.FixtureRequest) -> Student:
    family, _, tied = request.param.partition("-")
    return small(family, tied=bool(tied))


def make_requests(student: Student, samples: int = 1) -> list[Request]:
    words = student.encode("Tom has 3 apples and buys 4 more.")
    prompts = [tuple((words * 3)[row : row + length]) for row, length in enumerate((3, 9, 1, 5, 9, 20))]
    return [Request((f"q{row}", index), prompt) for row, prompt in enumerate(prompts) for index in range(samples)]


@pytest.mark.parametrize("shortest, rows", [(1, 16), (3, 16), (1, 2), (1, 1)])
def test_greedy_texts_are_those_of_the_reference(
    student: Student, shortest: int, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In any order and in batches of any size."""
    monkeypatch.setattr(ctranslate2, "ROWS_PER_BATCH", rows)
    requests = [request for request in make_requests(student) if len(request.prompt) >= shortest]
    ours = ctranslate2.CTranslate2Engine(student).generate(requests, Decode(max_tokens=12, likelihood=True))
    theirs = TransformersEngine(student).generate(requests, Decode(max_tokens=12, likelihood=True))
    for one, other in zip(ours, theirs, strict=True):
        assert (one.key, one.ids, one.tokens, one.stop) == (other.key, other.ids, other.tokens, other.stop)
        assert one.likelihood == pytest.approx(other.likelihood, abs=1e-3)


def test_a_long_input_is_not_cut() -> None:
    student = small("t5")
    words = student.encode("Tom has 3 apples and buys 4 more.")
    ends = [tuple((words * 200)[:1500]), (*(words * 200)[:1499], words[3])]
    requests = [Request((f"q{row}", 0), prompt) for row, prompt in enumerate(ends)]
    ours = ctranslate2.CTranslate2Engine(student).generate(requests, Decode(max_tokens=8, likelihood=True))
    theirs = TransformersEngine(student).generate(requests, Decode(max_tokens=8, likelihood=True))
    assert [text.ids for text in ours] == [text.ids for text in theirs]
    assert [text.likelihood for text in ours] == pytest.approx([text.likelihood for text in theirs], abs=1e-3)
    short = random_student(Shape("causal", 8, 1, 1, 8, 8, 262, length=20), train_bpe(TEXTS, 262), 1)
    with pytest.raises(UserError) as raised:
        ctranslate2.CTranslate2Engine(short).generate([Request(("q", 0), (5,) * 13)], Decode(max_tokens=8))
    assert raised.value.code == "E-inference-prompt-too-long"


@pytest.mark.parametrize("tied", [False, True])
def test_a_conversion_with_other_scores_is_refused(tied: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    student = small("t5", tied=tied)
    right = student.head.scale
    assert right == (student.model.config.d_model**-0.5 if tied else 1.0)
    # What the library's converter would do: take the scale from a key that means something else by now.
    wrong = 1.0 if tied else student.model.config.d_model**-0.5
    plain = type(student).head.fget  # type: ignore[attr-defined]
    monkeypatch.setattr(
        type(student), "head", property(lambda self: Head(plain(self).weight, scale=wrong)), raising=True
    )
    with pytest.raises(UserError) as raised:
        ctranslate2.CTranslate2Engine(student)
    assert raised.value.code == "E-inference-ctranslate2-parity"


def test_samples_follow_the_distribution_whatever_their_index(student: Student) -> None:
    request = make_requests(student)[1]
    requests = [Request(("q", index), request.prompt) for index in range(1200)]
    engine = ctranslate2.CTranslate2Engine(student)
    texts = engine.generate(requests, Decode(max_tokens=1, temperature=1.0, seed=4))
    again = engine.generate(requests, Decode(max_tokens=1, temperature=1.0, seed=4))
    assert texts == again != engine.generate(requests, Decode(max_tokens=1, temperature=1.0, seed=5))
    [shown] = TransformersEngine(student).generate([request], Decode(max_tokens=1, top_logprobs=2))
    outcome, log = shown.candidates[0][0]
    share = float(torch.tensor(log).exp())
    for part in (texts[:600], texts[600:]):
        counts = Counter(text.tokens[0] if text.ids else END for text in part)
        assert abs(counts[outcome] / 600 - share) < 4.5 * (share * (1 - share) / 600) ** 0.5


def test_samples_depend_on_their_batch_so_its_size_has_a_version() -> None:
    engines = {name: Recipe(name="t", evaluate={"engine": name}) for name in ("transformers", "ctranslate2-int8")}
    inputs = {name: checkpoint.collect_grader_digests(recipe, "test") for name, recipe in engines.items()}
    assert inputs["ctranslate2-int8"] == {"version of ctranslate2": str(inference.CTRANSLATE2_VERSION)}
    assert inputs["transformers"] == {}


def test_int8_writes_texts(student: Student) -> None:
    texts = ctranslate2.CTranslate2Engine(student, int8=True).generate(make_requests(student), Decode(max_tokens=12))
    assert all(b"".join(text.tokens) == text.content and len(text.ids) <= 12 for text in texts)


def test_what_it_does_not_have_is_refused(student: Student) -> None:
    engine = ctranslate2.CTranslate2Engine(student)
    with pytest.raises(UserError) as raised:
        engine.generate(make_requests(student), Decode(max_tokens=2, top_logprobs=2))
    assert raised.value.code == "E-inference-unsupported-option"
    with pytest.raises(UserError) as raised:
        engine.generate(make_requests(student), Decode(max_tokens=2, calculator=True))
    assert raised.value.code == "E-inference-unsupported-option"
    with pytest.raises(UserError, match="E-recipe-calculator-engine"):
        parse_recipe("name: x\nevaluate: {engine: ctranslate2, decodings: [greedy+calculator]}\n", "x.yaml")


def test_a_run_answers_as_with_the_reference(tmp_path: Path) -> None:
    data = tiny.world(tmp_path)
    folder = tiny.make(data, tmp_path / "run", "train.steps=2", until="evaluate")
    before = list(checkpoint.read_predictions(folder / "evaluate", Checkpoint(2), "zero-shot-rationale", "greedy"))
    recipe = tiny.recipe(data, "train.steps=2", "evaluate.engine=ctranslate2", "evaluate.decodings=[greedy, vote-3]")
    runner.run(recipe, run_dir=folder, redo="evaluate", until="evaluate")
    after = {
        each.question: each
        for each in checkpoint.read_predictions(folder / "evaluate", Checkpoint(2), "zero-shot-rationale", "greedy")
    }
    assert sum(each.text == after[each.question].text for each in before) >= len(before) - 1
    assert list(checkpoint.read_predictions(folder / "evaluate", Checkpoint(2), "zero-shot-rationale", "vote-3"))
