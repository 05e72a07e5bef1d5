"""Reads a finished run into a `ReportData`: the report stage renders it, the terminal prints its summary.

    data = collect_report(Path("runs/demo"), recipe)
    data.comparisons        # the base and the chosen checkpoint on every test set

Counts come from manifests and metrics; they are the same on every machine and stand on the page. Seconds and memory
(`read_times`, `read_speed`) differ between machines; they go to a page of their own, which no manifest covers.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from potstill import storage, teachers
from potstill.alignment.coverage import low_mass_warning
from potstill.data import run_questions
from potstill.evaluation import checkpoint as checkpoints
from potstill.evaluation import intervals
from potstill.recipe import Recipe, ShapeSection, recipe_to_yaml
from potstill.records import BASE, Grade, Semantics
from potstill.report.controls import compare_answers, describe_training, read_control
from potstill.report.formatting import percent_number
from potstill.report.model import (
    AlignmentSummary,
    Comparison,
    ControlRun,
    Cost,
    Interval,
    KindCoverage,
    ReportData,
    SourceSummary,
    StageTime,
    TrainingSpeed,
)
from potstill.report.run_files import RunFiles, VerdictCounts
from potstill.report.samples import count_outcomes, pick_examples, pick_figure_chain
from potstill.storage import parquet
from potstill.training import replay_data

REPORTED_STAGES = ("collect", "sample", "filter", "align", "train", "evaluate", "select", "test")


def collect_report(run_dir: Path, recipe: Recipe) -> ReportData:
    """The data of a run's report. Raises UserError if a control run is missing or cannot be compared."""
    files = RunFiles(run_dir, recipe)
    comparisons, examples = tuple(_compare_test_answers(files)), tuple(pick_examples(files))
    return ReportData(
        name=recipe.name,
        student=_describe_student(recipe),
        teacher=recipe.teacher.model or recipe.teacher.chains or recipe.teacher.kind,
        training=describe_training(recipe),
        groups=files.groups,
        recipe=recipe_to_yaml(recipe),
        choice=files.choice,
        comparisons=comparisons,
        controls=tuple(_collect_controls(files)),
        validation=files.validation_scores,
        pass_curves=tuple(
            curve
            for checkpoint in dict.fromkeys((BASE, files.choice.checkpoint))
            for curve in checkpoints.read_pass_curve(run_dir / "test", checkpoint)
        ),
        losses=tuple((row["step"], row["loss"]) for row in files.metrics),
        sources=tuple(_summarize_sources(files)),
        alignment=_summarize_alignment(files),
        costs=tuple(_count_costs(files, comparisons)),
        outcomes=count_outcomes(files),
        examples=examples,
        figure_chain=pick_figure_chain(files, examples),
        versions=_collect_versions(files),
        notes=tuple(_collect_notes(files)),
        seed=recipe.seed,
    )


def read_times(run_dir: Path) -> tuple[StageTime, ...]:
    """Seconds and memory of the process that finished each stage last, in the order in which the stages ended first."""
    times: dict[str, StageTime] = {}
    for _, row in storage.read_jsonl(run_dir / "log.jsonl"):
        if row["event"] == "done":
            times[row["stage"]] = StageTime(row["stage"], row["seconds"], row["peak_memory_mib"])
    return tuple(times.values())


def read_speed(run_dir: Path) -> TrainingSpeed | None:
    """The medians of the measured training steps; None if no step was measured."""
    path = run_dir / "train" / "speed.jsonl"
    rows = [row for _, row in storage.read_jsonl(path)] if path.exists() else []
    if not rows:
        return None
    utilisation = [row["utilisation"] for row in rows if row["utilisation"] is not None]
    return TrainingSpeed(
        len(rows),
        statistics.median(row["tokens_per_second"] for row in rows),
        statistics.median(row["operations"] / row["seconds"] for row in rows),
        statistics.median(utilisation) if utilisation else None,
    )


def _describe_student(recipe: Recipe) -> str:
    """The student in a few words: its folder, or its size."""
    student = recipe.student
    if student.model is not None:
        return student.model
    if isinstance(student.shape, ShapeSection):
        shape = student.shape
        return f"{shape.family} of {shape.layers} layers, width {shape.d_model}, random weights"
    return f"{student.shape}, random weights"


def _compare_test_answers(files: RunFiles) -> Iterator[Comparison]:
    """The base and the chosen checkpoint on every set, in every format and decoding."""
    for format in files.recipe.evaluate.formats:
        for decoding in checkpoints.list_decodings(files.recipe, "test"):
            base = files.test_answers(BASE, format, decoding)
            chosen = files.test_answers(files.choice.checkpoint, format, decoding)
            for name in chosen.scores:
                yield compare_answers(base, chosen, name)


def _collect_controls(files: RunFiles) -> Iterator[ControlRun]:
    """The chosen checkpoint after on-policy distillation, if the recipe has it, and the control runs."""
    if files.recipe.on_policy:
        yield _compare_on_policy(files)
    for name in files.recipe.report.controls:
        yield read_control(files, name)


def _compare_on_policy(files: RunFiles) -> ControlRun:
    section, choice = files.recipe.on_policy, files.choice
    after = checkpoints.list_checkpoints_to_test(files.run_dir, files.recipe)[-1]
    assert section is not None and after.on_policy_steps
    base, answers = (files.test_answers(each, choice.format, choice.decoding) for each in (BASE, after))
    scorer = section.scorer or "the base"
    sets = ", ".join(section.sets)
    training = f"its own answers to {sets}, scored by {scorer}, after step {choice.checkpoint.label}"
    comparisons = tuple(compare_answers(base, answers, name) for name in base.scores)
    return ControlRun("repaired", training, after.on_policy_steps, comparisons, on_policy=True)


def _summarize_sources(files: RunFiles) -> Iterator[SourceSummary]:
    sources = parquet.read_chain_sources(files.run_dir / "sample" / "chains.parquet")
    for name, semantics in sorted(sources.items()):
        yield _summarize_source(name, semantics, files.verdict_counts[name])


def _summarize_source(name: str, semantics: Semantics, by_question: Mapping[str, VerdictCounts]) -> SourceSummary:
    total = sum(by_question.values(), VerdictCounts())
    grades, dropped = Counter[Grade](), Counter[str]()
    for (grade, reason), number in total.items():
        grades[grade] += number
        if reason and grade == "right":
            dropped[reason] += number
    right = [sum(n for (grade, _), n in verdicts.items() if grade == "right") for verdicts in by_question.values()]
    shares = [number / verdicts.total() for number, verdicts in zip(right, by_question.values(), strict=True)]
    return SourceSummary(
        name=name,
        semantics=semantics,
        questions=len(by_question),
        chains=total.total(),
        grades=dict(grades),
        dropped=dict(dropped),
        kept=total["right", None],
        kept_questions=sum(verdicts["right", None] > 0 for verdicts in by_question.values()),
        single_sample=Interval(*intervals.paired_bootstrap(shares, [0.0] * len(shares))),
        right_counts={number: right.count(number) for number in range(max(right) + 1)},
    )


def _summarize_alignment(files: RunFiles) -> AlignmentSummary:
    finished, transfer = files.manifest("align"), files.recipe.transfer
    folder = next(path for path in (files.run_dir / "align").iterdir() if path.is_dir())
    rule = str(finished.identity.recipe["transfer.rule"])
    parts = {
        part: tuple(KindCoverage(kind, row["positions"], row["mass"]) for kind, row in rows.items())
        for part, rows in finished.counts["coverage"].items()
    }
    return AlignmentSummary(
        tokenizer=folder.name.removesuffix(f"-{rule}"),
        rule=rule,
        parts=parts,
        covered=finished.counts["covered"],
        unknown=finished.counts["unknown characters"],
        rewrites=transfer.rewrite,
        calculator_marks=transfer.calculator_marks,
    )


def _count_costs(files: RunFiles, comparisons: tuple[Comparison, ...]) -> Iterator[Cost]:
    """What each stage counted, in the order of the stages. Tokens are those of the model that read or wrote them."""
    metrics, chosen = files.metrics, files.choice.checkpoint.step
    yield Cost("sample", "chains", files.counts("sample")["chains"])
    if tokens := files.counts("sample")["tokens"]:
        yield Cost("sample", "tokens written by the teacher", tokens)
    yield Cost("align", "chains brought into the student's vocabulary", files.counts("align")["chains"])
    yield Cost("align", "positions with a target", files.counts("align")["positions"])
    yield Cost("train", "steps", len(metrics))
    if 0 < chosen < len(metrics):
        yield Cost("train", "steps up to the chosen checkpoint", chosen)
    yield Cost("train", "tokens read", sum(row["tokens"] for row in metrics))
    yield Cost("train", "positions learnt from", sum(row["positions"] for row in metrics))
    yield from _count_replay(files)
    yield Cost("evaluate", "answers on validation", sum(score.n for score in files.validation_scores))
    if files.recipe.on_policy:
        yield Cost("repair", "steps", files.counts("repair")["steps"])
        yield Cost("repair", "tokens of its own learnt from", files.counts("repair")["positions"])
    scores = [score for row in comparisons for score in (row.base, row.chosen)]
    answers = {(score.checkpoint, score.set, score.format, score.decoding): score.n for score in scores}
    yield Cost("test", "answers on test", sum(answers.values()))


def _count_replay(files: RunFiles) -> Iterator[Cost]:
    """Trained positions by format, the replayed rows last; nothing without replay."""
    positions = Counter[str]()
    for row in files.metrics:
        positions.update(row["taught"])
    replayed = replay_data.REPLAY_FORMAT
    if replayed in positions:
        for name, number in sorted(positions.items(), key=lambda pair: (pair[0] == replayed, pair[0])):
            yield Cost("train", f"of these positions: {name}", number)


def _collect_versions(files: RunFiles) -> tuple[tuple[str, str], ...]:
    """The versions that the manifests of all earlier stages hold, by name."""
    stages = (*REPORTED_STAGES, *(["repair"] if files.recipe.on_policy else []))
    versions = {name: str(value) for s in stages for name, value in files.manifest(s).identity.versions.items()}
    return tuple(sorted(versions.items()))


def _collect_notes(files: RunFiles) -> Iterator[str]:
    """Sentences that a reader must know before the numbers."""
    recipe, counts = files.recipe, files.counts("train")
    yield from recipe.report.notes
    for name, licence in recipe.report.licences.items():
        yield f"Licence of {name}: {licence}."
    if recipe.report.terms:
        yield f"The teacher's terms of use: {recipe.report.terms}"
    yield from teachers.from_recipe(recipe).report_notes()
    if recipe.student.model is None:
        yield "The student started from random weights: scores near zero are to be expected."
    if recipe.train.lora:
        yield f"Only LoRA adapters of rank {recipe.train.lora} were trained; the other weights stayed as they were."
    if weights := recipe.train.loss_weights:
        total = sum(weights.values())
        shares = ", ".join(f"{name} {percent_number(value / total)} %" for name, value in weights.items())
        rest = " of the part that replay leaves" if recipe.train.replay else ""
        yield f"Weights of the formats in every step's gradient: {shares}{rest}."
    yield from note_templates(files)
    if replay := recipe.train.replay:
        names = ", ".join([*replay.sets, *([Path(replay.file).name] if replay.file else [])])
        rows, near = counts["replayed rows"], counts["rows too near to a measured question"]
        yield (
            f"Replay: {percent_number(replay.share)} % of each step's weight went to {rows} rows of {names}. None of them"
            f" is a validation or test question; {near} rows were left out as too similar to one."
        )
    if counts.get("stopped"):
        yield (
            f"Training stopped at step {counts['steps']} of {recipe.train.steps}: the last"
            f" {recipe.train.early_stopping_patience} checkpoints were no better on validation than an earlier one."
        )
    if warning := low_mass_warning(files.counts("align"), recipe.transfer.min_transferred_probability):
        yield warning
    if section := recipe.on_policy:
        steps = files.counts("repair")["steps"]
        yield (
            f"On-policy distillation: the chosen student was trained for {steps} more steps on its own answers to"
            f" questions of {', '.join(section.sets)}, with the {section.divergence} divergence from"
            f" {section.scorer or 'the base student'}. None of these questions is a validation or test question."
            f" Nothing was chosen by the result; its folder is repair/checkpoints/{steps}."
        )
    if counts.get("chat_template"):
        yield (
            "Prompts were in the student's own chat template, in training and in evaluation; this page shows them as"
            " plain text."
        )


def note_templates(files: RunFiles) -> Iterator[str]:
    """A sentence per test set that shares templates with the training questions: accuracy on those questions and on the
    others, in the format and decoding of the choice."""
    choice = files.choice
    shared = run_questions.read_templates(files.run_dir, "test")
    for name, ids in shared.items():
        accuracies = []
        for checkpoint in (choice.checkpoint, BASE):
            correct = files.test_answers(checkpoint, choice.format, choice.decoding).correct[name]
            parts = [
                [right for question, right in correct.items() if (question in ids) is same] for same in (True, False)
            ]
            accuracies.append([_format_accuracy(part) for part in parts])
        (shared_after, other_after), (shared_before, other_before) = accuracies
        total = len(files.test_answers(BASE, choice.format, choice.decoding).correct[name])
        other = total - len(ids)
        comparison = (
            f" and on {other_after} of the other {other} (the base: {shared_before} and {other_before})"
            if other
            else f" (the base: {shared_before})"
        )
        yield (
            f"{len(ids)} of the {total} test questions of {name} differ from a training question only in numbers and"
            f" names. The chosen checkpoint is right on {shared_after} of them{comparison}."
        )


def _format_accuracy(correct: list[bool]) -> str:
    return f"{percent_number(sum(correct) / len(correct))} %" if correct else "none"
