"""Evaluation: a student answers questions, the answers are graded, and every set gets a score.

    >>> one = Prediction("m/1", "m", "number", "The answer is 2", "end", "right", "2")
    >>> two = Prediction("m/2", "m", "number", "Perhaps", "length", "truncated", None)
    >>> labels = {"split": "validation", "format": "zero-shot-rationale", "decoding": "greedy"}
    >>> [score] = score_predictions([one, two], checkpoint=Checkpoint(0), **labels)
    >>> score.right, score.n, score.truncated, score.accuracy, (round(score.low, 2), round(score.high, 2))
    (1, 2, 1, 0.5, (0.09, 0.91))

Texts without an answer and truncated texts are not right; both are also counted separately.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from typing import Final

from potstill.evaluation import intervals
from potstill.grading import grade
from potstill.inference import Decode, Engine, Request, SampleKey, batch_requests
from potstill.records import Checkpoint, Prediction, Prompt, Question, Score, Split

__all__ = ["VERSION", "answer_batches", "predict_answers", "score_predictions"]

VERSION: Final = 1  # version of the generation and counting of answers; prompts and grading have separate versions


def predict_answers(
    engine: Engine,
    questions: Sequence[Question],
    prompt_of: Callable[[Question], Prompt],
    decode: Decode,
    *,
    samples: int = 1,
    budget: int,
    done: Container[SampleKey] = (),
    on_tokens: Callable[[int], None] | None = None,
) -> Iterator[list[Prediction]]:
    """Graded answers, one list per batch, longest prompts first. See `answer_batches`."""
    batches = answer_batches(
        engine, questions, prompt_of, decode, samples=samples, budget=budget, done=done, on_tokens=on_tokens
    )
    return (predictions for _, predictions in batches)


def answer_batches(
    engine: Engine,
    questions: Sequence[Question],
    prompt_of: Callable[[Question], Prompt],
    decode: Decode,
    *,
    samples: int = 1,
    budget: int,
    done: Container[SampleKey] = (),
    chosen: Callable[[int], bool] = lambda number: True,
    on_tokens: Callable[[int], None] | None = None,
) -> Iterator[tuple[int, list[Prediction]]]:
    """Graded answers, one list per batch, longest prompts first; and the position of each batch's first answer among all.

    samples    number of answers per question
    budget     maximum number of tokens in a batch: prompts and answers
    done       stored keys (question, index). A batch without a new key is skipped; otherwise the whole batch is generated
    chosen     whether to generate the batch with this number, from 0. Batches and positions do not depend on it
    on_tokens  see `Engine.generate`

    Raises UserError for a prompt that does not fit the model, and for a gold answer that cannot be graded.
    """
    by_id = {question.id: question for question in questions}
    assert len(by_id) == len(questions), "two questions with one id"
    requests: list[Request] = []
    for question in questions:
        prompt = engine.encode(prompt_of(question))
        requests += [Request((question.id, index), prompt) for index in range(samples)]
    position = 0
    for number, indices in enumerate(batch_requests(requests, budget, max_tokens=decode.max_tokens)):
        first, position = position, position + len(indices)
        batch = [requests[index] for index in indices]
        if not chosen(number) or all(request.key in done for request in batch):
            continue
        predictions = []
        for generated in engine.generate(batch, decode, on_tokens):
            question_id, index = generated.key
            question, text, stop = by_id[question_id], generated.text, generated.stop
            verdict = grade(text, question.gold, question.task, stop, opened=generated.opened)
            graded = (verdict.grade, verdict.answer, index, generated.likelihood)
            predictions.append(Prediction(question.id, question.set, question.task, text, stop, *graded))
        yield first, predictions


def score_predictions(
    predictions: Iterable[Prediction],
    *,
    checkpoint: Checkpoint,
    split: Split,
    format: str,
    decoding: str,
    stop_repeats: bool = False,
) -> list[Score]:
    """One score per set, sorted by name, with Wilson's 95 % interval of the accuracy.

    stop_repeats  whether texts that repeat themselves were stopped; if so, they are counted

    A set of several tasks (BBH) also gets `macro`, the unweighted mean of its tasks' accuracies, and intervals of both
    means that are clustered by task, limited to [0, 1]. Every question counts once. Samples of a question are not
    independent trials, so a caller with several samples must first choose or vote.
    """
    sets: dict[str, list[Prediction]] = {}
    for prediction in predictions:
        sets.setdefault(prediction.set, []).append(prediction)
    scores = []
    for name in sorted(sets):
        grades = [prediction.grade for prediction in sets[name]]
        n, right = len(grades), grades.count("right")
        assert len({prediction.question for prediction in sets[name]}) == n, f"{name}: a question is counted twice"
        low, high = intervals.wilson_interval(right, n)
        counts = (n, right, grades.count("no answer"), grades.count("truncated"), right / n, low, high)
        over_tasks = _score_tasks(sets[name], low, high)
        stops = [prediction.stop for prediction in sets[name] if prediction.grade == "truncated"]
        repeated = stops.count("repeat") if stop_repeats else None
        scores.append(Score(checkpoint, name, split, format, decoding, *counts, **over_tasks, repeated=repeated))
    return scores


def _score_tasks(predictions: Sequence[Prediction], low: float, high: float) -> dict[str, float]:
    """The fields of a score that only a set of several tasks has. low, high: Wilson's interval of the accuracy."""
    tasks: dict[str, list[float]] = {}
    for prediction in predictions:
        tasks.setdefault(prediction.task, []).append(float(prediction.grade == "right"))
    if len(tasks) == 1:
        return {}
    clustered = intervals.clustered_intervals([tasks[task] for task in sorted(tasks)])
    (_, tasks_low, tasks_high), (macro, macro_low, macro_high) = clustered
    # A clustered interval is never narrower than Wilson's interval, even if all tasks agree.
    accuracy = sum(map(sum, tasks.values())) / len(predictions)
    bounds = {
        "macro_low": min(macro_low, macro - (accuracy - low)),
        "macro_high": max(macro_high, macro + (high - accuracy)),
        "tasks_low": min(tasks_low, low),
        "tasks_high": max(tasks_high, high),
    }
    return {"macro": macro, **{name: min(1.0, max(0.0, bound)) for name, bound in bounds.items()}}
