"""Classification: the labels of a custom set, its gold answers, and its prompts.

    >>> raws = [RawQuestion("t/1", "The app crashes.", " Bug", "t/label", where="t.csv line 2")]
    >>> [raw.gold for raw in check_labels(raws, ["billing", "bug"])]
    ['bug']
    >>> match_label("BUG", ["billing", "bug"]), match_label("bug or billing", ["billing", "bug"])
    ('bug', None)

The recipe lists the labels of a set (`sets.NAME.labels`). The task of its questions is `NAME/label`, and the prompt of
this task begins with the labels. The text of a question has no labels, so a new label moves no question to another split.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from potstill import prompts
from potstill.data.set_files import RawQuestion
from potstill.errors import UserError, suggest
from potstill.grading.words import parse_gold_label

if TYPE_CHECKING:
    from potstill.recipe import Recipe

ANSWER_TYPE: Final = "label"
MAX_SHOWN: Final = 3  # number of wrong records in a message


def label_task(set_name: str) -> str:
    """The task of the questions of a set with labels."""
    return f"{set_name}/{ANSWER_TYPE}"


def match_label(text: str, labels: Sequence[str]) -> str | None:
    """The label that a text is, without regard to upper and lower case and white space; None for any other text."""
    wanted = parse_gold_label(text)
    return next((label for label in labels if parse_gold_label(label) == wanted), None)


def check_labels(raws: Sequence[RawQuestion], labels: Sequence[str]) -> list[RawQuestion]:
    """The questions with gold answers as the recipe writes the labels.

    Raises UserError, with the records, for answers that are not labels, and for a record that names another task.
    """
    checked, wrong = [], []
    for raw in raws:
        if raw.task.rpartition("/")[2] != ANSWER_TYPE:
            what, hint = "a record of a set with labels names a task", "remove `task` from the records, or the labels"
            raise UserError(what, code="E-data-label-task", where=raw.where, found=raw.task, hint=hint)
        label = match_label(raw.gold, labels)
        if label is None:
            wrong.append(raw)
        else:
            checked.append(replace(raw, gold=label))
    if wrong:
        hint = (
            suggest(wrong[0].gold, labels)
            + "correct the records, add the label to sets.NAME.labels, or map it in fields.answer.values"
        )
        raise UserError(
            f"{len(wrong)} of {len(raws)} answers are not labels of the recipe",
            code="E-data-unknown-label",
            where=wrong[0].where,
            found="; ".join(f"{raw.where}: {raw.gold[:60]!r}" for raw in wrong[:MAX_SHOWN]),
            hint=hint,
        )
    return checked


def instructions(recipe: Recipe) -> Mapping[str, str]:
    """Task -> the start of its prompts, for every set with labels."""
    return {
        label_task(name): prompts.label_instruction(custom.labels)
        for name, custom in recipe.sets.items()
        if custom.labels is not None
    }
