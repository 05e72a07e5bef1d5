"""report: the page with its tables, and the chosen student as a folder that any Hugging Face tool loads.

Everything that it shows is read from the run's files; it never opens a test split, only what `test` answered.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from potstill import answers, card, exam, files, intervals, page, plots, recipe, splits, story
from potstill.files import manifest, tables
from potstill.questions import collected
from potstill.recipe import Recipe, Shape
from potstill.records import Chain, Choice, Prediction, Question, Verdict

READS = ("report", "name", "seed", "questions")
AFTER = ("collect", "sample", "filter", "align", "train", "evaluate", "select", "test")
VERSIONS = {"page": page.VERSION, "answers": answers.VERSION}

Key = tuple[str, str, int]
Solved = dict[str, list[tuple[Chain, Verdict]]]
CHAINS_SHOWN = 4  # of one question, on the page


def make(run: Path, plan: Recipe) -> tuple[list[Path], dict[str, Any]]:
    told = tell(run, plan)
    paths = [run / "report" / "index.html"]
    files.write(paths[0], page.render(told, plots.draw(told)).encode("utf-8"))
    for name, text in page.tables(told).items():
        paths.append(run / "report" / f"{name}.csv")
        files.write(paths[-1], text.encode("utf-8"))
    assert told.choice is not None, "report comes after select"
    with files.folder(run / "student") as inside:
        exam.open_step(run, plan, told.choice.step).save(inside)
        files.write(inside / "README.md", card.text(told).encode("utf-8"))
    paths += [path for path in (run / "student").iterdir() if path.is_file()]
    return paths, {"step": told.choice.step, "files": len(paths)}


def tell(run: Path, plan: Recipe) -> story.Story:
    """What the run's files say, as the page wants it."""
    choice = exam.choice(run)
    groups = _groups(plan)
    solved = _solved(run)
    steps = [0, *exam.checkpoints(run)]
    metrics = [row for _, row in files.read_jsonl(run / "train" / "metrics.jsonl")]
    return story.Story(
        name=plan.name,
        student=_student(plan),
        teacher=plan.teacher.model or plan.teacher.chains or plan.teacher.kind,
        groups=groups,
        recipe=recipe.resolved(plan),
        choice=choice,
        comparisons=tuple(_comparisons(run, plan, choice)),
        validation=tuple(score for step in steps for score in exam.scores(run / "evaluate", step)),
        losses=tuple((row["step"], row["loss"]) for row in metrics),
        sources=tuple(_sources(solved)),
        alignment=_alignment(run),
        samples=tuple(_samples(run, plan, choice, solved)),
        versions=tuple(sorted(_versions(run).items())),
        notes=_notes(plan),
        seed=plan.seed,
    )


def _student(plan: Recipe) -> str:
    """The student in a few words: its folder, or the size that it was made with."""
    asked = plan.student
    if asked.model is not None:
        return asked.model
    if isinstance(asked.shape, Shape):
        return f"{asked.shape.family} of {asked.shape.layers} layers, width {asked.shape.d_model}, random weights"
    return f"{asked.shape}, random weights"


def _groups(plan: Recipe) -> dict[str, story.Group]:
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


def _solved(run: Path) -> Solved:
    verdicts = tables.read_verdicts(run / "filter" / "verdicts.parquet")
    solved: Solved = {}
    for chain in tables.read_chains(run / "sample" / "chains.parquet"):
        solved.setdefault(chain.question, []).append((chain, verdicts[chain.key]))
    return solved


def _comparisons(run: Path, plan: Recipe, choice: Choice) -> Iterator[story.Comparison]:
    scores = {step: {(s.set, s.format): s for s in exam.scores(run / "test", step)} for step in (0, choice.step)}
    for name in plan.evaluate.formats:
        right = {step: _right(run / "test", step, name) for step in (0, choice.step)}
        for chosen in (s for (_, format), s in scores[choice.step].items() if format == name):
            before, after = right[0][chosen.set], right[choice.step][chosen.set]
            assert before.keys() == after.keys(), "base and chosen answered the same questions"
            difference = intervals.paired_difference([after[q] for q in before], list(before.values()))
            yield story.Comparison(scores[0][chosen.set, name], chosen, story.Interval(*difference))


def _right(folder: Path, step: int, format: str) -> dict[str, dict[str, bool]]:
    """Set -> question -> right or not."""
    found: dict[str, dict[str, bool]] = {}
    for prediction in exam.predictions(folder, step, format):
        found.setdefault(prediction.set, {})[prediction.question] = prediction.grade == "right"
    return found


def _sources(solved: Solved) -> Iterator[story.Source]:
    names = sorted({chain.source for pairs in solved.values() for chain, _ in pairs})
    for name in names:
        own = {q: [(c, v) for c, v in pairs if c.source == name] for q, pairs in solved.items()}
        pairs = [pair for some in own.values() for pair in some]
        grades: dict[Any, int] = {}
        dropped: dict[str, int] = {}
        for _, verdict in pairs:
            grades[verdict.grade] = grades.get(verdict.grade, 0) + 1
            if verdict.grade == "right" and verdict.dropped:
                dropped[verdict.dropped] = dropped.get(verdict.dropped, 0) + 1
        shares = [sum(v.grade == "right" for _, v in some) / len(some) for some in own.values() if some]
        yield story.Source(
            name=name,
            semantics=pairs[0][0].semantics,
            questions=len(shares),
            chains=len(pairs),
            grades=grades,
            dropped=dropped,
            kept=sum(verdict.kept for _, verdict in pairs),
            single=story.Interval(*intervals.paired_bootstrap(shares, [0.0] * len(shares))),
        )


def _alignment(run: Path) -> story.Alignment:
    made = manifest.finished(run / "align")
    assert made is not None
    folder = next(path for path in (run / "align").iterdir() if path.is_dir())
    rule = str(made.identity.recipe["transfer.rule"])
    rows = {
        part: tuple(story.Coverage(kind, row["positions"], row["mass"]) for kind, row in made.counts[part].items())
        for part in ("coverage", "digits")
    }
    return story.Alignment(folder.name.removesuffix(f"-{rule}"), rule, rows["coverage"], rows["digits"])


def _samples(run: Path, plan: Recipe, choice: Choice, solved: Solved) -> Iterator[story.Sample]:
    """Training questions with the teacher's chains, then validation questions that were won, lost, or neither."""
    if plan.report.read == 0:
        return
    train = [q for q in collected.questions(run, plan.questions.train, "train") if q.id in solved]
    for question in splits.take(train, plan.report.read):
        yield story.Sample(question, tuple(solved[question.id][:CHAINS_SHOWN]))
    measured = {q.id: q for q in collected.questions(run, _groups(plan), "validation")}
    before = {p.question: p for p in exam.predictions(run / "evaluate", 0, choice.format)}
    after = {p.question: p for p in exam.predictions(run / "evaluate", choice.step, choice.format)}
    kinds: dict[tuple[bool, bool], list[Question]] = {}
    for name, question in measured.items():
        kinds.setdefault((_is_right(before[name]), _is_right(after[name])), []).append(question)
    each = max(1, plan.report.read // 3)
    for kind in ((False, True), (True, False), (False, False)):
        for question in splits.take(kinds.get(kind, []), each):
            yield story.Sample(question, (), before[question.id], after[question.id])


def _is_right(prediction: Prediction) -> bool:
    return prediction.grade == "right"


def _versions(run: Path) -> dict[str, str]:
    """The versions of the rooms, as the manifests of all stages before this one hold them."""
    found = {}
    for stage in AFTER:
        made = manifest.finished(run / stage)
        assert made is not None
        found.update({name: str(version) for name, version in made.identity.versions.items()})
    return found


def _notes(plan: Recipe) -> tuple[str, ...]:
    notes = list(plan.report.notes)
    if plan.student.model is None:
        notes.append(
            "The student started from random weights and knew no language: scores near zero are what is to be expected."
        )
    return tuple(notes)
