"""The sentences of the page and of the model card.

>>> from potstill.report.model import Interval, OwnTextStep
>>> data = ReportData("demo", student="tiny", teacher="local", groups={}, recipe="seed: 1")
>>> summary_sentence(data)
'Nothing was compared: the run has no scores on the test split.'
>>> headline_sentence(data), controls_sentence(data)
('', '')
>>> steps = [OwnTextStep(n, {}, {"texts": 4, "length": 8.0, "right": n / 8}) for n in range(1, 9)]
>>> own_texts_sentence(steps, 4)
'Up to step 4, it wrote 16 texts of 8 tokens on average; 12.5 % of the graded texts were right in step 1, 50.0 % in step 4.'
>>> summary.judge_change(Interval(-0.2, -0.3, -0.1)), summary.judge_change(Interval(0.01, -0.1, 0.12))
('lost', 'unclear')
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Final

from potstill.records import BASE, Choice
from potstill.report import summary
from potstill.report.model import WITHOUT_BOUNDS, Interval, OwnTextStep, ReportData, RuleChoice, SetGroup
from potstill.report.model_comparison import ModelComparison
from potstill.report.summary import GroupChange, Judgement

GROUP_MEANINGS: Final[Mapping[SetGroup, str]] = {
    "in-distribution": "new questions of the sets it was taught",
    "out-of-distribution": "other sets of the same kind of task",
    "generic": "other tasks, which it was not taught",
}
EVALUATED_MEANINGS: Final[Mapping[SetGroup, str]] = {
    "in-distribution": "the sets of the task itself",
    "out-of-distribution": "other sets of the same kind of task",
    "generic": "other tasks",
}


def group_meanings(data: ReportData) -> Mapping[SetGroup, str]:
    """What each group of sets is, for a reader who does not know the words.

    >>> group_meanings(ReportData("demo", "tiny", "local", {}, "", also_trained=("replay",)))["generic"]
    'other tasks, trained by replay only'
    """
    if not data.is_trained:
        return EVALUATED_MEANINGS
    if not data.also_trained:
        return GROUP_MEANINGS
    return {**GROUP_MEANINGS, "generic": f"other tasks, trained by {' and '.join(data.also_trained)} only"}


def headline_sentence(data: ReportData) -> str:
    """What was taught, and what the student gained and lost by it. Empty without a change to report.

    A change whose interval includes zero is neither gained nor lost.
    """
    changes = summary.group_changes(data)
    if not changes or not summary.has_trained_choice(data):
        return ""
    parts = [f"Taught: {data.training}." if data.training else ""]
    words: tuple[tuple[Judgement, str], ...] = (("gained", "Gained"), ("lost", "Lost"))
    for judgement, word in words:
        found = [change for change in changes if summary.judge_change(change.difference) == judgement]
        if found:
            points = [
                f"{summary.percent_number(abs(change.difference.value))}{' points' if not number else ''}"
                f" {_group_phrase(change.group)}"
                for number, change in enumerate(found)
            ]
            parts.append(f"{word}: {', '.join(points)}.")
    unclear = [change for change in changes if summary.judge_change(change.difference) == "unclear"]
    if unclear:
        parts.append(f"No clear change: {', '.join(_group_phrase(change.group) for change in unclear)}.")
    return " ".join(part for part in parts if part)


def summary_sentence(data: ReportData) -> str:
    """One sentence that compares the base and the chosen checkpoint on the test split, by group, with paired 95 %
    intervals."""
    changes = summary.group_changes(data)
    if not changes:
        return "Nothing was compared: the run has no scores on the test split."
    if not data.is_trained or (data.choice and data.choice.checkpoint == BASE):
        scores = ", ".join(
            f"{summary.format_percent(change.base)} {_group_phrase(change.group)} ({_describe_sets(change)}; 95\xa0% interval"
            f" {summary.format_percent(change.base.low)} to {summary.format_percent(change.base.high)})"
            for change in changes
        )
        start = "The rule chose step 0, the student before training."
        if not data.is_trained:
            start = "The model was evaluated, and not trained."
        return f"{start} Its accuracy on the test split is {scores}."
    parts = [
        f"from {summary.format_percent(change.base)} to {summary.format_percent(change.chosen)} {_group_phrase(change.group)}"
        f" ({_describe_sets(change)}; {summary.format_points(change.difference.value)} points, 95\xa0% interval"
        f" {summary.format_points(change.difference.low)} to {summary.format_points(change.difference.high)})"
        for change in changes
    ]
    start = "After training"
    if data.choice:
        share = data.choice.checkpoint.share
        start = f"After {summary.format_count(data.choice.checkpoint.step)} training steps"
        start += "" if share == 1 else f", with {summary.format_percent(share)} of the change in the weights"
    return f"{start}, accuracy on the test split went {_join_words(parts)}."


def controls_sentence(data: ReportData) -> str:
    """A sentence with the accuracies of the controls, from the same base on the same questions; empty without controls."""
    steps = {control.name: control.steps for control in data.controls}
    parts = []
    for row in summary.summary_rows(data)[2:]:
        reached = [
            f"{summary.format_percent(cell.accuracy)} {_group_phrase(group)}" for group, cell in row.groups.items()
        ]
        parts.append(f"{summary.format_count(steps[row.name])} steps on {row.training} reached {_join_words(reached)}")
    return f"For comparison, from the same base, each with one seed: {'; '.join(parts)}." if parts else ""


def describe_rule(choice: Choice) -> str:
    """The rule of a choice, with its weights and its bounds.

    >>> from potstill.records import RetentionBound
    >>> bound = RetentionBound("generic", 5.0, ())
    >>> describe_rule(Choice(BASE, "weighted", "f", "greedy", (), weights=(("svamp", 2.0), ("gsm8k", 1.0)), bounds=(bound,)))
    'weighted (svamp 2, gsm8k 1), at most 5 points of generic lost'
    """
    weights = ", ".join(f"{name} {weight:g}" for name, weight in choice.weights)
    bounds = " and ".join(f"{bound.points:g} points of {bound.name}" for bound in choice.bounds)
    return choice.rule + (f" ({weights})" if weights else "") + (f", at most {bounds} lost" if bounds else "")


def selection_sentences(data: ReportData) -> list[str]:
    """What the value of the chosen checkpoint says, and what the choice cost: bounds, equal checkpoints, optimism, and the
    test results of other choices."""
    choice = data.choice
    if choice is None:
        return []
    sentences = [*_describe_bounds(choice)]
    if len(choice.equal) > 1:
        *steps, last = [summary.checkpoint_label(checkpoint) for checkpoint in choice.equal]
        sentences.append(
            f"Steps {', '.join(steps)} and {last} have exactly the same value, the best one. The first of them was chosen."
        )
    sentences.append(_describe_optimism(choice))
    sentences += [sentence for rule in data.rules[1:] if (sentence := _describe_price(data, choice, rule))]
    return sentences


def _describe_bounds(choice: Choice) -> list[str]:
    excluded = sum(not all(bound.keeps(step) for bound in choice.bounds) for step, _ in choice.table)
    sentences = [
        f"Bound: a step may lose at most {bound.points:g} points of validation accuracy"
        f" {'on generic tasks' if bound.name == 'generic' else f'on {bound.name}'} against the base; step"
        f" {summary.checkpoint_label(choice.checkpoint)} loses {format_lost(dict(bound.lost)[choice.checkpoint])}."
        for bound in choice.bounds
    ]
    if sentences:
        sentences.append(f"{excluded} of {len(choice.table)} steps lose more, and were excluded.")
    return sentences


def format_lost(points: float) -> str:
    """Lost points as text; negative for points that were gained.

    >>> format_lost(12.34), format_lost(-0.5), format_lost(-0.0)
    ('12.3', '−0.5', '0.0')
    """
    text = f"{points:.1f}".replace("-", "\N{MINUS SIGN}")
    return text[1:] if text[1:] == "0.0" else text


def _describe_optimism(choice: Choice) -> str:
    n = sum(all(bound.keeps(step) for bound in choice.bounds) for step, _ in choice.table)
    if n == 1:
        return "There was one step to choose, so its value is not the best of several."
    if choice.optimism is None:
        return f"Optimism: not estimated. The best of {n} steps is partly the best by luck."
    lower = f"{100 * choice.optimism:.1f}"
    value = dict(choice.table)[choice.checkpoint]
    expected = (
        f"to be lower by about {lower} points ({summary.format_percent(max(0.0, value - choice.optimism))})"
        if choice.optimism >= 0.0005
        else "not to be lower"
    )
    return f"Optimism: the best of {n} steps is partly the best by luck. On new questions, its value is expected {expected}."


def _describe_price(data: ReportData, choice: Choice, rule: RuleChoice) -> str:
    """The difference on test between the run's choice and another choice; empty for other rules that were not tested."""
    step, own = summary.checkpoint_label(rule.checkpoint), summary.checkpoint_label(choice.checkpoint)
    without = rule.name == WITHOUT_BOUNDS
    if rule.checkpoint == choice.checkpoint:
        return "Without the bounds, the choice would be the same." if without else ""
    if not rule.price:
        reason = "its price on test is not known, because that step was not tested (select.also: [without-retain])"
        return f"Without the bounds, step {step} would be chosen; {reason}." if without else ""
    who = "the choice without the bounds" if without else f"the choice of {rule.name}"
    parts = [
        f"{summary.format_change(change.difference)} points {_group_phrase(change.group)}"
        for change in summary.changes_by_group(rule.price, data.groups).values()
    ]
    return f"Test price: against step {step}, {who}, step {own} has {_join_words(parts)}."


def describe_judgements(comparison: ModelComparison) -> list[tuple[str, str]]:
    """(model, what changed against the first model), for every model but the first, by the first format.

    Recipes stand for the models if these are grouped: single seeds are not judged.
    """
    if comparison.recipes:
        return _judge_recipes(comparison)
    first = comparison.sets[0].answers
    rows = [row for row in comparison.sets if row.answers == first]
    return [
        (model, _judge_sets([(row.set, change) for row in rows if (change := row.changes[index])]))
        for index, model in enumerate(comparison.models[1:], 1)
    ]


def _judge_recipes(comparison: ModelComparison) -> list[tuple[str, str]]:
    scores = [score for score in comparison.recipe_scores if score.of == "set"]
    changes: dict[str, list[tuple[str, Interval]]] = {group.label: [] for group in comparison.recipes[1:]}
    for score in scores:
        if score.difference is not None and score.difference_low is not None and score.difference_high is not None:
            change = Interval(score.difference, score.difference_low, score.difference_high)
            if score.answers == scores[0].answers:
                changes[score.group].append((score.set, change))
    return [(label, _judge_sets(of_group)) for label, of_group in changes.items() if of_group]


def _judge_sets(changes: Sequence[tuple[str, Interval]]) -> str:
    words = {"better on": "gained", "worse on": "lost", "no clear difference on": "unclear"}
    parts = []
    for word, judgement in words.items():
        if names := [name for name, change in changes if summary.judge_change(change) == judgement]:
            parts.append(f"{word} {', '.join(names)}")
    return "; ".join(parts)


def _group_phrase(group: SetGroup) -> str:
    return "on generic tasks" if group == "generic" else group


def own_texts_sentence(steps: Sequence[OwnTextStep], chosen: int) -> str:
    """How many texts the student wrote up to the chosen step, and the share of right texts in the first and in the last
    quarter of these steps. The steps are in order."""
    written = [row for row in steps if row.measures and row.step <= chosen]
    if not written:
        return "Up to the chosen step, it wrote no text."
    texts = sum(row.measures["texts"] for row in written)
    tokens = sum(row.measures["texts"] * row.measures["length"] for row in written)
    sentence = (
        f"Up to step {summary.format_count(chosen)}, it wrote {summary.format_count(int(texts))} texts of"
        f" {tokens / texts:.0f} tokens on average"
    )
    graded = [row for row in written if "right" in row.measures]
    if not graded:
        return f"{sentence}."
    quarter = -(-len(graded) // 4)
    parts = [graded[:quarter], graded[-quarter:]]
    shares = [100 * fmean(row.measures["right"] for row in part) for part in parts]
    whens = [_name_steps(part[0].step, part[-1].step) for part in parts]
    return (
        f"{sentence}; {shares[0]:.1f} % of the graded texts were right in {whens[0]}, {shares[1]:.1f} % in {whens[1]}."
    )


def _name_steps(first: int, last: int) -> str:
    numbers = [summary.format_count(step) for step in dict.fromkeys((first, last))]
    return f"step {numbers[0]}" if len(numbers) == 1 else f"the steps {' to '.join(numbers)}"


def _join_words(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])}, and {parts[-1]}"


def _describe_sets(change: GroupChange) -> str:
    return change.sets[0] if len(change.sets) == 1 else f"mean of {len(change.sets)} sets"
