"""Evaluation: every question is answered once, graded by the grader, and counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from markov import SOLUTION, writer
from potstill.evaluation import predict_answers, score_predictions
from potstill.evaluation.intervals import wilson_interval
from potstill.grading import grade
from potstill.inference import Decode, Generation, Request, batch_requests
from potstill.records import Checkpoint, Prediction, Prompt, Question, Turn


@dataclass
class Scripted:
    """An engine that answers with what is written behind the # of its prompt, and remembers what it was asked."""

    stop: str = "end"
    asked: list[list[tuple[str, int]]] = field(default_factory=list)
    decodes: list[Decode] = field(default_factory=list)

    def encode(self, prompt: Prompt) -> tuple[int, ...]:
        return tuple(prompt.plain.encode())

    def generate(self, requests: Sequence[Request], decode: Decode, on_tokens: object = None) -> list[Generation]:
        self.asked.append([request.key for request in requests])
        self.decodes.append(decode)
        texts = [bytes(request.prompt).partition(b"#")[2] for request in requests]
        return [Generation(one.key, (), (), text, (), self.stop) for one, text in zip(requests, texts, strict=True)]  # type: ignore[arg-type]


def ask(question: Question) -> Prompt:
    return Prompt((Turn("user", question.text),))


def question(name: str, answer: str, gold: str = "4", task: str = "number", set: str = "mine") -> Question:
    return Question(f"{set}/{name}", f"{name} #{answer}", gold, set, "validation", task)


QUESTIONS = [
    question("a", "The answer is 4"),
    question("bb", "The answer is 5"),
    question("ccc", "I do not know"),
    question("dd", "The answer is (A)", "(A)", "bbh/date_understanding", "bbh"),
    question("e", "", "(B)", "bbh/hyperbaton", "bbh"),
]


def test_predictions_are_graded_answers() -> None:
    engine = Scripted()
    found = [
        one for batch in predict_answers(engine, QUESTIONS, ask, Decode(max_tokens=9), budget=100) for one in batch
    ]
    assert {one.question for one in found} == {one.id for one in QUESTIONS} and len(found) == len(QUESTIONS)
    by_id = {one.id: one for one in QUESTIONS}
    for one in found:
        asked = by_id[one.question]
        verdict = grade(one.text, asked.gold, asked.task, one.stop)
        assert (one.grade, one.answer) == (verdict.grade, verdict.answer)
        assert (one.set, one.task, one.index) == (asked.set, asked.task, 0)
        assert one.text == asked.text.partition("#")[2]
    assert {one.question: one.grade for one in found}["mine/a"] == "right"
    assert {one.question: one.grade for one in found}["mine/bb"] == "wrong"
    assert engine.decodes == [Decode(max_tokens=9)] * len(engine.asked)


def test_an_answer_that_ran_out_is_truncated() -> None:
    [[one]] = predict_answers(
        Scripted("length"), [question("a", "First 2 + 2 is")], ask, Decode(max_tokens=9), budget=100
    )
    assert (one.grade, one.stop) == ("truncated", "length")


def test_batches_are_those_of_all_questions_whatever_is_done() -> None:
    requests = [Request((one.id, 0), tuple(one.text.encode())) for one in QUESTIONS]
    expected = [[requests[index].key for index in batch] for batch in batch_requests(requests, 60, max_tokens=9)]
    assert len(expected) > 2
    engine = Scripted()
    whole = list(predict_answers(engine, QUESTIONS[::-1], ask, Decode(max_tokens=9), budget=60))
    assert engine.asked == expected
    resumed = Scripted()
    done = {*expected[0], expected[1][0]}
    assert list(predict_answers(resumed, QUESTIONS, ask, Decode(max_tokens=9), budget=60, done=done)) == whole[1:]
    assert resumed.asked == expected[1:]


def test_samples_are_drawn_with_the_decoding_and_keep_their_index() -> None:
    engine = Scripted()
    decode = Decode(max_tokens=9, temperature=0.6, seed=5, likelihood=True)
    answered = predict_answers(engine, QUESTIONS, ask, decode, samples=3, budget=70)
    found = [one for batch in answered for one in batch]
    assert sorted((one.question, one.index) for one in found) == sorted((q.id, i) for q in QUESTIONS for i in range(3))
    assert all(one == decode for one in engine.decodes)
    with pytest.raises(AssertionError, match="counted twice"):
        score_predictions(found, checkpoint=Checkpoint(0), split="validation", format="f", decoding="vote-3")


def test_a_real_engine_answers() -> None:
    so = Question("m/1", "So", "four", "m", "test", "text")
    [[one]] = predict_answers(writer(), [so], ask, Decode(max_tokens=len(SOLUTION)), budget=99)
    assert one.text.startswith(" it was. The answer is four\nQQ") and one.stop == "length"


grades = st.sampled_from(["right", "wrong", "no answer", "truncated"])


rows = st.lists(st.tuples(st.sampled_from(["asdiv", "bbh"]), st.sampled_from("xyz"), grades), min_size=1)


@given(rows, st.randoms())
def test_scores_are_the_counts(rows, random) -> None:
    predictions = [
        Prediction(f"{name}/{number}", name, f"{name}/{task}", "t", "end", verdict, None)
        for number, (name, task, verdict) in enumerate(rows)
    ]
    scores = score_predictions(
        predictions, checkpoint=Checkpoint(7), split="test", format="zero-shot-answer", decoding="greedy"
    )
    assert [one.set for one in scores] == sorted({name for name, _, _ in rows})
    for one in scores:
        own = [(task, verdict) for name, task, verdict in rows if name == one.set]
        counts = [sum(verdict == name for _, verdict in own) for name in ("right", "no answer", "truncated")]
        assert (one.n, one.right, one.no_answer, one.truncated) == (len(own), *counts)
        assert (one.checkpoint.step, one.split, one.format, one.decoding) == (7, "test", "zero-shot-answer", "greedy")
        assert one.accuracy == one.right / one.n and (one.low, one.high) == wilson_interval(one.right, one.n)
        shares = {name: [verdict == "right" for task, verdict in own if task == name] for name, _ in own}
        means = [sum(verdicts) / len(verdicts) for verdicts in shares.values()]
        assert one.macro is None if len(means) == 1 else one.macro == pytest.approx(sum(means) / len(means))
        if one.macro is None:
            assert one.macro_low is one.macro_high is one.tasks_low is one.tasks_high is None
        else:
            assert 0 <= one.macro_low <= one.macro <= one.macro_high <= 1
            assert 0 <= one.tasks_low <= one.accuracy <= one.tasks_high <= 1
    random.shuffle(predictions)
    assert (
        score_predictions(
            predictions, checkpoint=Checkpoint(7), split="test", format="zero-shot-answer", decoding="greedy"
        )
        == scores
    )
