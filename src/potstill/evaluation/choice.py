"""The choice of a run's checkpoint: applies the rules of `selection` to the validation answers in the folder of a run.

    choose_checkpoint(run_dir, recipe).best              # by `select.rule`, among the checkpoints that keep `select.retain`
    choose_other(run_dir, recipe, "in-distribution").best    # what another rule would choose
    list_checkpoints_to_test(run_dir, recipe)            # the only checkpoints that answer test questions

Only answers to validation questions are read. An answer to any other question is refused.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path

from potstill.data import run_questions
from potstill.errors import UserError
from potstill.evaluation import checkpoint as checkpoints
from potstill.evaluation import selection
from potstill.evaluation.selection import Retention, Selection
from potstill.recipe import Recipe, flatten_keys
from potstill.recipe.selection import WITHOUT_RETAIN, list_rules
from potstill.records import BASE, Checkpoint

# Rules and their sets


def list_rule_sets(recipe: Recipe, rule: str) -> list[str]:
    """The sets whose validation questions a rule uses."""
    if rule == "weighted":
        return list(rule_weights(recipe, rule) or ())
    return list(getattr(recipe.questions, selection.SET_KEYS[rule]))


def rule_weights(recipe: Recipe, rule: str) -> dict[str, float] | None:
    """Set -> positive weight, for the rule `weighted`; None for the other rules, which weigh all sets equally."""
    if rule != "weighted":
        return None
    return {name: weight for name, weight in (recipe.select.weights or {}).items() if weight > 0}


def list_retained_sets(recipe: Recipe) -> dict[str, list[str]]:
    """Name of a bound in `select.retain` -> its sets."""
    generic = recipe.questions.generic
    return {name: generic if name == "generic" and generic else [name] for name in recipe.select.retain or ()}


def list_unused_keys(recipe: Recipe) -> tuple[str, ...]:
    """The keys of `select` on which the value of the recipe's rule does not depend: the bounds, the other choices and,
    for the other rules, the weights."""
    keys = ("select.retain", "select.also", *([] if recipe.select.rule == "weighted" else ["select.weights"]))
    return tuple(flatten_keys(recipe, *keys))


def list_other_choices(recipe: Recipe) -> list[str]:
    """The names of all other choices of a recipe: its rule without the bounds, and the other rules that have sets."""
    rules = list_rules(recipe.select, recipe.questions)[1:]
    return [*([WITHOUT_RETAIN] if recipe.select.retain else []), *rules]


# Choices


def choose_checkpoint(run_dir: Path, recipe: Recipe, rule: str | None = None, *, retain: bool = True) -> Selection:
    """The best checkpoint of a run by a rule, which is by default the recipe's. The base cannot be chosen.

    retain  whether only checkpoints that keep `select.retain` are chosen

    Raises UserError if no checkpoint keeps the bounds, and if an answer is not to a validation question.
    """
    rule = rule or recipe.select.rule
    steps, sets = checkpoints.read_evaluated_checkpoints(run_dir), list_rule_sets(recipe, rule)
    bounded = list_retained_sets(recipe) if retain else {}
    needed = {name for names in (sets, *bounded.values()) for name in names}
    answers = {step: _read_answers(run_dir, recipe, step, needed) for step in (*([BASE] if bounded else []), *steps)}
    limits = recipe.select.retain or {}
    bounds = [
        Retention(
            name, limits[name], _of_sets(answers[BASE], names), {step: _of_sets(answers[step], names) for step in steps}
        )
        for name, names in bounded.items()
    ]
    return selection.select_checkpoint(
        {step: _of_sets(answers[step], sets) for step in steps},
        rule,
        weights=rule_weights(recipe, rule),
        retain=bounds,
        seed=recipe.seed,
    )


def choose_other(run_dir: Path, recipe: Recipe, name: str) -> Selection:
    """What the choice would be by another rule, under the same bounds; or for `without-retain`, by the same rule without
    the bounds."""
    if name == WITHOUT_RETAIN:
        return choose_checkpoint(run_dir, recipe, retain=False)
    return choose_checkpoint(run_dir, recipe, name)


def describe_others(recipe: Recipe) -> list[str]:
    """A text for each choice of `select.also`, which changes if another checkpoint may be chosen in a finished run."""
    weights = ", ".join(f"{name} {weight!r}" for name, weight in sorted((recipe.select.weights or {}).items()))
    return [f"{name}: {weights}" if name == "weighted" else name for name in recipe.select.also or ()]


def read_selection_outcomes(run_dir: Path, recipe: Recipe, checkpoint: Checkpoint) -> dict[str, list[bool]]:
    """Set that selects the checkpoint -> whether each answer is right, sorted by question id."""
    sets = list_rule_sets(recipe, recipe.select.rule)
    return _of_sets(_read_answers(run_dir, recipe, checkpoint, sets), sets)


def _read_answers(
    run_dir: Path, recipe: Recipe, checkpoint: Checkpoint, sets: Collection[str]
) -> dict[str, list[bool]]:
    """Set -> whether each answer is right, sorted by question id, in the format and decoding of the selection."""
    validation = {question.id for question in run_questions.read_questions(run_dir, sorted(sets), "validation")}
    format, decoding = recipe.select.format, recipe.evaluate.decodings[0]
    outcomes: dict[str, dict[str, bool]] = {}
    for answer in checkpoints.read_predictions(run_dir / "evaluate", checkpoint, format, decoding):
        if answer.set in sets:
            if answer.question not in validation:
                _refuse_answer(run_dir, checkpoint, answer.question)
            outcomes.setdefault(answer.set, {})[answer.question] = answer.grade == "right"
    return {name: [right for _, right in sorted(by_question.items())] for name, by_question in outcomes.items()}


def _of_sets(answers: Mapping[str, list[bool]], sets: Collection[str]) -> dict[str, list[bool]]:
    return {name: right for name, right in answers.items() if name in sets}


def _refuse_answer(run_dir: Path, checkpoint: Checkpoint, question: str) -> None:
    raise UserError(
        "an answer that selects the checkpoint is not to a validation question of the run",
        code="E-select-not-validation",
        where=run_dir / "evaluate" / checkpoint.name,
        found=question,
        hint="restore the folder, or make the answers again with --redo evaluate; test questions never select",
    )


# Checkpoints after the choice


def list_checkpoints_to_test(run_dir: Path, recipe: Recipe) -> list[Checkpoint]:
    """The base, the selected checkpoint, with `on_policy` that checkpoint after on-policy distillation, and the choices
    that `select.also` names."""
    if not recipe.has_teacher:
        return [BASE]
    choice = checkpoints.read_choice(run_dir).checkpoint
    tested = [BASE, choice, *([on_policy_result(run_dir, recipe)] if recipe.on_policy else [])]
    others = [choose_other(run_dir, recipe, name).best for name in recipe.select.also or ()]
    return list(dict.fromkeys([*tested, *others]))


def on_policy_result(run_dir: Path, recipe: Recipe) -> Checkpoint:
    """The selected checkpoint after on-policy distillation."""
    assert recipe.on_policy is not None, "the recipe has no on-policy distillation"
    return replace(checkpoints.read_choice(run_dir).checkpoint, on_policy_steps=recipe.on_policy.steps)


def list_unused_checkpoints(run_dir: Path, recipe: Recipe) -> tuple[str, ...]:
    """Folders of checkpoints, relative to the run's folder, that no stage reads after the selection."""
    try:
        tested = list_checkpoints_to_test(run_dir, recipe)
    except UserError:  # no selection, or a damaged selection, which its digest will reveal
        return ()
    used = {checkpoints.weights_dir(run_dir, checkpoint) for checkpoint in tested if checkpoint != BASE}
    saved = [path for stage in ("train", "repair") for path in (run_dir / stage / "checkpoints").glob("[0-9]*")]
    return tuple(f"{path.relative_to(run_dir).as_posix()}/" for path in saved if path not in used)
