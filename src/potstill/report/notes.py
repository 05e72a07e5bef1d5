"""The notes of a report: sentences that a reader must know before the numbers.

    notes = list(collect_notes(RunFiles(run_dir, recipe), comparisons))

Each note is about the recipe, about the data that were left out, or about a limit of the measurement.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from potstill import cut_thoughts, teachers
from potstill.alignment.coverage import low_mass_warning
from potstill.data import run_questions
from potstill.evaluation import checkpoint as checkpoints
from potstill.evaluation import choice as choices
from potstill.recipe import Recipe
from potstill.records import BASE, Score
from potstill.report.model import Comparison, licence_note
from potstill.report.run_files import RunFiles
from potstill.report.summary import percent_number


def collect_notes(files: RunFiles, comparisons: Sequence[Comparison]) -> Iterator[str]:
    """The notes of a run with a teacher, in the order of the page."""
    recipe, counts = files.recipe, files.counts("train")
    yield from note_recipe(files)
    yield from teachers.from_recipe(recipe).report_notes()
    if recipe.student.model is None:
        yield "The student started from random weights, so scores near zero are normal."
    if recipe.train.lora:
        yield f"Only LoRA adapters of rank {recipe.train.lora} were trained. The other weights did not change."
    if weights := recipe.train.loss_weights:
        total = sum(weights.values())
        shares = ", ".join(f"{name} {percent_number(value / total)} %" for name, value in weights.items())
        others = [*(["replay"] if recipe.train.replay else []), *(["its own texts"] if recipe.train.on_policy else [])]
        rest = f" of the weight that is not for {' or '.join(others)}" if others else ""
        yield f"Weights of the formats in the gradient of every step: {shares}{rest}."
    yield from note_groups(recipe)
    yield from note_templates(files)
    yield from _note_answers(files, comparisons)
    if replay := recipe.train.replay:
        names = ", ".join([*replay.sets, *([Path(replay.file).name] if replay.file else [])])
        rows, near = counts["replayed rows"], counts["rows too near to a measured question"]
        yield (
            f"Replay: {percent_number(replay.share)} % of the weight of every step is for rows from {names} ({rows} rows)."
            f" These rows are not validation or test questions. {near} rows that are too similar to one were left out."
        )
    if counts.get("stopped"):
        yield (
            f"Training stopped at step {counts['steps']} of {recipe.train.steps}: the last"
            f" {recipe.train.early_stopping_patience} checkpoints were not better on validation than an earlier checkpoint."
        )
    if warning := low_mass_warning(files.counts("align"), recipe.transfer.min_transferred_probability):
        yield warning
    if section := recipe.on_policy:
        steps = files.counts("repair")["steps"]
        yield (
            f"On-policy distillation: the chosen student was trained for {steps} more steps on its own answers to"
            f" questions of {', '.join(section.sets)}, with the {section.divergence} divergence from"
            f" {section.scorer or 'the base student'}. These questions are not validation or test questions. The result had"
            f" no influence on the selection; its folder is repair/checkpoints/{steps}."
        )
    if counts.get("chat_template"):
        yield (
            "Training and evaluation used the student's own chat template for the prompts. This page shows the prompts as"
            " plain text."
        )


def note_recipe(files: RunFiles) -> Iterator[str]:
    """Warnings about the answers, and the notes, licences and terms of the recipe."""
    recipe = files.recipe
    yield from cut_thoughts.read_warnings(files.run_dir)
    yield from recipe.report.notes
    for name, licence in recipe.report.licences.items():
        yield licence_note(name, licence)
    if recipe.report.terms:
        yield f"The teacher's terms of use: {recipe.report.terms}"


def _note_answers(files: RunFiles, comparisons: Sequence[Comparison]) -> Iterator[str]:
    """Notes on limits of the evaluation: the number of questions, the tokens of an answer, the precision, repeated texts."""
    evaluate, choice = files.recipe.evaluate, files.choice
    all_counts = files.counts("collect").get("without questions.limit", {})
    counts = files.counts("collect")["questions"]
    parts = [
        f"{counts[f'{name}.test']} of {all_counts[f'{name}.test']} of {name}"
        for name in files.groups
        if f"{name}.test" in all_counts
    ]
    if parts:
        yield (
            f"Test questions (questions.limit): {', '.join(parts)}. The base and all other students answered the same"
            " questions."
        )
    main = [row for row in comparisons if (row.chosen.format, row.chosen.decoding) == (choice.format, choice.decoding)]
    cut_off = [
        _describe_truncation(name, scores, checkpoints.max_tokens(files.recipe, checkpoint))
        for name, checkpoint, scores in (
            ("the base", BASE, [row.base for row in main]),
            (f"step {choice.checkpoint.label}", choice.checkpoint, [row.chosen for row in main]),
        )
    ]
    if any(score.truncated for row in main for score in (row.base, row.chosen)) or evaluate.base_max_tokens:
        yield (
            "Texts that were cut off before they gave an answer count as not right. Their share of the test answers:"
            f" {' and '.join(cut_off)}."
        )
    if evaluate.dtype != "float32":
        yield (
            f"The answers were computed with weights and matrix products in {evaluate.dtype}, and with norms, softmax and the"
            " logits of likely tokens in float32. A program that rounds these logits may write other tokens if two tokens"
            " are almost equally likely."
        )
    if evaluate.stop_repeats:
        yield (
            "Texts were stopped when they repeated themselves (evaluate.stop_repeats). A program without this rule"
            " continues such texts up to its token limit."
        )


def note_groups(recipe: Recipe) -> Iterator[str]:
    """What the scores do not show, if the checkpoint was not selected out of distribution and groups of sets are empty."""
    sets, rule = recipe.questions, recipe.select.rule
    if rule == "mean-out-of-distribution":
        return
    how = "in distribution" if rule == "in-distribution" else "by their weighted mean accuracy"
    yield (
        f"The checkpoint was selected on validation questions of {', '.join(choices.list_rule_sets(recipe, rule))}, {how}."
        + ("" if sets.out_of_distribution else " No out-of-distribution set was measured: the scores do not show")
        + ("" if sets.out_of_distribution else " how the student does on questions of another kind.")
        + ("" if sets.generic else " No generic set was measured: the scores do not show what the student lost.")
    )


def _describe_truncation(name: str, scores: Sequence[Score], max_tokens: int) -> str:
    n, truncated = sum(score.n for score in scores), sum(score.truncated for score in scores)
    repeated = sum(score.repeated or 0 for score in scores)
    loops = f", {percent_number(repeated / n)} % because they repeated themselves" if repeated else ""
    return f"{percent_number(truncated / n)} % of {name}'s (at most {max_tokens} tokens{loops})"


def note_templates(files: RunFiles) -> Iterator[str]:
    """A sentence for each test set in which questions have the template of a training question. It gives the accuracy on
    these questions and on the others, in the format and decoding of the choice."""
    choice = files.choice
    for name, shared in run_questions.read_templates(files.run_dir, "test").items():
        after, before = (
            files.test_answers(checkpoint, choice.format, choice.decoding).correct[name]
            for checkpoint in (choice.checkpoint, BASE)
        )
        on_shared = [
            _format_accuracy(right for q, right in answers.items() if q in shared) for answers in (after, before)
        ]
        on_others = [
            _format_accuracy(right for q, right in answers.items() if q not in shared) for answers in (after, before)
        ]
        others = len(before) - len(shared)
        comparison = (
            f" and on {on_others[0]} of the other {others} (the base: {on_shared[1]} and {on_others[1]})"
            if others
            else f" (the base: {on_shared[1]})"
        )
        yield (
            f"{len(shared)} of the {len(before)} test questions of {name} differ from a training question only in numbers"
            f" and names. The chosen checkpoint is right on {on_shared[0]} of them{comparison}."
        )


def _format_accuracy(correct: Iterable[bool]) -> str:
    answers = list(correct)
    return f"{percent_number(sum(answers) / len(answers))} %" if answers else "none"
