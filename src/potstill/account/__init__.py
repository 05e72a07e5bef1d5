"""The account of a run: what its files say, as a `Story`. The report stage and the terminal show the same one.

    told = tell(run, plan)
    told.comparisons        # base and chosen checkpoint on every test set

Everything is read from the run's folder, after `test`; no test split is opened, only what `test` answered. `controls`
reads the runs beside it, `samples` picks the questions to read, `counts` sums up what it cost.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from potstill import exam, files, intervals, recipe, story
from potstill.account import controls, counts, samples, templates
from potstill.account.controls import taught
from potstill.contenders import BASE
from potstill.coverage import thin
from potstill.files import manifest, tables
from potstill.recipe import Recipe, Shape
from potstill.records import Choice, Grade, Semantics

__all__ = ["STAGES", "controls", "counts", "taught", "tell"]

STAGES = ("collect", "sample", "filter", "align", "train", "evaluate", "select", "test")
HARD = (
    "The teacher showed no probabilities of its words: the student learnt its texts as they are, each word as certain"
    " (hard targets)."
)
RANDOM = "The student started from random weights and knew no language: scores near zero are what is to be expected."

CHAT = "Prompts stood in the student's own chat template, in training and in evaluation; this page shows them plain."


def tell(run: Path, plan: Recipe) -> story.Story:
    """What the run's files say. Raises UserError where a control run is missing or cannot be compared."""
    choice = exam.choice(run)
    groups = groups_of(plan)
    solved = _solved(run)
    chains = run / "sample" / "chains.parquet"
    answered = [BASE, *exam.contenders(run)]
    metrics = [row for _, row in files.read_jsonl(run / "train" / "metrics.jsonl")]
    validation = tuple(score for each in answered for score in exam.scores(run / "evaluate", each))
    if plan.repair:
        validation += tuple(exam.scores(run / "repair", exam.tested(run, plan)[-1]))
    read = tuple(samples.pick(run, plan, choice, groups, {name for own in solved.values() for name in own}))
    asked = [(name, each) for name in plan.evaluate.formats for each in exam.decodings(plan, "test")]
    comparisons = tuple(row for name, each in asked for row in _comparisons(run, choice, name, each))
    return story.Story(
        name=plan.name,
        student=_student(plan),
        teacher=plan.teacher.model or plan.teacher.chains or plan.teacher.kind,
        taught=taught(plan),
        groups=groups,
        recipe=recipe.resolved(plan),
        choice=choice,
        comparisons=comparisons,
        controls=(
            *([controls.repaired(run, plan, choice)] if plan.repair else []),
            *(controls.read(run, plan, choice, name) for name in plan.report.controls),
        ),
        validation=validation,
        tries=tuple(row for who in dict.fromkeys((BASE, choice.contender)) for row in exam.tries(run / "test", who)),
        losses=tuple((row["step"], row["loss"]) for row in metrics),
        sources=tuple(
            _source(name, semantics, solved[name]) for name, semantics in sorted(tables.sources(chains).items())
        ),
        alignment=_alignment(run, plan),
        costs=tuple(counts.costs(run, plan, metrics, choice.contender.step, validation, comparisons)),
        outcomes=samples.outcomes(run, choice),
        samples=read,
        pictured=samples.pictured(run, plan, read),
        versions=tuple(sorted(_versions(run, plan).items())),
        notes=(
            *plan.report.notes,
            *_rights(plan),
            *([HARD] if plan.teacher.kind == "openai" and plan.teacher.candidates == 0 else []),
            *([RANDOM] if plan.student.model is None else []),
            *(
                [f"LoRA: adapters of rank {plan.train.lora} learnt, the weights below them did not."]
                if plan.train.lora
                else []
            ),
            *_weights(plan),
            *templates.notes(run, choice),
            *_replay(run, plan),
            *_stopped(run, plan),
            *([warning] if (warning := thin(_counts(run, "align"), plan.transfer.least_mass)) else []),
            *_repair(run, plan),
            *([CHAT] if _counts(run, "train").get("chat_template") else []),
        ),
        seed=plan.seed,
    )


def _counts(run: Path, stage: str) -> Mapping[str, Any]:
    done = manifest.finished(run / stage)
    assert done is not None, f"{stage} comes before the report"
    return done.counts


def _weights(plan: Recipe) -> Iterator[str]:
    """The weights of the formats, where the recipe sets them."""
    weights = plan.train.loss_weights
    if weights is not None:
        shares = ", ".join(
            f"{name} {story.percent(value / sum(weights.values()))} %" for name, value in weights.items()
        )
        more = " of what replay leaves" if plan.train.replay else ""
        yield f"Weights of the formats in the gradient of every step: {shares}{more}."


def _replay(run: Path, plan: Recipe) -> Iterator[str]:
    """What a reader of the generic scores must know."""
    asked = plan.train.replay
    if asked is not None:
        names = ", ".join([*asked.sets, *([Path(asked.file).name] if asked.file else [])])
        counts = _counts(run, "train")
        rows, near = counts["replayed rows"], counts["rows too near to a measured question"]
        weight = f"{story.percent(asked.share)} % of the weight of each step"
        yield (
            f"Replay: {weight} were {rows} rows of {names}, none of them a validation or test question"
            f" ({near} too near to one were left out)."
        )


def _stopped(run: Path, plan: Recipe) -> Iterator[str]:
    """That training ended by itself, where it did."""
    counts = _counts(run, "train")
    if counts.get("stopped"):
        yield (
            f"Training stopped at step {counts['steps']} of {plan.train.steps}:"
            f" the last {plan.train.stop_after} checkpoints were no better on validation than one before them."
        )


def _repair(run: Path, plan: Recipe) -> Iterator[str]:
    """What was done to the choice after it was made."""
    if plan.repair is not None:
        asked, steps = plan.repair, _counts(run, "repair")["steps"]
        yield (
            f"Repair: in {steps} further steps the chosen student learnt its own answers to questions of"
            f" {', '.join(asked.sets)}, none of them a validation or test question, by the {asked.divergence}"
            f" divergence from {asked.scorer or 'the base student'}. Nothing was chosen by what came of it;"
            f" its folder is repair/checkpoints/{steps}."
        )


def _rights(plan: Recipe) -> Iterator[str]:
    """What the recipe says of licences and terms, a sentence each."""
    for name, licence in plan.report.licences.items():
        yield f"Licence of {name}: {licence}."
    if plan.report.terms:
        yield f"The teacher's terms of use: {plan.report.terms}"


def groups_of(plan: Recipe) -> dict[str, story.Group]:
    """The group of every set that is measured."""
    asked = plan.questions
    found: dict[str, story.Group] = {}
    names: tuple[tuple[story.Group, list[str]], ...] = (
        ("in-distribution", asked.in_distribution),
        ("out-of-distribution", asked.out_of_distribution),
        ("generic", asked.generic),
    )
    for group, sets in names:
        for name in sets:
            found.setdefault(name, group)
    return found


def _student(plan: Recipe) -> str:
    """The student in a few words: its folder, or the size that it was made with."""
    asked = plan.student
    if asked.model is not None:
        return asked.model
    if isinstance(asked.shape, Shape):
        return f"{asked.shape.family} of {asked.shape.layers} layers, width {asked.shape.d_model}, random weights"
    return f"{asked.shape}, random weights"


def _solved(run: Path) -> dict[str, dict[str, Counter[tuple[Grade, str | None]]]]:
    """Source -> question -> how often each verdict was given: grade, and why the chain was dropped."""
    solved: dict[str, dict[str, Counter[tuple[Grade, str | None]]]] = {}
    for (question, source, _), verdict in tables.read_verdicts(run / "filter" / "verdicts.parquet"):
        own = solved.setdefault(source, {}).setdefault(question, Counter())
        own[verdict.grade, verdict.dropped] += 1
    return solved


def _comparisons(run: Path, choice: Choice, format: str, decoding: str) -> Iterator[story.Comparison]:
    base, chosen = (controls.answered(run, who, format, decoding) for who in (BASE, choice.contender))
    for name in chosen.scores:
        yield controls.compare(base, chosen, name)


def _source(name: str, semantics: Semantics, solved: Mapping[str, Counter[tuple[Grade, str | None]]]) -> story.Source:
    total = sum(solved.values(), Counter[tuple[Grade, str | None]]())
    grades, dropped = Counter[Grade](), Counter[str]()
    for (grade, reason), number in total.items():
        grades[grade] += number
        if reason and grade == "right":
            dropped[reason] += number
    right = [sum(number for (grade, _), number in own.items() if grade == "right") for own in solved.values()]
    shares = [number / own.total() for number, own in zip(right, solved.values(), strict=True)]
    return story.Source(
        name=name,
        semantics=semantics,
        questions=len(solved),
        chains=total.total(),
        grades=dict(grades),
        dropped=dict(dropped),
        kept=total["right", None],
        taught=sum(own["right", None] > 0 for own in solved.values()),
        single=story.Interval(*intervals.paired_bootstrap(shares, [0.0] * len(shares))),
        solved={number: right.count(number) for number in range(max(right) + 1)},
    )


def _alignment(run: Path, plan: Recipe) -> story.Alignment:
    made = manifest.finished(run / "align")
    assert made is not None
    folder = next(path for path in (run / "align").iterdir() if path.is_dir())
    rule = str(made.identity.recipe["transfer.rule"])
    parts = {
        part: tuple(story.Coverage(kind, row["positions"], row["mass"]) for kind, row in rows.items())
        for part, rows in made.counts["coverage"].items()
    }
    tokenizer, unknown = folder.name.removesuffix(f"-{rule}"), made.counts["unknown characters"]
    asked = plan.transfer
    return story.Alignment(tokenizer, rule, parts, made.counts["covered"], unknown, asked.rewrite, asked.marks)


def _versions(run: Path, plan: Recipe) -> dict[str, str]:
    """The versions of the rooms, as the manifests of all stages before the report hold them."""
    found = {}
    for stage in (*STAGES, *(["repair"] if plan.repair else [])):
        made = manifest.finished(run / stage)
        assert made is not None, f"{stage} comes before the report"
        found.update({name: str(version) for name, version in made.identity.versions.items()})
    return found
