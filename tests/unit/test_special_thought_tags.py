"""Texts of a model whose tags of thoughts are special tokens are read like those of a model whose tags are text: by the
grader, by the cut of thoughts, in the warning about cut answers, and as own texts."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from transformers import AutoTokenizer

from markov import markov
from potstill import tokenization
from potstill.cut_thoughts import is_cut_in_thought
from potstill.grading import grade
from potstill.inference import Decode, Generation, Request
from potstill.inference.transformers import TransformersEngine
from potstill.models import Shape, random_student
from potstill.records import END, Prediction
from potstill.report.card import decoding_code
from potstill.teachers.local_model import build_chain
from potstill.tokenization import Tokenizer
from potstill.training.own_texts import Slot, write_texts
from special_tags import CHANNELS, XML, ids_of, with_tags

THOUGHT = ("<think>", "The answer is 4. Wait, no.", "</think>")
ANSWER = "2 + 3 = 5"  # an answer without its sentence: the grader must not take that of the thought


@pytest.fixture(scope="module")
def special(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return with_tags(tmp_path_factory.mktemp("a") / "special", special=True)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return with_tags(tmp_path_factory.mktemp("b") / "plain", special=False)


@pytest.fixture(scope="module")
def engines(special: Tokenizer, plain: Tokenizer) -> tuple[TransformersEngine, TransformersEngine]:
    """The same weights and ids with both tokenizers."""
    shape = Shape("causal", d_model=16, layers=1, heads=2, d_ff=16, d_kv=8, vocabulary=special.size)
    one, two = (TransformersEngine(random_student(shape, tokenizer, 1)) for tokenizer in (special, plain))
    return one, two


def written(engine: TransformersEngine, pieces: tuple[str, ...], *, ended: bool = True) -> Generation:
    tokenizer = engine.student.tokenizer
    tokens = [*ids_of(tokenizer, pieces), *([tokenizer.eos] if ended else [])]
    return engine.to_generation(("a", 0), tokens, [], None)


def test_the_grader_does_not_read_the_thought(engines: tuple[TransformersEngine, TransformersEngine]) -> None:
    texts = [written(engine, (*THOUGHT, ANSWER)).text for engine in engines]
    assert texts[0] == texts[1] == "".join((*THOUGHT, ANSWER))
    assert grade(texts[0], "5", "number").grade == "right"
    assert grade("".join((THOUGHT[1], ANSWER)), "5", "number").grade == "wrong", "what it read without the tags"


def test_an_answer_that_was_cut_in_its_thought_is_seen(
    engines: tuple[TransformersEngine, TransformersEngine],
) -> None:
    for engine in engines:
        text = written(engine, THOUGHT[:2], ended=False).text
        assert grade(text, "4", "number", "length").grade == "truncated"
        assert is_cut_in_thought(Prediction("a", "s", "number", text, "length", "truncated", None), opened=False)


@pytest.mark.parametrize("reasoning", ["both", "answer", "reasoning", "shortened"])
def test_a_local_teacher_cuts_its_thoughts(
    engines: tuple[TransformersEngine, TransformersEngine], reasoning: str
) -> None:
    pieces = ("<think>", "2 + 3 = 5. So the answer is 5. Wait, is it? Yes.", "</think>", "\nThe answer is 5")
    chains = [build_chain(written(engine, pieces), "t", chat=True, reasoning=reasoning) for engine in engines]
    assert chains[0] == chains[1]
    thought, answer = "2 + 3 = 5. So the answer is 5.", "The answer is 5"
    whole = f"{thought} Wait, is it? Yes."
    expected = {"both": f"{whole}\n{answer}", "answer": answer, "reasoning": whole, "shortened": f"{thought}\n{answer}"}
    assert chains[0].text == expected[reasoning]


PIECES = some.lists(some.sampled_from([*XML, *CHANNELS, "final", "2 + 3", " = 5", "\n\n", "é"]), max_size=8)


@settings(max_examples=100, deadline=None)
@given(PIECES, some.booleans())
def test_special_and_plain_tags_make_the_same_text(
    engines: tuple[TransformersEngine, TransformersEngine], pieces: list[str], ended: bool
) -> None:
    one, two = (written(engine, tuple(pieces), ended=ended) for engine in engines)
    assert one == two and one.content.decode() == "".join(pieces)


def test_the_probabilities_of_tags_are_candidates(special: Tokenizer, plain: Tokenizer) -> None:
    """With generated texts, whose steps are the same for both tokenizers."""
    pieces = ("<think>", "a", "</think>", "5")
    made = []
    for tokenizer in (special, plain):
        ids = ids_of(tokenizer, pieces)
        engine = markov(tokenizer, {here: {there: 0.0} for here, there in itertools.pairwise(ids)})
        start = Request(("q", 0), (ids[0],))
        made.append(engine.generate([start], Decode(max_tokens=9, top_logprobs=2))[0])
    assert made[0] == made[1] and made[0].text == "a</think>5" and made[0].stop == "end"
    assert [step[0][0] for step in made[0].candidates] == [b"a", b"</think>", b"5", END]


def test_own_texts_have_the_tags(special: Tokenizer) -> None:
    ids = ids_of(special, ("Q", *THOUGHT[::2], "5"))
    engine = markov(special, {here: {there: 0.0} for here, there in itertools.pairwise(ids)})
    slot = Slot(1, 0, "a", ids[:1], "own")
    [[text]] = write_texts(
        engine, [slot], Decode(max_tokens=9), samples=1, batch_tokens=99, vocabulary=special.size
    ).values()
    assert text.text == "<think></think>5" and text.ids == ids[1:]


def test_runs_with_special_tags_are_other_runs(tmp_path: Path, special: Tokenizer, plain: Tokenizer) -> None:
    """Only where the texts change."""
    for name, tokenizer in (("special", special), ("plain", plain)):
        (tmp_path / name).mkdir()
        for file, content in tokenizer.files.items():
            (tmp_path / name / file).write_bytes(content)
    assert tokenization.thought_tags_identity(tmp_path / "plain", "k") == {}
    found = tokenization.thought_tags_identity(tmp_path / "special", "k")
    assert set(found) == {"k (tags of thoughts)"} and "<think>" in found["k (tags of thoughts)"].split(", ")


def test_the_program_of_the_card_keeps_the_tags(
    engines: tuple[TransformersEngine, TransformersEngine], tmp_path: Path
) -> None:
    engine, _ = engines
    tokenizer = engine.student.tokenizer
    engine.student.save(tmp_path)
    tags = tuple(name.decode() for name in tokenizer.vocabulary.thought_tags.values())
    for pieces in ((*THOUGHT, ANSWER), (THOUGHT[1],), (ANSWER, *THOUGHT, *THOUGHT)):
        ids = [*ids_of(tokenizer, pieces), tokenizer.eos]
        statements, expression = decoding_code(tags)
        scope = {"tokenizer": AutoTokenizer.from_pretrained(tmp_path), "text": torch.tensor(ids)}
        exec("\n".join([*statements, f"text = {expression}"]), scope)
        assert scope["text"] == written(engine, pieces).text == "".join(pieces)
    statements, expression = decoding_code(())
    assert not statements and "skip_special_tokens=True" in expression
