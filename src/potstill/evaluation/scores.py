"""Graded answers of an engine to questions, and one score per set: the same for every split, stage and checkpoint.

    >>> one = Prediction("m/1", "m", "number", "The answer is 2", "end", "right", "2")
    >>> two = Prediction("m/2", "m", "number", "Perhaps", "length", "truncated", None)
    >>> labels = {"split": "validation", "format": "zero-shot-rationale", "decoding": "greedy"}
    >>> [score] = score_predictions([one, two], checkpoint=Checkpoint(0), **labels)
    >>> score.right, score.n, score.truncated, score.accuracy, (round(score.low, 2), round(score.high, 2))
    (1, 2, 1, 0.5, (0.09, 0.91))

Texts without an answer and texts that ran out of tokens are not right, and each of the two is also counted separately.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Sequence

from potstill.evaluation import intervals
from potstill.grading import grade
from potstill.inference import Decode, Engine, Request, SampleKey, batch_requests
from potstill.records import Checkpoint, Prediction, Prompt, Question, Score, Split


def predict_answers(
    engine: Engine,
    questions: Sequence[Question],
    prompt_of: Callable[[Question], Prompt],
    decode: Decode,
    *,
    samples: int = 1,
    budget: int,
    done: Container[SampleKey] = (),
) -> Iterator[list[Prediction]]:
    """Graded answers, one list per batch, longest prompts first.

    samples  number of answers per question
    budget   maximum number of tokens in a batch, prompts and answers
    done     stored keys (question, index): a batch without any new key is skipped, any other is generated whole

    Raises UserError for a prompt that does not fit the model, and for a gold answer that cannot be graded.
    """
    by_id = {question.id: question for question in questions}
    assert len(by_id) == len(questions), "two questions with one id"
    requests = [
        Request((question.id, index), prompt)
        for question in questions
        for prompt in [engine.encode(prompt_of(question))]
        for index in range(samples)
    ]
    for batch in batch_requests(requests, budget, max_tokens=decode.max_tokens):
        batch_of_requests = [requests[index] for index in batch]
        if all(request.key in done for request in batch_of_requests):
            continue
        predictions = []
        for text in engine.generate(batch_of_requests, decode):
            question = by_id[text.key[0]]
            verdict = grade(text.text, question.gold, question.task, text.stop)
            predictions.append(
                Prediction(
                    question=question.id,
                    set=question.set,
                    task=question.task,
                    text=text.text,
                    stop=text.stop,
                    grade=verdict.grade,
                    answer=verdict.answer,
                    index=text.key[1],
                    likelihood=text.likelihood,
                )
            )
        yield predictions


def score_predictions(
    predictions: Iterable[Prediction], *, checkpoint: Checkpoint, split: Split, format: str, decoding: str
) -> list[Score]:
    """One score per set, sorted by name, with Wilson's 95 % interval of the accuracy.

    A set of several tasks (BBH) also gets `macro`, the unweighted mean of its tasks' accuracies, and intervals of both
    that are clustered by task, limited to [0, 1]. Each question counts once: samples of one question are not
    independent trials, so a caller with several samples must first choose or vote.
    """
    sets: dict[str, list[Prediction]] = {}
    for prediction in predictions:
        sets.setdefault(prediction.set, []).append(prediction)
    return [_score_set(name, sets[name], checkpoint, split, format, decoding) for name in sorted(sets)]


def _score_set(
    name: str, predictions: Sequence[Prediction], checkpoint: Checkpoint, split: Split, format: str, decoding: str
) -> Score:
    ids = {prediction.question for prediction in predictions}
    assert len(ids) == len(predictions), f"{name}: a question is counted twice"
    tasks: dict[str, list[bool]] = {}
    for prediction in predictions:
        tasks.setdefault(prediction.task, []).append(prediction.grade == "right")
    right, n = sum(map(sum, tasks.values())), len(predictions)
    low, high = intervals.wilson_interval(right, n)
    by_task = [[float(right) for right in tasks[task]] for task in sorted(tasks)]
    (_, tasks_low, tasks_high), (macro, macro_low, macro_high) = intervals.clustered_intervals(by_task)
    below, above = right / n - low, high - right / n  # no clustered interval is narrower, even if all tasks agree
    bounds = {
        "macro_low": min(macro_low, macro - below),
        "macro_high": max(macro_high, macro + above),
        "tasks_low": min(tasks_low, low),
        "tasks_high": max(tasks_high, high),
    }
    by_tasks = {"macro": macro, **{name: min(1.0, max(0.0, bound)) for name, bound in bounds.items()}}
    return Score(
        checkpoint=checkpoint,
        set=name,
        split=split,
        format=format,
        decoding=decoding,
        n=n,
        right=right,
        no_answer=sum(prediction.grade == "no answer" for prediction in predictions),
        truncated=sum(prediction.grade == "truncated" for prediction in predictions),
        accuracy=right / n,
        low=low,
        high=high,
        **(by_tasks if len(tasks) > 1 else {}),
    )
