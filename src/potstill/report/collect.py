"""Reads a finished run into a `ReportData`. The stage `report` renders it, and the command line prints its summary.

    data = collect_report(Path("runs/demo"), recipe)
    data.comparisons        # the base and the chosen checkpoint on every test set

Counts come from manifests and metrics. They are the same on every machine, and the page shows them. Seconds and memory
(`read_times`, `read_speed`) differ between machines, so they are on a separate page, which no manifest covers.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from potstill import storage
from potstill.evaluation import checkpoint as checkpoints
from potstill.evaluation import choice as choices
from potstill.evaluation import intervals, label_tables
from potstill.prompts import FORMATS
from potstill.recipe import Recipe, ShapeSection, recipe_to_yaml
from potstill.records import BASE, Grade, Semantics
from potstill.report.calibration_files import measure_students, measure_teacher
from potstill.report.example_questions import (
    pick_figure_chain,
    pick_test_examples,
    pick_training_examples,
    pick_validation_examples,
)
from potstill.report.group_files import quoted_scores
from potstill.report.model import (
    OUTCOMES,
    AlignmentSummary,
    Comparison,
    ControlRun,
    Cost,
    Interval,
    KindCoverage,
    Outcome,
    ReportData,
    SourceSummary,
    StageTime,
    TaskScore,
    TextComparison,
    TrainingSpeed,
    billed_costs,
)
from potstill.report.notes import collect_notes, note_recipe
from potstill.report.own_texts import summarize_own_texts, summarize_repair_texts
from potstill.report.rule_choices import collect_rule_choices
from potstill.report.run_files import RunFiles, VerdictCounts, compare_answers, describe_training, read_control
from potstill.report.summary import outcome_of
from potstill.storage import ledger, parquet
from potstill.training import examples

REPORTED_STAGES = ("collect", "sample", "filter", "align", "train", "evaluate", "select", "test")


def collect_report(run_dir: Path, recipe: Recipe) -> ReportData:
    """The data of a run's report. Raises UserError if a control run is missing or cannot be compared."""
    files = RunFiles(run_dir, recipe)
    if not recipe.has_teacher:
        return _collect_evaluation(files)
    comparisons = tuple(_compare_test_answers(files))
    examples = (*pick_training_examples(files), *pick_validation_examples(files))
    return ReportData(
        name=recipe.name,
        student=_describe_student(recipe),
        teacher=recipe.teacher_label,
        training=describe_training(recipe),
        also_trained=tuple(_generic_training(recipe)),
        groups=files.groups,
        recipe=recipe_to_yaml(recipe),
        quoted=quoted_scores(recipe),
        choice=files.choice,
        comparisons=comparisons,
        rules=tuple(collect_rule_choices(files)),
        controls=tuple(_collect_controls(files)),
        validation=files.validation_scores,
        texts=tuple(_compare_texts(files)),
        labels=tuple(
            table
            for checkpoint in dict.fromkeys((BASE, files.choice.checkpoint))
            for table in label_tables.read_tables(run_dir / "test", checkpoint)
        ),
        pass_curves=tuple(
            curve
            for checkpoint in dict.fromkeys((BASE, files.choice.checkpoint))
            for curve in checkpoints.read_pass_curve(run_dir / "test", checkpoint)
        ),
        losses=tuple((row["step"], row["loss"]) for row in files.metrics),
        kind_losses=tuple((row["step"], row["kinds"]) for row in files.metrics),
        own_texts=summarize_own_texts(files),
        repair_texts=summarize_repair_texts(files),
        tasks=tuple(_score_tasks(files)),
        calibrations=(*measure_teacher(files), *measure_students(files)),
        sources=summarize_sources(files),
        alignment=_summarize_alignment(files),
        costs=tuple(_count_costs(files, comparisons)),
        outcomes=_count_outcomes(files),
        examples=examples,
        figure_chain=pick_figure_chain(files, examples),
        versions=_collect_versions(files),
        notes=tuple(collect_notes(files, comparisons)),
        seed=recipe.training_seed,
    )


def _generic_training(recipe: Recipe) -> Iterator[str]:
    """What trained the student on generic tasks, beside the chains."""
    train, generic = recipe.train, set(recipe.questions.generic)
    if train.replay and (train.replay.file or generic.intersection(train.replay.sets)):
        yield "replay"
    if train.on_policy and generic.intersection(train.on_policy.sets):
        yield "on-policy distillation"


def _collect_evaluation(files: RunFiles) -> ReportData:
    """The data of the report of a run without a teacher, which only evaluates a model on test."""
    recipe = files.recipe
    comparisons = tuple(
        compare_answers(answers, answers, name)
        for format in recipe.evaluate.formats
        for decoding in checkpoints.list_decodings(recipe, "test")
        for answers in [files.test_answers(BASE, format, decoding)]
        for name in answers.scores
    )
    main = files.main_answers
    return ReportData(
        name=recipe.name,
        student=_describe_student(recipe),
        teacher=recipe.teacher_label,
        groups=files.groups,
        recipe=recipe_to_yaml(recipe),
        quoted=quoted_scores(recipe),
        comparisons=comparisons,
        labels=tuple(label_tables.read_tables(files.run_dir / "test", BASE)),
        pass_curves=tuple(checkpoints.read_pass_curve(files.run_dir / "test", BASE)),
        tasks=tuple(_score_tasks(files)),
        calibrations=tuple(measure_students(files)),
        costs=(Cost("test", "answers on test", sum(row.base.n for row in comparisons)),),
        outcomes={
            name: {"right": sum(correct.values()), "not right": len(correct) - sum(correct.values())}
            for name, correct in main.correct.items()
        },
        examples=tuple(pick_test_examples(files)),
        versions=_collect_versions(files),
        notes=tuple(note_recipe(files)),
        seed=recipe.training_seed,
        is_trained=False,
    )


def read_times(run_dir: Path) -> tuple[StageTime, ...]:
    """Seconds and memory of every stage, of the last process that finished it, in the order in which they first finished."""
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
    """A short description of the student: its model, or its size."""
    student = recipe.student
    if student.model is not None:
        return student.model
    if isinstance(student.shape, ShapeSection):
        shape = student.shape
        return f"{shape.family} of {shape.layers} layers, width {shape.d_model}, random weights"
    return f"{student.shape}, random weights"


def _compare_test_answers(files: RunFiles) -> Iterator[Comparison]:
    """Compare the base and the chosen checkpoint on every set, in every format and decoding."""
    for format in files.recipe.evaluate.formats:
        for decoding in checkpoints.list_decodings(files.recipe, "test"):
            base = files.test_answers(BASE, format, decoding)
            chosen = files.test_answers(files.choice.checkpoint, format, decoding)
            for name in chosen.scores:
                yield compare_answers(base, chosen, name)


def _count_outcomes(files: RunFiles) -> dict[str, dict[Outcome, int]]:
    """The number of validation questions by set and outcome."""
    counts = Counter((before.set, outcome_of(before, after)) for before, after in files.validation_answers.values())
    return {name: {outcome: counts[name, outcome] for outcome in OUTCOMES} for name in files.groups}


def _score_tasks(files: RunFiles) -> Iterator[TaskScore]:
    """The test scores by task, for sets of several tasks, in every format with the decoding of the choice."""
    for format in files.recipe.evaluate.formats:
        base, chosen = (files.test_answers(checkpoint, format, files.main_decoding) for checkpoint in files.both)
        for name, correct in base.correct.items():
            by_task: dict[str, list[str]] = {}
            for question in correct:
                by_task.setdefault(base.tasks[question], []).append(question)
            for task in sorted(by_task) if len(by_task) > 1 else ():
                asked = by_task[task]
                right = [sum(answers.correct[name][question] for question in asked) for answers in (base, chosen)]
                yield TaskScore(name, task, format, FORMATS[format].rationale, len(asked), *right)


def _compare_texts(files: RunFiles) -> Iterator[TextComparison]:
    """Compare the bits per byte of the base and the chosen checkpoint."""
    base, chosen = (
        checkpoints.read_text_scores(files.run_dir / "test", row) for row in (BASE, files.choice.checkpoint)
    )
    for before, after in zip(base, chosen, strict=True):
        assert before.bytes == after.bytes, f"{before.name}: the checkpoints read different texts"
        yield TextComparison(before, after, Interval(*intervals.ratio_bootstrap(after.bits, before.bits, after.bytes)))


def _collect_controls(files: RunFiles) -> Iterator[ControlRun]:
    """The chosen checkpoint after on-policy distillation, if the recipe has it, and the control runs."""
    choice = files.choice
    if section := files.recipe.on_policy:
        after = choices.on_policy_result(files.run_dir, files.recipe)
        base, answers = (files.test_answers(checkpoint, choice.format, choice.decoding) for checkpoint in (BASE, after))
        training = (
            f"its own answers to {', '.join(section.sets)}, scored by {section.scorer or 'the base'}, after step"
            f" {choice.checkpoint.label}"
        )
        comparisons = tuple(compare_answers(base, answers, name) for name in base.scores)
        yield ControlRun("repaired", training, after.on_policy_steps, comparisons, on_policy=True)
    for name in files.recipe.report.controls:
        yield read_control(files, name)


def summarize_sources(files: RunFiles) -> tuple[SourceSummary, ...]:
    """The summaries of the sources in a run whose chains are filtered, by name."""
    path = files.run_dir / "sample" / "chains.parquet"
    semantics, tokens = parquet.read_chain_sources(path), parquet.count_source_tokens(path)
    covered = {name: set(_covered_questions(by_question)) for name, by_question in files.verdict_counts.items()}
    summaries = []
    for name in sorted(semantics):
        others = set().union(*(questions for other, questions in covered.items() if other != name))
        money = ledger.total_usage(files.run_dir, name)["money"]
        summary = summarize_source(name, semantics[name], files.verdict_counts[name])
        alone = len(covered[name] - others)
        summaries.append(
            replace(summary, covered=len(covered[name]), covered_alone=alone, tokens=tokens[name], money=money or None)
        )
    return tuple(summaries)


def _covered_questions(by_question: Mapping[str, VerdictCounts]) -> Iterator[str]:
    reasons = (None, "duplicate", "near duplicate", "cap")  # then another chain of the question is kept
    for question, verdicts in by_question.items():
        if any(verdicts["right", reason] for reason in reasons):
            yield question


def summarize_source(name: str, semantics: Semantics, by_question: Mapping[str, VerdictCounts]) -> SourceSummary:
    """The summary of the chains of one source, without the numbers that depend on other sources.

    by_question  question id -> the verdicts of its chains
    """
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
    """The counts of every stage, in their order. Tokens are those of the model that reads or writes them."""
    metrics, chosen = files.metrics, files.choice.checkpoint.step
    sample, align = files.counts("sample"), files.counts("align")
    yield Cost("sample", "chains", sample["chains"])
    if sample["tokens"]:
        yield Cost("sample", "tokens written by the teacher", sample["tokens"])
    scoring = ledger.scoring_usage(files.run_dir)
    yield from billed_costs("sample", {k: v - scoring[k] for k, v in ledger.total_usage(files.run_dir).items()})
    yield Cost("align", "chains transferred to the student's vocabulary", align["chains"])
    yield Cost("align", "positions with a target", align["positions"])
    yield Cost("train", "steps", len(metrics))
    if 0 < chosen < len(metrics):
        yield Cost("train", "steps up to the chosen checkpoint", chosen)
    yield Cost("train", "tokens read", sum(row["tokens"] for row in metrics))
    yield Cost("train", "positions trained on", sum(row["positions"] for row in metrics))
    by_format, replayed = Counter[str](), examples.REPLAY_FORMAT
    for row in metrics:
        by_format.update(row["taught"])
    if replayed in by_format:  # replayed rows come last
        for name, number in sorted(by_format.items(), key=lambda pair: (pair[0] == replayed, pair[0])):
            yield Cost("train", f"of these positions: {name}", number)
    if files.recipe.train.on_policy is not None:
        written = [row["written"] for row in metrics if row.get("written", {}).get("texts")]
        yield Cost("train", "texts that the student wrote", sum(row["texts"] for row in written))
        yield Cost("train", "tokens of these texts", round(sum(row["texts"] * row["length"] for row in written)))
    yield from billed_costs("train", scoring)
    yield Cost("evaluate", "answers on validation", sum(score.n for score in files.validation_scores))
    if files.recipe.on_policy:
        yield Cost("repair", "steps", files.counts("repair")["steps"])
        yield Cost("repair", "tokens of its own answers trained on", files.counts("repair")["positions"])
    scores = [score for row in comparisons for score in (row.base, row.chosen)]
    answers = {(score.checkpoint, score.set, score.format, score.decoding): score.n for score in scores}
    yield Cost("test", "answers on test", sum(answers.values()))


def _collect_versions(files: RunFiles) -> tuple[tuple[str, str], ...]:
    """(name, version) of all versions in the manifests of the earlier stages, sorted."""
    stages = (*REPORTED_STAGES, *(["repair"] if files.recipe.on_policy else []))
    if not files.recipe.has_teacher:
        stages = ("collect", "test")
    versions = {name: str(value) for s in stages for name, value in files.manifest(s).identity.versions.items()}
    return tuple(sorted(versions.items()))
