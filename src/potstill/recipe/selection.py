"""The section `select` of a recipe: how the checkpoint is chosen.

>>> SelectSection(rule="weighted", weights={"svamp": 2, "gsm8k": 1}).weights
{'svamp': 2.0, 'gsm8k': 1.0}
"""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Final, Literal

from pydantic import Field

from potstill.recipe.fields import FormatName, Name, QuestionsSection, Section, refuse

RuleName = Literal["mean-out-of-distribution", "in-distribution", "weighted"]
WITHOUT_RETAIN: Final = "without-retain"  # in `also`: the recipe's rule without its bounds
OtherChoice = Literal["mean-out-of-distribution", "in-distribution", "weighted", "without-retain"]
Weight = Annotated[float, Field(ge=0, le=1e6)]
Points = Annotated[float, Field(ge=0, le=100)]


class SelectSection(Section):
    rule: RuleName = Field(
        default="mean-out-of-distribution",
        description="Value that selects the checkpoint: mean validation accuracy on the out-of-distribution sets, or on the "
        "in-distribution sets, or the weighted mean of the sets in `weights`. With in-distribution, "
        "questions.in_distribution is by default questions.train, and the other groups are empty.",
    )
    weights: dict[Name, Weight] | None = Field(
        default=None,
        min_length=1,
        description="Weights of evaluation sets for rule: weighted. {svamp: 2, gsm8k: 1} is two thirds of the accuracy on "
        "svamp plus a third of the accuracy on gsm8k.",
    )
    retain: dict[Name, Points] | None = Field(
        default=None,
        min_length=1,
        description="Points of validation accuracy that the checkpoint may lose at most against the base: {generic: 5} for "
        "the mean of the generic sets, or the name of a set. Checkpoints that lose more are not chosen.",
    )
    also: list[OtherChoice] | None = Field(
        default=None,
        description="Other choices to test, for a comparison on the page: rules, or without-retain for this rule without "
        "its bounds. They do not change the choice.",
    )
    format: FormatName = Field(
        default="zero-shot-rationale", description="Prompt format whose scores select the checkpoint."
    )


def list_rules(select: SelectSection, questions: QuestionsSection) -> list[RuleName]:
    """The rules for which a recipe has sets, its own rule first."""
    rules: dict[RuleName, bool] = {
        "mean-out-of-distribution": bool(questions.out_of_distribution),
        "in-distribution": bool(questions.in_distribution),
        "weighted": select.weights is not None,
    }
    return [select.rule, *(name for name, possible in rules.items() if possible and name != select.rule)]


def check_selection(select: SelectSection, questions: QuestionsSection) -> None:
    """Refuse a rule, a bound or another choice whose sets the recipe does not have."""
    if select.rule != "weighted":
        key = "in_distribution" if select.rule == "in-distribution" else "out_of_distribution"
        if not getattr(questions, key):
            message = f"questions.{key} is empty: the checkpoint is selected on these sets"
            hint = "name a set, or with one data set, write `select: {rule: in-distribution}`"
            refuse("E-recipe-no-selection-set", message, hint=hint if key == "out_of_distribution" else "name a set")
    elif select.weights is None:
        refuse(
            "E-recipe-select-weights", "select.rule: weighted needs select.weights", hint="write {svamp: 2, gsm8k: 1}"
        )
    sets = [*questions.in_distribution, *questions.out_of_distribution, *questions.generic]
    known = f"the evaluation sets are {', '.join(dict.fromkeys(sets))}"
    for name in select.weights or ():
        if name not in sets:
            refuse("E-recipe-select-weights", f"select.weights names {name}, which is not evaluated", hint=known)
    if select.weights is not None and not sum(select.weights.values()) > 0:
        refuse(
            "E-recipe-select-weights", "the sum of select.weights is 0", hint="give at least one set a positive weight"
        )
    for name in select.retain or ():
        if name not in sets and not (name == "generic" and questions.generic):
            message = f"select.retain names {name}, which is not evaluated"
            message = "select.retain names generic, but questions.generic is empty" if name == "generic" else message
            refuse("E-recipe-select-retain", message, hint=f"name generic or a set; {known}")
    _check_also(select, questions)


def _check_also(select: SelectSection, questions: QuestionsSection) -> None:
    possible: list[str] = [*list_rules(select, questions)[1:], *([WITHOUT_RETAIN] if select.retain else [])]
    for name, times in Counter(select.also or ()).items():
        if times > 1:
            refuse("E-recipe-named-twice", f"select.also names {name} twice")
        if name not in possible:
            needs = {"weighted": "select.weights is not given", WITHOUT_RETAIN: "select.retain is not given"}
            reason = "it is select.rule" if name == select.rule else needs.get(name, "the recipe has no set for it")
            hint = f"name some of {', '.join(possible)}" if possible else "remove select.also"
            refuse("E-recipe-select-also", f"select.also names {name}, but {reason}", hint=hint)
