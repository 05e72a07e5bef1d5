"""What the commands print: a run's state, its records in colour, and chains for other trainers."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from potstill import account, answers, exam, files, lessons, prompts, recipe, run, story, students, tokenizers
from potstill.encoding import to_json
from potstill.errors import UserError
from potstill.files import manifest, tables
from potstill.questions import collected
from potstill.recipe import Recipe
from potstill.records import END, Chain, Question, Verdict
from potstill.story import visible
from potstill.targets import Targets

COLOURS = {"same": "green", "merged": "cyan", "split": "blue", "mixed": "magenta", "hard": "yellow", "end": "dim"}
GRADES = {"right": "green", "wrong": "red", "no answer": "yellow", "truncated": "yellow"}


def recipe_of(folder: Path) -> Recipe:
    """The recipe that a run folder holds. Raises UserError where there is none."""
    path = folder / "recipe.yaml"
    if not path.is_file():
        raise UserError(
            "not a run's folder", where=folder, found="no recipe.yaml", do="name a folder such as runs/demo"
        )
    return recipe.load(path)


def chosen(path: Path) -> tuple[Recipe, Path]:
    """The recipe and the folder of a run that is named by its folder or by its recipe's file."""
    if path.is_file():
        plan = recipe.load(path)
        return plan, run.folder_of(plan)
    return recipe_of(path), path


def status(folder: Path) -> None:
    """A table of the stages: finished, begun or absent, and what each counted."""
    recipe_of(folder)
    title = _text(folder)
    table = Table("stage", "state", "counted", title=title, title_justify="left", box=None, pad_edge=False)
    for stage in run.STAGES:
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
    return (Text("begun", "yellow") if began else Text("-", "dim")), Text()


def overview(folder: Path) -> None:
    """What there is to look at, with keys to copy."""
    status(folder)
    console = Console()
    path = folder / "sample" / "chains.parquet"
    first = next(tables.read_chains(path), None) if path.exists() else None
    if first is not None:
        key = f"{first.question}#{first.index}"
        console.print(_text(f"\nLook closer: potstill show {folder} --chain {key}, --target {key}, --batch 1"))


def chain(folder: Path, key: str) -> None:
    """A chain with its verdict, its tokens, and at each the likeliest candidates."""
    found, verdict = _chain(folder, key)
    question = _question(folder, found.question)
    console = Console()
    console.print(_text(question.text, "bold"), _text(f"\ngold: {question.gold}\n"))
    console.print(_text(found.text))
    line = f"\n{verdict.grade}" + (f" ({verdict.found})" if verdict.found else "")
    fate = "kept" if verdict.kept else f"dropped: {verdict.dropped}" if verdict.dropped else "not kept"
    console.print(_text(line, GRADES[verdict.grade]), Text(fate))
    console.print(_text(f"source {found.source}, stop {found.stop}, log-probabilities {found.semantics}\n"))
    if not found.candidates:
        return
    table = Table("token", "probability", "other candidates", box=None, pad_edge=False)
    for number, step in enumerate(found.candidates):
        own = found.tokens[number] if number < len(found.tokens) else END
        chosen = next((value for what, value in step if what == own), None)
        others = [(what, value) for what, value in step if what != own]
        shown = Text(_piece(own), _shade(chosen))
        shares = "  ".join(f"{_piece(what)} {math.exp(value):.3f}" for what, value in others)
        table.add_row(shown, f"{math.exp(chosen):.3f}" if chosen is not None else "", Text(shares, "dim"))
    console.print(table)


def target(folder: Path, key: str) -> None:
    """A chain as the student is taught it: pieces by kind, with the distribution at each soft position."""
    plan = recipe_of(folder)
    found, _ = _chain(folder, key)
    targets = Targets(lessons.targets_folder(folder, plan))
    place = targets.find(found.key)
    if place is None:
        raise UserError("this chain was not kept, so it is no target", where=key, do="look at it with --chain")
    tokenizer = tokenizers.open(students.tokenizer_folder(plan))
    table = Table("piece", "kind", "distribution", "tail", box=None, pad_edge=False)
    shown = targets[place]
    for position, token in enumerate(shown.ids):
        kind = shown.kind(position)
        shares = sorted(shown.distribution(position).items(), key=lambda item: -item[1])
        mass = "  ".join(f"{_piece(tokenizer.bytes(i))} {p:.3f}" for i, p in shares)
        tail = f"{shown.tail(position):.3f}"
        table.add_row(Text(_piece(tokenizer.bytes(token)), COLOURS[kind]), Text(kind, COLOURS[kind]), Text(mass), tail)
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
    steps = sorted(int(path.name) for path in (folder / "evaluate").glob("*") if path.name.isdigit())
    table = Table("step", "format", "grade", "found", "text", box=None, pad_edge=False)
    rows = 0
    for step in steps:
        if manifest.finished(folder / "evaluate" / str(step)) is None:
            continue
        for name in plan.evaluate.formats:
            for answer in exam.predictions(folder / "evaluate", step, name):
                if answer.question == question:
                    grade = Text(answer.grade, GRADES[answer.grade])
                    table.add_row(str(step), name, grade, _text(answer.found or ""), _text(answer.text))
                    rows += 1
    if not rows:
        raise UserError(
            "no answer to this question", where=question, do="name a validation question, such as svamp/chal-1"
        )
    Console().print(table)


def summary(folder: Path) -> None:
    """The run in one table: base and chosen on every test set, with intervals, and where the page is."""

    told = account.tell(folder, recipe_of(folder))
    table = Table("", title=f"{told.name}: right answers on test, in percent", title_justify="left", box=None)
    for column in ("n", "before", "after", "difference", "95 % interval"):
        table.add_column(column, justify="right", no_wrap=True)
    shown = {(row.chosen.format, row.chosen.decoding) for row in told.comparisons}
    for group in story.GROUPS:
        rows = [row for row in told.comparisons if told.groups[row.chosen.set] == group]
        if rows:
            table.add_row(Text(group, "bold"))
        for row in rows:
            name = row.chosen.set if len(shown) == 1 else f"{row.chosen.set}, {row.chosen.format}"
            change = row.difference
            style = "green" if change.low > 0 else "red" if change.high < 0 else ""
            table.add_row(
                f"  {name}",
                str(row.chosen.n),
                f"{100 * row.base.accuracy:.1f}",
                f"{100 * row.chosen.accuracy:.1f}",
                Text(story.points(change.value), style),
                Text(f"{story.points(change.low)} to {story.points(change.high)}", style),
            )
    console = Console()
    console.print(table)
    choice = exam.choice(folder)
    console.print(
        f"chosen: step {choice.step} ({choice.rule})\nintervals are over the questions of one seed", style="dim"
    )
    console.print(_text(f"page: {folder / 'report' / 'index.html'}"), soft_wrap=True)


def exported(folder: Path, form: str) -> Iterator[bytes]:
    """The kept chains, one line of JSON each: chat rows for other trainers, or whole chain records."""
    plan = recipe_of(folder)
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
    named = {key, key.rpartition("#")[0]}
    for found in tables.read_chains(folder / "sample" / "chains.parquet", named):
        if key in (f"{found.question}#{found.index}", found.question if found.index == 0 else None):
            path = folder / "filter" / "verdicts.parquet"
            if path.exists():
                return found, next(verdict for own, verdict in tables.read_verdicts(path) if own == found.key)
            asked = _question(folder, found.question)
            return found, answers.grade(found.text, asked.gold, asked.task, found.stop)
    raise UserError("no such chain", where=key, do="a key is QUESTION#INDEX, such as gsm8k/train/12#0")


def _question(folder: Path, name: str) -> Question:
    plan = recipe_of(folder)
    return next(q for q in collected.questions(folder, plan.questions.train, "train") if q.id == name)


def _text(what: object, style: str = "") -> Text:
    """Somebody else's text for a terminal: no markup is read in it, and its control characters are spelt out."""
    return Text(visible(str(what)), style)


def _piece(what: Any) -> str:
    """A token's bytes in a table: spaces and line ends visible."""
    if what is END or what == b"":
        return "END" if what is END else "∅"
    return visible(what.decode("utf-8", "replace")).replace(" ", "␣").replace("\n", "⏎")


def _shade(value: float | None) -> str:
    if value is None:
        return "yellow"
    return "green" if value > math.log(0.9) else "yellow" if value > math.log(0.5) else "red"
