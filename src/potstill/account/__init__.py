"""The account of a run: what its files say, as a `Story`. The report stage and the terminal show the same one.

    told = tell(run, plan)
    told.comparisons        # base and chosen checkpoint on every test set

Everything is read from the run's folder, after `test`; no test split is opened, only what `test` answered. `controls`
reads the runs beside it, `samples` picks the questions to read, `counts` sums up what it cost.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from potstill import exam, files, intervals, recipe, story
from potstill.account import controls, counts, samples
from potstill.account.controls import taught
from potstill.files import manifest, tables
from potstill.recipe import Recipe, Shape
from potstill.records import Chain, Choice, Verdict

__all__ = ["STAGES", "controls", "counts", "taught", "tell"]

STAGES = ("collect", "sample", "filter", "align", "train", "evaluate", "select", "test")
HARD = (
    "The teacher showed no probabilities of its words: the student learnt its texts as they are, each word as certain"
    " (hard targets)."
)
RANDOM = "The student started from random weights and knew no language: scores near zero are what is to be expected."


def tell(run: Path, plan: Recipe) -> story.Story:
    """What the run's files say. Raises UserError where a control run is missing or cannot be compared."""
    choice = exam.choice(run)
    groups = groups_of(plan)
    solved = _solved(run)
    steps = [0, *exam.checkpoints(run)]
    metrics = [row for _, row in files.read_jsonl(run / "train" / "metrics.jsonl")]
    validation = tuple(score for step in steps for score in exam.scores(run / "evaluate", step))
    read = tuple(samples.pick(run, plan, choice, groups, solved))
    comparisons = tuple(row for name in plan.evaluate.formats for row in _comparisons(run, choice, name))
    return story.Story(
        name=plan.name,
        student=_student(plan),
        teacher=plan.teacher.model or plan.teacher.chains or plan.teacher.kind,
        taught=taught(plan),
        groups=groups,
        recipe=recipe.resolved(plan),
        choice=choice,
        comparisons=comparisons,
        controls=tuple(controls.read(run, plan, choice, name) for name in plan.report.controls),
        validation=validation,
        losses=tuple((row["step"], row["loss"]) for row in metrics),
        sources=tuple(_sources(solved)),
        alignment=_alignment(run, plan),
        costs=tuple(counts.costs(run, metrics, choice.step, validation, comparisons)),
        outcomes=samples.outcomes(run, choice),
        samples=read,
        pictured=samples.pictured(run, plan, solved, read),
        versions=tuple(sorted(_versions(run).items())),
        notes=(
            *plan.report.notes,
            *([HARD] if plan.teacher.kind == "openai" and plan.teacher.candidates == 0 else []),
            *([RANDOM] if plan.student.model is None else []),
        ),
        seed=plan.seed,
    )


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


def _solved(run: Path) -> dict[str, list[tuple[Chain, Verdict]]]:
    verdicts = tables.read_verdicts(run / "filter" / "verdicts.parquet")
    solved: dict[str, list[tuple[Chain, Verdict]]] = {}
    for chain in tables.read_chains(run / "sample" / "chains.parquet"):
        solved.setdefault(chain.question, []).append((chain, verdicts[chain.key]))
    return solved


def _comparisons(run: Path, choice: Choice, format: str) -> Iterator[story.Comparison]:
    base, chosen = (controls.answered(run, step, format) for step in (0, choice.step))
    for name in chosen.scores:
        yield controls.compare(base, chosen, name)


def _sources(solved: Mapping[str, list[tuple[Chain, Verdict]]]) -> Iterator[story.Source]:
    names = sorted({chain.source for pairs in solved.values() for chain, _ in pairs})
    for name in names:
        own = [some for pairs in solved.values() if (some := [pair for pair in pairs if pair[0].source == name])]
        pairs = [pair for some in own for pair in some]
        grades: dict[Any, int] = {}
        dropped: dict[str, int] = {}
        for _, verdict in pairs:
            grades[verdict.grade] = grades.get(verdict.grade, 0) + 1
            if verdict.dropped and verdict.grade == "right":
                dropped[verdict.dropped] = dropped.get(verdict.dropped, 0) + 1
        right = [sum(verdict.grade == "right" for _, verdict in some) for some in own]
        shares = [number / len(some) for number, some in zip(right, own, strict=True)]
        yield story.Source(
            name=name,
            semantics=pairs[0][0].semantics,
            questions=len(own),
            chains=len(pairs),
            grades=grades,
            dropped=dropped,
            kept=sum(verdict.kept for _, verdict in pairs),
            taught=sum(any(verdict.kept for _, verdict in some) for some in own),
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
    return story.Alignment(tokenizer, rule, parts, made.counts["covered"], unknown, plan.transfer.rewrite)


def _versions(run: Path) -> dict[str, str]:
    """The versions of the rooms, as the manifests of all stages before the report hold them."""
    found = {}
    for stage in STAGES:
        made = manifest.finished(run / stage)
        assert made is not None
        found.update({name: str(version) for name, version in made.identity.versions.items()})
    return found
