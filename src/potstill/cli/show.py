"""The scores of a run that only evaluates: one table, every set and format, with intervals.

What the commands print: a run's state, its records in colour, and chains for other trainers.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from potstill import grading, models, prompts, runner, storage, tokenization
from potstill.alignment import rewrite
from potstill.alignment.target_store import TargetStore
from potstill.cli import chain_view
from potstill.cli.run_folder import read_run_recipe
from potstill.data import run_questions
from potstill.errors import UserError, escape_hidden
from potstill.evaluation import checkpoint
from potstill.recipe import Recipe, load_recipe
from potstill.records import BASE, Chain, Question, Score, Target, Verdict
from potstill.report import collect, model, summary
from potstill.serialization import to_json
from potstill.stages import STAGES, recipe_stages
from potstill.storage import ledger, manifest, parquet, segments
from potstill.training import examples, replay_data


def print_scores(folder: Path) -> None:
    """Right, no answer and truncated of every set in percent, and where each answer stands."""
    title = Text(f"{folder.name}: answers on test, in percent")
    columns = ("set", "n", "right", "95 % interval", "wrong", "no answer", "truncated")
    table = Table(*columns, title=title, title_justify="left", box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    format = ""
    for score in checkpoint.read_scores(folder / "test", BASE):
        if (score.format, score.decoding) != format:
            format = score.format, score.decoding
            table.add_row(Text(" ".join(format), "bold"))
        wrong = score.n - score.right - score.no_answer - score.truncated
        shares = [model.percent_number(count / score.n) for count in (wrong, score.no_answer, score.truncated)]
        bounds = f"{model.percent_number(score.low)} to {model.percent_number(score.high)}"
        table.add_row(f"  {score.set}", str(score.n), model.percent_number(score.accuracy), bounds, *shares)
        _add_task_rows(table, score)
    console = Console()
    console.print(table)
    console.print(Text(f"answers: {folder / 'test' / '0'}"), soft_wrap=True)


def _add_task_rows(table: Table, score: Score) -> None:
    """A set of several tasks: both means, with intervals that take the tasks as drawn."""
    if score.macro is None:
        return
    rows = (
        ("if the tasks were drawn", score.accuracy, score.tasks_low, score.tasks_high),
        ("mean over tasks", score.macro, score.macro_low, score.macro_high),
    )
    for label, value, low, high in rows:
        assert low is not None and high is not None, "a set of several tasks has these bounds"
        table.add_row(
            f"    {label}",
            "",
            model.percent_number(value),
            f"{model.percent_number(low)} to {model.percent_number(high)}",
            "",
            "",
            "",
        )


GRADE_COLOURS = {"right": "green", "wrong": "red", "no answer": "yellow", "truncated": "yellow"}


def open_run_or_recipe(path: Path) -> tuple[Recipe, Path]:
    """The recipe and the folder of a run that is named by its folder or by its recipe's file."""
    if path.is_file():
        recipe = load_recipe(path)
        return recipe, runner.default_run_dir(recipe)
    return read_run_recipe(path), path


def print_status(folder: Path) -> None:
    """A table of the stages: finished, begun or absent, and what each counted."""
    names = recipe_stages(read_run_recipe(folder))
    title = _plain_text(folder)
    table = Table("stage", "state", "counted", title=title, title_justify="left", box=None, pad_edge=False)
    for stage in names if len(names) > len(STAGES) else STAGES:
        table.add_row(stage, *_stage_state(folder / stage))
    Console().print(table)


def _stage_state(folder: Path) -> tuple[Text, Text]:
    """The state of a stage in a word, and what it counted or what is wrong with it."""
    try:
        done, began = manifest.read_finished(folder), manifest.read_begun(folder)
    except UserError as fault:
        return Text("broken", "red"), _plain_text(fault)
    if done:
        return Text("done", "green"), _plain_text(json.dumps(done.counts, ensure_ascii=False)[1:-1])
    return (Text("begun", "yellow") if began else Text("-", "dim")), _plain_text(
        _partial_counts(folder) if began else ""
    )


def _partial_counts(folder: Path) -> str:
    """What a stage that is under way holds already: the chains of sampling."""
    if folder.name != "sample":
        return ""
    chains = len(segments.stored_keys(segments.segment_paths(folder)))
    spent = ledger.describe_usage(folder.parent) if any(ledger.ledger_paths(folder.parent)) else ""
    return f'"chains": {chains}' + (f", {spent}" if spent else "")


def print_overview(folder: Path) -> None:
    """What there is to look at, with keys to copy."""
    print_status(folder)
    console = Console()
    first = next(parquet.read_stored_chains(folder / "sample"), None)
    if first is not None:
        key = f"{first.question}#{first.index}"
        console.print(_plain_text(f"\nLook closer: potstill show {folder} --chain {key}, --target {key}, --batch 1"))


def print_chain(folder: Path, key: str) -> None:
    """A chain with its verdict: the teacher's tokens above the student's, by kind, and at each the candidates."""
    found, verdict = _find_chain(folder, key)
    question = _find_question(folder, found.question)
    console = Console()
    console.print(_plain_text(question.text, "bold"), _plain_text(f"\ngold: {question.gold}\n"))
    console.print(_plain_text(found.text))
    line = f"\n{verdict.grade}" + (f" ({verdict.answer})" if verdict.answer else "")
    fate = "kept" if verdict.kept else f"dropped: {verdict.dropped}" if verdict.dropped else "not kept"
    console.print(_plain_text(line, GRADE_COLOURS[verdict.grade]), Text(fate))
    marks = f", defects: {', '.join(found.defects)}" if found.defects else ""
    console.print(
        _plain_text(f"source {found.source}, stop {found.stop}, log-probabilities {found.semantics}{marks}\n")
    )
    taught = _find_target(folder, found, verdict)
    if taught is not None:
        written, aligned_target, tokenizer = taught
        if written is not found:
            console.print(_plain_text("as it is written for the student:\n"), _plain_text(written.text), "\n")
        for line in chain_view.interlinear_lines(written, aligned_target, tokenizer, console.width):
            console.print(line, no_wrap=True, crop=True)
        console.print(chain_view.kind_legend(aligned_target), "")
        console.print(chain_view.candidate_table(written, aligned_target, tokenizer))
    elif found.candidates:
        table = Table("token", "probability", "other candidates", box=None, pad_edge=False)
        for step in range(len(found.candidates)):
            table.add_row(*chain_view.teacher_cells(found, step))
        console.print(table)


def print_target(folder: Path, key: str) -> None:
    """A chain as the student is taught it: pieces by kind, with the distribution at each soft position."""
    found, verdict = _find_chain(folder, key)
    taught = _find_target(folder, found, verdict)
    if taught is None:
        what = "this chain was not kept, so it is no target" if not verdict.kept else "the chains are not aligned yet"
        raise UserError(what, where=key, hint="look at it with --chain")
    _, shown, tokenizer = taught
    table = Table("piece", "kind", "distribution", "tail", box=None, pad_edge=False)
    for position, token in enumerate(shown.ids):
        kind = shown.kind(position)
        shares = sorted(shown.distribution(position).items(), key=lambda item: -item[1])
        mass = "  ".join(f"{chain_view.student_token_text(tokenizer, i)} {p:.3f}" for i, p in shares)
        tail = f"{shown.tail(position):.3f}"
        own = chain_view.student_token_text(tokenizer, token)
        table.add_row(
            Text(own, chain_view.KIND_COLOURS[kind]), Text(kind, chain_view.KIND_COLOURS[kind]), Text(mass), tail
        )
    Console().print(table)


def print_batch(folder: Path, step: int) -> None:
    """The groups of a training step, and its first prompt in each format as the student reads it."""
    if step < 1:
        raise UserError("steps are counted from 1", where="--batch", found=step, hint="name a step such as 1")
    recipe = read_run_recipe(folder)
    student = models.from_recipe(recipe)
    lesson = examples.read_training_data(folder, recipe, student)
    table = Table("question", "format", "chains", "epoch", box=None, pad_edge=False)
    for group in lesson.groups(step):
        table.add_row(
            _plain_text(group.question),
            group.format.name,
            ", ".join(map(str, group.chains)) or "answer",
            str(group.epoch),
        )
    for row in lesson.examples(step):
        if row.format == replay_data.REPLAY_FORMAT:
            table.add_row(_plain_text(row.question), row.format, f"weight {row.weight:.3f}", "")
    console = Console()
    console.print(table)
    first = {example.format: example for example in reversed(lesson.examples(step))}
    for name, example in sorted(first.items()):
        console.print(Text(f"\n{name}", "bold"))
        console.print(_plain_text(student.tokenizer.decode(example.prompt), "dim"))
        console.print(_plain_text(student.tokenizer.decode(example.target.ids), "green"))


def print_predictions(folder: Path, question: str) -> None:
    """What every step whose evaluation is finished answered to a validation question."""
    recipe = read_run_recipe(folder)
    table = Table("step", "format", "grade", "found", "text", box=None, pad_edge=False)
    rows, example = 0, ""
    for who in checkpoint.list_answered_checkpoints(folder / "evaluate"):
        if manifest.read_finished(folder / "evaluate" / who.name) is None:
            continue
        for name in recipe.evaluate.formats:
            for answer in checkpoint.read_predictions(folder / "evaluate", who, name, recipe.evaluate.decodings[0]):
                example = example or f", such as {answer.question}"
                if answer.question == question:
                    grade = Text(answer.grade, GRADE_COLOURS[answer.grade])
                    table.add_row(who.label, name, grade, _plain_text(answer.answer or ""), _plain_text(answer.text))
                    rows += 1
    if not rows:
        raise UserError("no answer to this question", where=question, hint=f"name a validation question{example}")
    Console().print(table)


def print_summary(folder: Path) -> None:
    """The run in one table: the base, the specialized student and the controls on every test set, with paired
    intervals, and where the page is."""
    told = collect.collect_report(folder, read_run_recipe(folder))
    title = f"{told.name}: right answers on test, in percent"
    table = Table("", title=title, title_justify="left", box=None, pad_edge=False)
    for column in ("right", "against base", "95 % interval"):
        table.add_column(column, justify="right", no_wrap=True)
    found = summary.summary_rows(told)
    for group in model.SET_GROUPS:
        sets = [name for name in (found[0].sets if found else ()) if told.groups[name] == group]
        if sets:
            table.add_row(Text(group, "bold"))
        for name in sets:
            _add_group_rows(table, name, [(line, line.sets[name]) for line in found])
        if len(sets) > 1:
            _add_group_rows(table, f"mean of {len(sets)} sets", [(line, line.groups[group]) for line in found])
    console = Console()
    console.print(table)
    formats = dict.fromkeys((row.chosen.format, row.chosen.decoding) for row in told.comparisons)
    if others := [" ".join(each) for each in formats if each != summary.main_format(told)]:
        console.print(_plain_text(f"also measured, on the page: {', '.join(others)}", "dim"))
    choice = checkpoint.read_choice(folder)
    console.print(f"chosen: step {choice.checkpoint.label} ({choice.rule})", style="dim")
    over = "intervals are over the questions of one seed; they do not include the variation between seeds"
    console.print(over, style="dim", soft_wrap=True)
    console.print(_plain_text(f"page: {folder / 'report' / 'index.html'}"), soft_wrap=True)


def _add_group_rows(table: Table, name: str, cells: list[tuple[summary.SummaryRow, summary.ScoreCell]]) -> None:
    """One set, or the mean of several: a row a student."""
    table.add_row(_plain_text(f"  {name}, {cells[0][1].n} questions"))
    for line, cell in cells:
        change = cell.difference
        style = "" if change is None else "green" if change.low > 0 else "red" if change.high < 0 else ""
        table.add_row(
            _plain_text(f"    {line.shown}", "bold" if line.name == "specialized" else ""),
            model.percent_number(cell.accuracy.value),
            Text(model.format_points(change.value) if change else "", style),
            Text(f"{model.format_points(change.low)} to {model.format_points(change.high)}" if change else "", style),
        )


def export_rows(folder: Path, form: str) -> Iterator[bytes]:
    """The kept chains, one line of JSON each: chat rows for other trainers, or whole chain records."""
    recipe = read_run_recipe(folder)
    if manifest.read_finished(folder / "filter") is None:
        hint = f"run `potstill filter {folder}` first; `potstill show {folder}` shows chains before that"
        raise UserError("the chains have no verdicts yet", where=folder, hint=hint)
    asked = {q.id: q for q in run_questions.read_questions(folder, recipe.questions.train, "train")}
    for found, verdict in parquet.chains_with_verdicts(
        folder / "sample" / "chains.parquet", folder / "filter" / "verdicts.parquet"
    ):
        if verdict.kept:
            row = to_json(found) if form == "jsonl" else _chat_row(asked[found.question], found)
            yield storage.encode_json_line(row)


def _chat_row(question: Question, found: Chain) -> dict[str, Any]:
    asked = prompts.build_prompt(question.text, prompts.FORMATS["zero-shot-rationale"])
    return {"messages": [*asked.messages, {"role": "assistant", "content": found.text}]}


def _find_chain(folder: Path, key: str) -> tuple[Chain, Verdict]:
    read_run_recipe(folder)
    for found in parquet.read_stored_chains(folder / "sample", {key, key.rpartition("#")[0]}):
        if key in (f"{found.question}#{found.index}", found.question if found.index == 0 else None):
            path = folder / "filter" / "verdicts.parquet"
            if path.exists():
                return found, next(verdict for own, verdict in parquet.read_verdicts(path) if own == found.key)
            asked = _find_question(folder, found.question)
            return found, grading.grade(found.text, asked.gold, asked.task, found.stop)
    first = next(parquet.read_stored_chains(folder / "sample"), None)
    if first is None:
        raise UserError("no chain is stored yet", where=folder, hint=f"run `potstill sample {folder}`, or wait for it")
    example = f", such as {first.question}#{first.index}" if first else ""
    raise UserError("no such chain", where=key, hint=f"name a training question, or QUESTION#INDEX{example}")


def _find_target(folder: Path, found: Chain, verdict: Verdict) -> tuple[Chain, Target, tokenization.Tokenizer] | None:
    """A chain as it was written for the student, its target and the tokenizer; None if it was not kept or not yet
    aligned. Raises UserError where the targets were made from something else."""
    if not verdict.kept or manifest.read_finished(folder / "align") is None:
        return None
    recipe = read_run_recipe(folder)
    tokenizer = tokenization.load_tokenizer(models.tokenizer_folder(recipe))
    own = TargetStore(examples.targets_folder(folder, recipe), examples.target_origin(folder, recipe, tokenizer)).get(
        found
    )
    taught, _ = rewrite.prepare_chain(found, recipe.transfer.rewrite, recipe.transfer.calculator_marks)
    return taught, own, tokenizer


def _find_question(folder: Path, name: str) -> Question:
    recipe = read_run_recipe(folder)
    return next(q for q in run_questions.read_questions(folder, recipe.questions.train, "train") if q.id == name)


def _plain_text(what: object, style: str = "") -> Text:
    """Somebody else's text for a terminal: no markup is read in it, and its control characters are spelt out."""
    return Text(escape_hidden(str(what)), style)
