"""What the commands print: a run's state, its records in colour, and chains for other trainers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from potstill import (
    account,
    answers,
    exam,
    files,
    lessons,
    prompts,
    recipe,
    rewriting,
    run,
    story,
    students,
    tokenizers,
)
from potstill.cli import aligned
from potstill.cli.recipes import recipe_of
from potstill.encoding import to_json
from potstill.errors import UserError
from potstill.files import ledger, manifest, segments, tables
from potstill.questions import collected
from potstill.recipe import Recipe
from potstill.records import Chain, Question, Target, Verdict
from potstill.story import visible
from potstill.targets import Targets

GRADES = {"right": "green", "wrong": "red", "no answer": "yellow", "truncated": "yellow"}


def chosen(path: Path) -> tuple[Recipe, Path]:
    """The recipe and the folder of a run that is named by its folder or by its recipe's file."""
    if path.is_file():
        plan = recipe.load(path)
        return plan, run.folder_of(plan)
    return recipe_of(path), path


def status(folder: Path) -> None:
    """A table of the stages: finished, begun or absent, and what each counted."""
    stages = run.stages(recipe_of(folder))
    title = _text(folder)
    table = Table("stage", "state", "counted", title=title, title_justify="left", box=None, pad_edge=False)
    for stage in stages if len(stages) > len(run.STAGES) else run.STAGES:
        table.add_row(stage, *_state(folder / stage))
    Console().print(table)


def _state(folder: Path) -> tuple[Text, Text]:
    """The state of a stage in a word, and what it counted or what is wrong with it."""
    try:
        done, began = manifest.finished(folder), manifest.begun(folder)
    except UserError as fault:
        return Text("broken", "red"), _text(fault)
    if done:
        return Text("done", "green"), _text(json.dumps(done.counts, ensure_ascii=False)[1:-1])
    return (Text("begun", "yellow") if began else Text("-", "dim")), _text(_so_far(folder) if began else "")


def _so_far(folder: Path) -> str:
    """What a stage that is under way holds already: the chains of sampling."""
    if folder.name != "sample":
        return ""
    chains = len(segments.keys(segments.paths(folder)))
    spent = ledger.told(folder.parent) if any(ledger.bills(folder.parent)) else ""
    return f'"chains": {chains}' + (f", {spent}" if spent else "")


def overview(folder: Path) -> None:
    """What there is to look at, with keys to copy."""
    status(folder)
    console = Console()
    first = next(tables.stored(folder / "sample"), None)
    if first is not None:
        key = f"{first.question}#{first.index}"
        console.print(_text(f"\nLook closer: potstill show {folder} --chain {key}, --target {key}, --batch 1"))


def chain(folder: Path, key: str) -> None:
    """A chain with its verdict: the teacher's tokens above the student's, by kind, and at each the candidates."""
    found, verdict = _chain(folder, key)
    question = _question(folder, found.question)
    console = Console()
    console.print(_text(question.text, "bold"), _text(f"\ngold: {question.gold}\n"))
    console.print(_text(found.text))
    line = f"\n{verdict.grade}" + (f" ({verdict.found})" if verdict.found else "")
    fate = "kept" if verdict.kept else f"dropped: {verdict.dropped}" if verdict.dropped else "not kept"
    console.print(_text(line, GRADES[verdict.grade]), Text(fate))
    marks = f", defects: {', '.join(found.defects)}" if found.defects else ""
    console.print(_text(f"source {found.source}, stop {found.stop}, log-probabilities {found.semantics}{marks}\n"))
    taught = _taught(folder, found, verdict)
    if taught is not None:
        written, aligned_target, tokenizer = taught
        if written is not found:
            console.print(_text("as it is written for the student:\n"), _text(written.text), "\n")
        for line in aligned.interlinear(written, aligned_target, tokenizer, console.width):
            console.print(line, no_wrap=True, crop=True)
        console.print(aligned.legend(aligned_target), "")
        console.print(aligned.table(written, aligned_target, tokenizer))
    elif found.candidates:
        table = Table("token", "probability", "other candidates", box=None, pad_edge=False)
        for step in range(len(found.candidates)):
            table.add_row(*aligned.teacher_cells(found, step))
        console.print(table)


def target(folder: Path, key: str) -> None:
    """A chain as the student is taught it: pieces by kind, with the distribution at each soft position."""
    found, verdict = _chain(folder, key)
    taught = _taught(folder, found, verdict)
    if taught is None:
        what = "this chain was not kept, so it is no target" if not verdict.kept else "the chains are not aligned yet"
        raise UserError(what, where=key, do="look at it with --chain")
    _, shown, tokenizer = taught
    table = Table("piece", "kind", "distribution", "tail", box=None, pad_edge=False)
    for position, token in enumerate(shown.ids):
        kind = shown.kind(position)
        shares = sorted(shown.distribution(position).items(), key=lambda item: -item[1])
        mass = "  ".join(f"{aligned.student_piece(tokenizer, i)} {p:.3f}" for i, p in shares)
        tail = f"{shown.tail(position):.3f}"
        own = aligned.student_piece(tokenizer, token)
        table.add_row(Text(own, aligned.COLOURS[kind]), Text(kind, aligned.COLOURS[kind]), Text(mass), tail)
    Console().print(table)


def batch(folder: Path, step: int) -> None:
    """The groups of a training step, and its first prompt in each format as the student reads it."""
    if step < 1:
        raise UserError("steps are counted from 1", where="--batch", found=step, do="name a step such as 1")
    plan = recipe_of(folder)
    student = students.base(plan)
    lesson = lessons.read(folder, plan, student)
    table = Table("question", "format", "chains", "epoch", box=None, pad_edge=False)
    for group in lesson.groups(step):
        table.add_row(
            _text(group.question), group.format.name, ", ".join(map(str, group.chains)) or "answer", str(group.epoch)
        )
    for row in lesson.examples(step):
        if row.format == lessons.replayed.NAME:
            table.add_row(_text(row.question), row.format, f"weight {row.weight:.3f}", "")
    console = Console()
    console.print(table)
    first = {example.format: example for example in reversed(lesson.examples(step))}
    for name, example in sorted(first.items()):
        console.print(Text(f"\n{name}", "bold"))
        console.print(_text(student.tokenizer.decode(example.prompt), "dim"))
        console.print(_text(student.tokenizer.decode(example.target.ids), "green"))


def prediction(folder: Path, question: str) -> None:
    """What every step whose evaluation is finished answered to a validation question."""
    plan = recipe_of(folder)
    table = Table("step", "format", "grade", "found", "text", box=None, pad_edge=False)
    rows, example = 0, ""
    for who in exam.answered(folder / "evaluate"):
        if manifest.finished(folder / "evaluate" / who.name) is None:
            continue
        for name in plan.evaluate.formats:
            for answer in exam.predictions(folder / "evaluate", who, name, plan.evaluate.decodings[0]):
                example = example or f", such as {answer.question}"
                if answer.question == question:
                    grade = Text(answer.grade, GRADES[answer.grade])
                    table.add_row(who.label, name, grade, _text(answer.found or ""), _text(answer.text))
                    rows += 1
    if not rows:
        raise UserError("no answer to this question", where=question, do=f"name a validation question{example}")
    Console().print(table)


def summary(folder: Path) -> None:
    """The run in one table: the base, the specialized student and the controls on every test set, with paired
    intervals, and where the page is."""
    told = account.tell(folder, recipe_of(folder))
    title = f"{told.name}: right answers on test, in percent"
    table = Table("", title=title, title_justify="left", box=None, pad_edge=False)
    for column in ("right", "against base", "95 % interval"):
        table.add_column(column, justify="right", no_wrap=True)
    found = story.lines(told)
    for group in story.GROUPS:
        sets = [name for name in (found[0].sets if found else ()) if told.groups[name] == group]
        if sets:
            table.add_row(Text(group, "bold"))
        for name in sets:
            _rows(table, name, [(line, line.sets[name]) for line in found])
        if len(sets) > 1:
            _rows(table, f"mean of {len(sets)} sets", [(line, line.groups[group]) for line in found])
    console = Console()
    console.print(table)
    formats = dict.fromkeys((row.chosen.format, row.chosen.decoding) for row in told.comparisons)
    if others := [" ".join(each) for each in formats if each != story.main_format(told)]:
        console.print(_text(f"also measured, on the page: {', '.join(others)}", "dim"))
    choice = exam.choice(folder)
    console.print(f"chosen: step {choice.contender.label} ({choice.rule})", style="dim")
    over = "intervals are over the questions of one seed; they do not include the variation between seeds"
    console.print(over, style="dim", soft_wrap=True)
    console.print(_text(f"page: {folder / 'report' / 'index.html'}"), soft_wrap=True)


def _rows(table: Table, name: str, cells: list[tuple[story.Line, story.Cell]]) -> None:
    """One set, or the mean of several: a row a student."""
    table.add_row(_text(f"  {name}, {cells[0][1].n} questions"))
    for line, cell in cells:
        change = cell.difference
        style = "" if change is None else "green" if change.low > 0 else "red" if change.high < 0 else ""
        table.add_row(
            _text(f"    {line.shown}", "bold" if line.name == "specialized" else ""),
            story.percent(cell.accuracy.value),
            Text(story.points(change.value) if change else "", style),
            Text(f"{story.points(change.low)} to {story.points(change.high)}" if change else "", style),
        )


def exported(folder: Path, form: str) -> Iterator[bytes]:
    """The kept chains, one line of JSON each: chat rows for other trainers, or whole chain records."""
    plan = recipe_of(folder)
    if manifest.finished(folder / "filter") is None:
        do = f"run `potstill filter {folder}` first; `potstill show {folder}` shows chains before that"
        raise UserError("the chains have no verdicts yet", where=folder, do=do)
    asked = {q.id: q for q in collected.questions(folder, plan.questions.train, "train")}
    for found, verdict in tables.judged(folder / "sample" / "chains.parquet", folder / "filter" / "verdicts.parquet"):
        if verdict.kept:
            row = to_json(found) if form == "jsonl" else _messages(asked[found.question], found)
            yield files.line(row)


def _messages(question: Question, found: Chain) -> dict[str, Any]:
    asked = prompts.build(question.text, prompts.FORMATS["zero-shot-rationale"])
    return {"messages": [*asked.messages, {"role": "assistant", "content": found.text}]}


def _chain(folder: Path, key: str) -> tuple[Chain, Verdict]:
    recipe_of(folder)
    for found in tables.stored(folder / "sample", {key, key.rpartition("#")[0]}):
        if key in (f"{found.question}#{found.index}", found.question if found.index == 0 else None):
            path = folder / "filter" / "verdicts.parquet"
            if path.exists():
                return found, next(verdict for own, verdict in tables.read_verdicts(path) if own == found.key)
            asked = _question(folder, found.question)
            return found, answers.grade(found.text, asked.gold, asked.task, found.stop)
    first = next(tables.stored(folder / "sample"), None)
    if first is None:
        raise UserError("no chain is stored yet", where=folder, do=f"run `potstill sample {folder}`, or wait for it")
    example = f", such as {first.question}#{first.index}" if first else ""
    raise UserError("no such chain", where=key, do=f"name a training question, or QUESTION#INDEX{example}")


def _taught(folder: Path, found: Chain, verdict: Verdict) -> tuple[Chain, Target, tokenizers.Tokenizer] | None:
    """A chain as it was written for the student, its target and the tokenizer; None if it was not kept or not yet
    aligned. Raises UserError where the targets were made from something else."""
    if not verdict.kept or manifest.finished(folder / "align") is None:
        return None
    plan = recipe_of(folder)
    tokenizer = tokenizers.open(students.tokenizer_folder(plan))
    own = Targets(lessons.targets_folder(folder, plan), lessons.origin(folder, plan, tokenizer)).of(found)
    taught, _ = rewriting.prepared(found, plan.transfer.rewrite, plan.transfer.marks)
    return taught, own, tokenizer


def _question(folder: Path, name: str) -> Question:
    plan = recipe_of(folder)
    return next(q for q in collected.questions(folder, plan.questions.train, "train") if q.id == name)


def _text(what: object, style: str = "") -> Text:
    """Somebody else's text for a terminal: no markup is read in it, and its control characters are spelt out."""
    return Text(visible(str(what)), style)
