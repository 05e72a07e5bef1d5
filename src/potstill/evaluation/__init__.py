"""Evaluation: questions asked, answers graded, scores with intervals. The same for every split and every step.

    >>> one = Prediction("m/1", "m", "number", "The answer is 2", "end", "right", "2")
    >>> two = Prediction("m/2", "m", "number", "Perhaps", "length", "truncated", None)
    >>> asked = {"split": "validation", "format": "zero-shot-rationale", "decoding": "greedy"}
    >>> [score] = score_predictions([one, two], contender=Checkpoint(0), **asked)
    >>> score.right, score.n, score.truncated, score.accuracy, (round(score.low, 2), round(score.high, 2))
    (1, 2, 1, 0.5, (0.09, 0.91))

Unscored is not wrong: answers without a result and answers that ran out of tokens are counted apart.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from typing import Final

from potstill.evaluation import intervals
from potstill.evaluation.decoding import GREEDY, SamplingSpec
from potstill.grading import grade
from potstill.inference import Decode, Engine, Request, SampleKey, batch_requests
from potstill.records import Checkpoint, Prediction, Prompt, Question, Score, Split

VERSION: Final = 1  # of how predictions are made and scores are counted, beside the versions of prompts and answers


def predict_answers(
    engine: Engine,
    questions: Sequence[Question],
    prompt_of: Callable[[Question], Prompt],
    *,
    max_tokens: int,
    budget: int,
    drawing: SamplingSpec = GREEDY,
    temperature: float = 0.7,
    seed: int = 0,
    stop_at_answer: bool = False,
    done: Container[SampleKey] = (),
) -> Iterator[list[Prediction]]:
    """Graded answers, one list a batch, longest prompts first.

    max_tokens  most tokens of an answer
    budget      tokens that a batch may hold, prompts and answers
    drawing     greedy, or so many samples a question; with a calculator or without
    temperature of samples; a greedy answer does not depend on it, nor on the seed
    stop_at_answer  write no further than the first sentence that holds "answer is"; what would follow does not count
    done        (question, index) that are stored: a batch of nothing else is not generated again, any other is, whole

    Raises UserError for a prompt that does not fit the model, and for a gold answer that cannot be graded.
    """
    by_id = {question.id: question for question in questions}
    assert len(by_id) == len(questions), "two questions with one id"
    requests = [
        Request((question.id, index), prompt)
        for question in questions
        for prompt in [engine.encode(prompt_of(question))]
        for index in range(drawing.samples)
    ]
    for batch in batch_requests(requests, budget, max_tokens=max_tokens):
        asked = [requests[index] for index in batch]
        if all(request.key in done for request in asked):
            continue
        written = engine.generate(
            asked,
            Decode(
                max_tokens=max_tokens,
                temperature=temperature if drawing.sampled else 0.0,
                seed=seed,
                calculator=drawing.calculator,
                likelihood=drawing.sampled,
                stop_at_answer="sentence" if stop_at_answer else None,
            ),
        )
        predictions = []
        for text in written:
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
                    found=verdict.found,
                    index=text.key[1],
                    likelihood=text.likelihood,
                )
            )
        yield predictions


def score_predictions(
    predictions: Iterable[Prediction], *, contender: Checkpoint, split: Split, format: str, decoding: str
) -> list[Score]:
    """One score a set, in the order of their names; 95 % intervals of `accuracy` after Wilson.

    A set of several tasks (BBH) also gets `macro`, the unweighted mean of its tasks' accuracies, and intervals of both
    that are clustered by task, cut to [0, 1]. Each question counts once: samples of one question are not independent
    trials, whoever drew several must first choose or vote.
    """
    sets: dict[str, list[Prediction]] = {}
    for prediction in predictions:
        sets.setdefault(prediction.set, []).append(prediction)
    return [_score_set(name, sets[name], contender, split, format, decoding) for name in sorted(sets)]


def _score_set(
    name: str, own: Sequence[Prediction], contender: Checkpoint, split: Split, format: str, decoding: str
) -> Score:
    assert len({prediction.question for prediction in own}) == len(own), f"{name}: a question is counted twice"
    tasks: dict[str, list[bool]] = {}
    for prediction in own:
        tasks.setdefault(prediction.task, []).append(prediction.grade == "right")
    right, n = sum(map(sum, tasks.values())), len(own)
    low, high = intervals.wilson_interval(right, n)
    by_task = [[float(right) for right in tasks[task]] for task in sorted(tasks)]
    (_, tasks_low, tasks_high), (macro, macro_low, macro_high) = intervals.clustered_intervals(by_task)
    below, above = right / n - low, high - right / n  # tasks that all agree do not make an interval narrower than that
    bounds = {
        "macro_low": min(macro_low, macro - below),
        "macro_high": max(macro_high, macro + above),
        "tasks_low": min(tasks_low, low),
        "tasks_high": max(tasks_high, high),
    }
    several = {"macro": macro, **{name: min(1.0, max(0.0, bound)) for name, bound in bounds.items()}}
    return Score(
        contender=contender,
        set=name,
        split=split,
        format=format,
        decoding=decoding,
        n=n,
        right=right,
        no_answer=sum(prediction.grade == "no answer" for prediction in own),
        truncated=sum(prediction.grade == "truncated" for prediction in own),
        accuracy=right / n,
        low=low,
        high=high,
        **(several if len(tasks) > 1 else {}),
    )
