"""Counts: what a run cost. Numbers that are the same on every machine, and apart from them what the machine measured.

Counts come from manifests and metrics and stand on the page. Seconds and memory come from `log.jsonl`, which no digest
covers, and go to a page of their own that no manifest covers: a run that was interrupted has other times and the same
report.

The account of a run: what its files say, as a `Story`. The report stage and the terminal show the same one.

    told = tell(run, plan)
    told.comparisons        # base and chosen checkpoint on every test set

Everything is read from the run's folder, after `test`; no test split is opened, only what `test` answered. `controls`
reads the runs beside it, `samples` picks the questions to read, `counts` sums up what it cost.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from potstill import storage, teachers
from potstill.alignment.coverage import low_mass_warning
from potstill.evaluation import checkpoint, intervals
from potstill.recipe import Recipe, ShapeSection, recipe_to_yaml
from potstill.records import BASE, Choice, Grade, Score, Semantics
from potstill.report import controls, model, samples
from potstill.report.controls import describe_training
from potstill.storage import manifest, parquet
from potstill.training import replay_data


def count_costs(
    run_dir: Path,
    recipe: Recipe,
    metrics: Sequence[Mapping[str, Any]],
    chosen: int,
    validation: Sequence[Score],
    comparisons: Sequence[model.Comparison],
) -> Iterator[model.Cost]:
    """What each stage counted, in the order of the stages. Tokens are those of the model that read or wrote them."""
    sampled, aligned = (manifest.read_finished(run_dir / stage) for stage in ("sample", "align"))
    assert sampled is not None and aligned is not None
    yield model.Cost("sample", "chains", sampled.counts["chains"])
    if sampled.counts["tokens"]:
        yield model.Cost("sample", "tokens written by the teacher", sampled.counts["tokens"])
    yield model.Cost("align", "chains brought into the student's vocabulary", aligned.counts["chains"])
    yield model.Cost("align", "positions with a target", aligned.counts["positions"])
    yield model.Cost("train", "steps", len(metrics))
    if 0 < chosen < len(metrics):
        yield model.Cost("train", "steps up to the chosen checkpoint", chosen)
    yield model.Cost("train", "tokens read", sum(row["tokens"] for row in metrics))
    yield model.Cost("train", "positions learnt from", sum(row["positions"] for row in metrics))
    yield from _replay_costs(metrics)
    yield model.Cost("evaluate", "answers on validation", sum(score.n for score in validation))
    if recipe.on_policy is not None:
        repaired = manifest.read_finished(run_dir / "repair")
        assert repaired is not None
        yield model.Cost("repair", "steps", repaired.counts["steps"])
        yield model.Cost("repair", "tokens of its own learnt from", repaired.counts["positions"])
    scores = [score for row in comparisons for score in (row.base, row.chosen)]
    own = {(score.checkpoint, score.set, score.format, score.decoding): score.n for score in scores}
    yield model.Cost("test", "answers on test", sum(own.values()))


def _replay_costs(metrics: Sequence[Mapping[str, Any]]) -> Iterator[model.Cost]:
    """What was really trained, by format, where generic rows were mixed in."""
    taught = Counter[str]()
    for row in metrics:
        taught.update(row["taught"])
    if replay_data.REPLAY_FORMAT in taught:
        for name, positions in sorted(taught.items(), key=lambda pair: (pair[0] == replay_data.REPLAY_FORMAT, pair[0])):
            yield model.Cost("train", f"of these positions: {name}", positions)


def read_speed(run_dir: Path) -> model.TrainingSpeed | None:
    """What training took, by the medians of its steps; None where no step was measured."""
    path = run_dir / "train" / "speed.jsonl"
    rows = [row for _, row in storage.read_jsonl(path)] if path.exists() else []
    if not rows:
        return None
    used = [row["utilisation"] for row in rows if row["utilisation"] is not None]
    return model.TrainingSpeed(
        len(rows),
        statistics.median(row["tokens_per_second"] for row in rows),
        statistics.median(row["operations"] / row["seconds"] for row in rows),
        statistics.median(used) if used else None,
    )


def read_times(run_dir: Path) -> tuple[model.StageTime, ...]:
    """Of every stage, what the log says of the process that finished it last, in the order of the stages' first end."""
    found: dict[str, model.StageTime] = {}
    for _, row in storage.read_jsonl(run_dir / "log.jsonl"):
        if row["event"] == "done":
            found[row["stage"]] = model.StageTime(row["stage"], row["seconds"], row["peak_memory_mib"])
    return tuple(found.values())


__all__ = ["REPORTED_STAGES", "collect_report", "controls", "describe_training"]

REPORTED_STAGES = ("collect", "sample", "filter", "align", "train", "evaluate", "select", "test")
RANDOM_WEIGHTS_NOTE = (
    "The student started from random weights and knew no language: scores near zero are what is to be expected."
)

CHAT_TEMPLATE_NOTE = (
    "Prompts stood in the student's own chat template, in training and in evaluation; this page shows them plain."
)


def collect_report(run_dir: Path, recipe: Recipe) -> model.ReportData:
    """What the run's files say. Raises UserError where a control run is missing or cannot be compared."""
    choice = checkpoint.read_choice(run_dir)
    groups = set_groups(recipe)
    solved = _count_verdicts(run_dir)
    chains = run_dir / "sample" / "chains.parquet"
    answered = [BASE, *checkpoint.read_evaluated_checkpoints(run_dir)]
    metrics = [row for _, row in storage.read_jsonl(run_dir / "train" / "metrics.jsonl")]
    validation = tuple(score for each in answered for score in checkpoint.read_scores(run_dir / "evaluate", each))
    if recipe.on_policy:
        validation += tuple(
            checkpoint.read_scores(run_dir / "repair", checkpoint.list_checkpoints_to_test(run_dir, recipe)[-1])
        )
    read = tuple(
        samples.pick_examples(run_dir, recipe, choice, groups, {name for own in solved.values() for name in own})
    )
    asked = [(name, each) for name in recipe.evaluate.formats for each in checkpoint.list_decodings(recipe, "test")]
    comparisons = tuple(row for name, each in asked for row in _compare_test_answers(run_dir, choice, name, each))
    return model.ReportData(
        name=recipe.name,
        student=_describe_student(recipe),
        teacher=recipe.teacher.model or recipe.teacher.chains or recipe.teacher.kind,
        taught=describe_training(recipe),
        groups=groups,
        recipe=recipe_to_yaml(recipe),
        choice=choice,
        comparisons=comparisons,
        controls=(
            *([controls.read_on_policy_control(run_dir, recipe, choice)] if recipe.on_policy else []),
            *(controls.read_control(run_dir, recipe, choice, name) for name in recipe.report.controls),
        ),
        validation=validation,
        tries=tuple(
            row
            for who in dict.fromkeys((BASE, choice.checkpoint))
            for row in checkpoint.read_pass_curve(run_dir / "test", who)
        ),
        losses=tuple((row["step"], row["loss"]) for row in metrics),
        sources=tuple(
            _summarize_source(name, semantics, solved[name])
            for name, semantics in sorted(parquet.read_chain_sources(chains).items())
        ),
        alignment=_read_alignment(run_dir, recipe),
        costs=tuple(count_costs(run_dir, recipe, metrics, choice.checkpoint.step, validation, comparisons)),
        outcomes=samples.count_outcomes(run_dir, choice),
        samples=read,
        pictured=samples.pick_figure_chain(run_dir, recipe, read),
        versions=tuple(sorted(_read_versions(run_dir, recipe).items())),
        notes=(
            *recipe.report.notes,
            *_licence_notes(recipe),
            *teachers.from_recipe(recipe).report_notes(),
            *([RANDOM_WEIGHTS_NOTE] if recipe.student.model is None else []),
            *(
                [f"LoRA: adapters of rank {recipe.train.lora} learnt, the weights below them did not."]
                if recipe.train.lora
                else []
            ),
            *_format_weight_notes(recipe),
            *controls.template_notes(run_dir, choice),
            *_replay_notes(run_dir, recipe),
            *_early_stopping_notes(run_dir, recipe),
            *(
                [warning]
                if (
                    warning := low_mass_warning(
                        _stage_counts(run_dir, "align"), recipe.transfer.min_transferred_probability
                    )
                )
                else []
            ),
            *_on_policy_notes(run_dir, recipe),
            *([CHAT_TEMPLATE_NOTE] if _stage_counts(run_dir, "train").get("chat_template") else []),
        ),
        seed=recipe.seed,
    )


def _stage_counts(run_dir: Path, stage: str) -> Mapping[str, Any]:
    done = manifest.read_finished(run_dir / stage)
    assert done is not None, f"{stage} comes before the report"
    return done.counts


def _format_weight_notes(recipe: Recipe) -> Iterator[str]:
    """The weights of the formats, where the recipe sets them."""
    weights = recipe.train.loss_weights
    if weights is not None:
        shares = ", ".join(
            f"{name} {model.percent_number(value / sum(weights.values()))} %" for name, value in weights.items()
        )
        more = " of what replay leaves" if recipe.train.replay else ""
        yield f"Weights of the formats in the gradient of every step: {shares}{more}."


def _replay_notes(run_dir: Path, recipe: Recipe) -> Iterator[str]:
    """What a reader of the generic scores must know."""
    asked = recipe.train.replay
    if asked is not None:
        names = ", ".join([*asked.sets, *([Path(asked.file).name] if asked.file else [])])
        counts = _stage_counts(run_dir, "train")
        rows, near = counts["replayed rows"], counts["rows too near to a measured question"]
        weight = f"{model.percent_number(asked.share)} % of the weight of each step"
        yield (
            f"Replay: {weight} were {rows} rows of {names}, none of them a validation or test question"
            f" ({near} too near to one were left out)."
        )


def _early_stopping_notes(run_dir: Path, recipe: Recipe) -> Iterator[str]:
    """That training ended by itself, where it did."""
    counts = _stage_counts(run_dir, "train")
    if counts.get("stopped"):
        yield (
            f"Training stopped at step {counts['steps']} of {recipe.train.steps}:"
            f" the last {recipe.train.early_stopping_patience} checkpoints were no better on validation than one before them."
        )


def _on_policy_notes(run_dir: Path, recipe: Recipe) -> Iterator[str]:
    """What was done to the choice after it was made."""
    if recipe.on_policy is not None:
        asked, steps = recipe.on_policy, _stage_counts(run_dir, "repair")["steps"]
        yield (
            f"Repair: in {steps} further steps the chosen student learnt its own answers to questions of"
            f" {', '.join(asked.sets)}, none of them a validation or test question, by the {asked.divergence}"
            f" divergence from {asked.scorer or 'the base student'}. Nothing was chosen by what came of it;"
            f" its folder is repair/checkpoints/{steps}."
        )


def _licence_notes(recipe: Recipe) -> Iterator[str]:
    """What the recipe says of licences and terms, a sentence each."""
    for name, licence in recipe.report.licences.items():
        yield f"Licence of {name}: {licence}."
    if recipe.report.terms:
        yield f"The teacher's terms of use: {recipe.report.terms}"


def set_groups(recipe: Recipe) -> dict[str, model.SetGroup]:
    """The group of every set that is measured."""
    asked = recipe.questions
    found: dict[str, model.SetGroup] = {}
    names: tuple[tuple[model.SetGroup, list[str]], ...] = (
        ("in-distribution", asked.in_distribution),
        ("out-of-distribution", asked.out_of_distribution),
        ("generic", asked.generic),
    )
    for group, sets in names:
        for name in sets:
            found.setdefault(name, group)
    return found


def _describe_student(recipe: Recipe) -> str:
    """The student in a few words: its folder, or the size that it was made with."""
    asked = recipe.student
    if asked.model is not None:
        return asked.model
    if isinstance(asked.shape, ShapeSection):
        return f"{asked.shape.family} of {asked.shape.layers} layers, width {asked.shape.d_model}, random weights"
    return f"{asked.shape}, random weights"


def _count_verdicts(run_dir: Path) -> dict[str, dict[str, Counter[tuple[Grade, str | None]]]]:
    """Source -> question -> how often each verdict was given: grade, and why the chain was dropped."""
    solved: dict[str, dict[str, Counter[tuple[Grade, str | None]]]] = {}
    for (question, source, _), verdict in parquet.read_verdicts(run_dir / "filter" / "verdicts.parquet"):
        own = solved.setdefault(source, {}).setdefault(question, Counter())
        own[verdict.grade, verdict.dropped] += 1
    return solved


def _compare_test_answers(run_dir: Path, choice: Choice, format: str, decoding: str) -> Iterator[model.Comparison]:
    base, chosen = (controls.read_test_answers(run_dir, who, format, decoding) for who in (BASE, choice.checkpoint))
    for name in chosen.scores:
        yield controls.compare_answers(base, chosen, name)


def _summarize_source(
    name: str, semantics: Semantics, solved: Mapping[str, Counter[tuple[Grade, str | None]]]
) -> model.SourceSummary:
    total = sum(solved.values(), Counter[tuple[Grade, str | None]]())
    grades, dropped = Counter[Grade](), Counter[str]()
    for (grade, reason), number in total.items():
        grades[grade] += number
        if reason and grade == "right":
            dropped[reason] += number
    right = [sum(number for (grade, _), number in own.items() if grade == "right") for own in solved.values()]
    shares = [number / own.total() for number, own in zip(right, solved.values(), strict=True)]
    return model.SourceSummary(
        name=name,
        semantics=semantics,
        questions=len(solved),
        chains=total.total(),
        grades=dict(grades),
        dropped=dict(dropped),
        kept=total["right", None],
        taught=sum(own["right", None] > 0 for own in solved.values()),
        single=model.Interval(*intervals.paired_bootstrap(shares, [0.0] * len(shares))),
        solved={number: right.count(number) for number in range(max(right) + 1)},
    )


def _read_alignment(run_dir: Path, recipe: Recipe) -> model.AlignmentSummary:
    made = manifest.read_finished(run_dir / "align")
    assert made is not None
    folder = next(path for path in (run_dir / "align").iterdir() if path.is_dir())
    rule = str(made.identity.recipe["transfer.rule"])
    parts = {
        part: tuple(model.KindCoverage(kind, row["positions"], row["mass"]) for kind, row in rows.items())
        for part, rows in made.counts["coverage"].items()
    }
    tokenizer, unknown = folder.name.removesuffix(f"-{rule}"), made.counts["unknown characters"]
    asked = recipe.transfer
    return model.AlignmentSummary(
        tokenizer, rule, parts, made.counts["covered"], unknown, asked.rewrite, asked.calculator_marks
    )


def _read_versions(run_dir: Path, recipe: Recipe) -> dict[str, str]:
    """The versions of the rooms, as the manifests of all stages before the report hold them."""
    found = {}
    for stage in (*REPORTED_STAGES, *(["repair"] if recipe.on_policy else [])):
        made = manifest.read_finished(run_dir / stage)
        assert made is not None, f"{stage} comes before the report"
        found.update({name: str(version) for name, version in made.identity.versions.items()})
    return found
