"""Templates: how many test questions a student learnt with other numbers and names, and how it did on the rest."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from potstill import exam, story
from potstill.contenders import BASE, Contender
from potstill.questions import collected
from potstill.records import Choice, Prediction


def notes(run: Path, choice: Choice) -> Iterator[str]:
    """A sentence for each test set that shares templates with the training questions, with the accuracy on those that
    do and on those that do not, in the format and decoding of the choice."""
    shared = collected.templates(run, "test")
    if not shared:
        return
    answers = {who: _by_set(run, choice, who) for who in (choice.contender, BASE)}
    for name, ids in shared.items():
        shares = []
        for own in (answers[choice.contender][name], answers[BASE][name]):
            parts = [[each for each in own if (each.question in ids) is same] for same in (True, False)]
            shares.append([_right(part) for part in parts])
        count = len(answers[BASE][name])
        rest = count - len(ids)
        apart = f" and {shares[0][1]} of the other {rest} (the base: {shares[1][0]} and {shares[1][1]})" if rest else ""
        apart = apart or f" (the base: {shares[1][0]})"
        yield (
            f"Of the {count} test questions of {name}, {len(ids)} are training questions but for numbers and names:"
            f" the chosen step is right on {shares[0][0]} of these{apart}."
        )


def _by_set(run: Path, choice: Choice, who: Contender) -> dict[str, list[Prediction]]:
    found: dict[str, list[Prediction]] = {}
    for each in exam.predictions(run / "test", who, choice.format, choice.decoding):
        found.setdefault(each.set, []).append(each)
    return found


def _right(part: list[Prediction]) -> str:
    return f"{story.percent(sum(each.grade == 'right' for each in part) / len(part))} %" if part else "none"
