"""What `status`, `show` and `export` print: the state of a run, its records, and chains for other trainers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from potstill import grading, models, prompts, storage, tokenization
from potstill.alignment import rewrite
from potstill.alignment.target_store import TargetStore
from potstill.cli import chain_view
from potstill.cli.run_folder import read_run_recipe
from potstill.data import run_questions
from potstill.errors import UserError, escape_hidden
from potstill.evaluation import checkpoint as checkpoints
from potstill.records import BASE, Chain, Question, Score, Target, Verdict
from potstill.report import collect, summary
from potstill.report.formatting import format_points, percent_number
from potstill.report.model import SET_GROUPS
from potstill.serialization import to_json
from potstill.stages import STAGES, recipe_stages
from potstill.storage import ledger, manifest, parquet, segments
from potstill.training import examples, replay_data

GRADE_COLOURS = {"right": "green", "wrong": "red", "no answer": "yellow", "truncated": "yellow"}


def print_status(run_dir: Path) -> None:
    """A table of the stages: done, begun or neither, and what each counted."""
    names = recipe_stages(read_run_recipe(run_dir))
    table = _new_table("stage", "state", "counts", title=_plain_text(run_dir))
    for stage in names if len(names) > len(STAGES) else STAGES:
        table.add_row(stage, *_stage_state(run_dir / stage))
    Console().print(table)


def _stage_state(folder: Path) -> tuple[Text, Text]:
    """The state of a stage in one word, and its counts or its fault."""
    try:
        done, begun = manifest.read_finished(folder), manifest.read_begun(folder)
    except UserError as error:
        return Text("broken", "red"), _plain_text(error)
    if done:
        return Text("done", "green"), _plain_text(json.dumps(done.counts, ensure_ascii=False)[1:-1])
    return (Text("begun", "yellow") if begun else Text("-", "dim")), _plain_text(
        _partial_counts(folder) if begun else ""
    )


def _partial_counts(folder: Path) -> str:
    """What an unfinished stage has so far: the chains of sampling."""
    if folder.name != "sample":
        return ""
    chains = len(segments.stored_keys(segments.segment_paths(folder)))
    usage = ledger.describe_usage(folder.parent) if any(ledger.ledger_paths(folder.parent)) else ""
    return f'"chains": {chains}' + (f", {usage}" if usage else "")


def print_overview(run_dir: Path) -> None:
    """The state of the run, and options to look at its records."""
    print_status(run_dir)
    first = next(parquet.read_stored_chains(run_dir / "sample"), None)
    if first is not None:
        key = f"{first.question}#{first.index}"
        Console().print(_plain_text(f"\nRecords: potstill show {run_dir} --chain {key}, --target {key}, --batch 1"))


def print_chain(run_dir: Path, key: str) -> None:
    """A chain with its verdict: the teacher's tokens above the student's, colored by kind, and the candidates of each."""
    chain, verdict = _find_chain(run_dir, key)
    question = _find_question(run_dir, chain.question)
    console = Console()
    console.print(_plain_text(question.text, "bold"), _plain_text(f"\ngold: {question.gold}\n"))
    console.print(_plain_text(chain.text))
    grade = f"\n{verdict.grade}" + (f" ({verdict.answer})" if verdict.answer else "")
    fate = "kept" if verdict.kept else f"dropped: {verdict.dropped}" if verdict.dropped else "not kept"
    console.print(_plain_text(grade, GRADE_COLOURS[verdict.grade]), Text(fate))
    defects = f", defects: {', '.join(chain.defects)}" if chain.defects else ""
    about = f"source {chain.source}, stop {chain.stop}, log-probabilities {chain.semantics}{defects}\n"
    console.print(_plain_text(about))
    aligned = _find_target(run_dir, chain, verdict)
    if aligned is not None:
        written, target, tokenizer = aligned
        if written is not chain:
            console.print(_plain_text("rewritten for the student:\n"), _plain_text(written.text), "\n")
        for line in chain_view.interlinear_lines(written, target, tokenizer, console.width):
            console.print(line, no_wrap=True, crop=True)
        console.print(chain_view.kind_legend(target), "")
        console.print(chain_view.candidate_table(written, target, tokenizer))
    elif chain.candidates:
        table = Table("token", "probability", "other candidates", box=None, pad_edge=False)
        for step in range(len(chain.candidates)):
            table.add_row(*chain_view.teacher_cells(chain, step))
        console.print(table)


def print_target(run_dir: Path, key: str) -> None:
    """The training target of a chain: its tokens by kind, with the distribution at each position."""
    chain, verdict = _find_chain(run_dir, key)
    aligned = _find_target(run_dir, chain, verdict)
    if aligned is None:
        what = "the chains are not aligned yet" if verdict.kept else "this chain was not kept, so it has no target"
        raise UserError(what, code="E-cli-no-target", where=key, hint="use --chain to see the chain")
    _, target, tokenizer = aligned
    table = Table("token", "kind", "distribution", "tail", box=None, pad_edge=False)
    for position, token in enumerate(target.ids):
        colour = chain_view.KIND_COLOURS[target.kind(position)]
        shares = sorted(target.distribution(position).items(), key=lambda item: -item[1])
        table.add_row(
            Text(chain_view.student_token_text(tokenizer, token), colour),
            Text(target.kind(position), colour),
            Text("  ".join(f"{chain_view.student_token_text(tokenizer, i)} {p:.3f}" for i, p in shares)),
            f"{target.tail(position):.3f}",
        )
    Console().print(table)


def print_batch(run_dir: Path, step: int) -> None:
    """The prompts of a training step, and the first one in each format as the student reads it."""
    if step < 1:
        raise UserError(
            "steps are counted from 1", code="E-cli-step", where="--batch", found=step, hint="name a step such as 1"
        )
    recipe = read_run_recipe(run_dir)
    student = models.from_recipe(recipe)
    training_data = examples.read_training_data(run_dir, recipe, student)
    rows = training_data.examples(step)
    table = Table("question", "format", "chains", "epoch", box=None, pad_edge=False)
    for group in training_data.groups(step):
        chains = ", ".join(map(str, group.chains)) or "answer"
        table.add_row(_plain_text(group.question), group.format.name, chains, str(group.epoch))
    for row in rows:
        if row.format == replay_data.REPLAY_FORMAT:
            table.add_row(_plain_text(row.question), row.format, f"weight {row.weight:.3f}", "")
    console = Console()
    console.print(table)
    first = {row.format: row for row in reversed(rows)}
    for name, row in sorted(first.items()):
        console.print(Text(f"\n{name}", "bold"))
        console.print(_plain_text(student.tokenizer.decode(row.prompt), "dim"))
        console.print(_plain_text(student.tokenizer.decode(row.target.ids), "green"))


def print_predictions(run_dir: Path, question: str) -> None:
    """What every fully evaluated checkpoint answered to a validation question."""
    recipe = read_run_recipe(run_dir)
    table = Table("step", "format", "grade", "answer", "text", box=None, pad_edge=False)
    example = ""
    for checkpoint in checkpoints.list_answered_checkpoints(run_dir / "evaluate"):
        if manifest.read_finished(run_dir / "evaluate" / checkpoint.name) is None:
            continue
        for name in recipe.evaluate.formats:
            decoding = recipe.evaluate.decodings[0]
            for answer in checkpoints.read_predictions(run_dir / "evaluate", checkpoint, name, decoding):
                example = example or f", such as {answer.question}"
                if answer.question == question:
                    grade = Text(answer.grade, GRADE_COLOURS[answer.grade])
                    texts = (_plain_text(answer.answer or ""), _plain_text(answer.text))
                    table.add_row(checkpoint.label, name, grade, *texts)
    if not table.row_count:
        hint = f"name a validation question{example}"
        raise UserError("no answer to this question", code="E-cli-no-prediction", where=question, hint=hint)
    Console().print(table)


def print_summary(run_dir: Path) -> None:
    """The run in one table: the base, the specialized student and the controls on every test set, with paired
    intervals, and the path of the page."""
    data = collect.collect_report(run_dir, read_run_recipe(run_dir))
    table = _new_table("", title=f"{data.name}: right answers on test, in percent")
    for column in ("right", "against base", "95 % interval"):
        table.add_column(column, justify="right", no_wrap=True)
    students = summary.summary_rows(data)
    for group in SET_GROUPS:
        sets = [name for name in (students[0].sets if students else ()) if data.groups[name] == group]
        if sets:
            table.add_row(Text(group, "bold"))
        for name in sets:
            _add_students(table, name, [(row, row.sets[name]) for row in students])
        if len(sets) > 1:
            _add_students(table, f"mean of {len(sets)} sets", [(row, row.groups[group]) for row in students])
    console = Console()
    console.print(table)
    formats = dict.fromkeys((row.chosen.format, row.chosen.decoding) for row in data.comparisons)
    if others := [" ".join(pair) for pair in formats if pair != summary.main_format(data)]:
        console.print(_plain_text(f"also evaluated, see the page: {', '.join(others)}", "dim"))
    assert data.choice is not None, "the report comes after select"
    console.print(f"chosen: step {data.choice.checkpoint.label} ({data.choice.rule})", style="dim")
    note = "intervals are over the questions of one seed; they do not include the variation between seeds"
    console.print(note, style="dim", soft_wrap=True)
    console.print(_plain_text(f"page: {run_dir / 'report' / 'index.html'}"), soft_wrap=True)


def _add_students(table: Table, name: str, cells: list[tuple[summary.SummaryRow, summary.ScoreCell]]) -> None:
    """One set, or the mean of several: a row per student."""
    table.add_row(_plain_text(f"  {name}, {cells[0][1].n} questions"))
    for row, cell in cells:
        change = cell.difference
        style = "" if change is None else "green" if change.low > 0 else "red" if change.high < 0 else ""
        table.add_row(
            _plain_text(f"    {row.title}", "bold" if row.name == "specialized" else ""),
            percent_number(cell.accuracy.value),
            Text(format_points(change.value) if change else "", style),
            Text(f"{format_points(change.low)} to {format_points(change.high)}" if change else "", style),
        )


def print_scores(run_dir: Path) -> None:
    """The scores of a run that only evaluates: every set and format in percent, and the path of the answers."""
    title = f"{run_dir.name}: answers on test, in percent"
    table = _new_table("set", "n", "right", "95 % interval", "wrong", "no answer", "truncated", title=title)
    for column in table.columns[1:]:
        column.justify = "right"
    heading = None
    for score in checkpoints.read_scores(run_dir / "test", BASE):
        if (score.format, score.decoding) != heading:
            heading = score.format, score.decoding
            table.add_row(Text(" ".join(heading), "bold"))
        wrong = score.n - score.right - score.no_answer - score.truncated
        shares = [percent_number(count / score.n) for count in (wrong, score.no_answer, score.truncated)]
        table.add_row(f"  {score.set}", str(score.n), *_format_accuracy(score.accuracy, score.low, score.high), *shares)
        _add_task_rows(table, score)
    console = Console()
    console.print(table)
    console.print(_plain_text(f"answers: {run_dir / 'test' / '0'}"), soft_wrap=True)


def _add_task_rows(table: Table, score: Score) -> None:
    """A set of several tasks: both means, with intervals over other tasks of its kind."""
    if score.macro is None:
        return
    rows = (
        ("over tasks", score.accuracy, score.tasks_low, score.tasks_high),
        ("mean over tasks", score.macro, score.macro_low, score.macro_high),
    )
    for label, value, low, high in rows:
        assert low is not None and high is not None, "a set of several tasks has these bounds"
        table.add_row(f"    {label}", "", *_format_accuracy(value, low, high), "", "", "")


def _format_accuracy(value: float, low: float, high: float) -> tuple[str, str]:
    return percent_number(value), f"{percent_number(low)} to {percent_number(high)}"


def export_rows(run_dir: Path, form: str) -> Iterator[bytes]:
    """The kept chains, one line of JSON each: `messages` for chat rows, `jsonl` for whole chain records."""
    recipe = read_run_recipe(run_dir)
    if manifest.read_finished(run_dir / "filter") is None:
        raise UserError(
            "the chains have no verdicts yet",
            code="E-cli-no-verdicts",
            where=run_dir,
            hint=f"run `potstill filter {run_dir}` first; `potstill show {run_dir}` shows chains without verdicts",
        )
    questions = {q.id: q for q in run_questions.read_questions(run_dir, recipe.questions.train, "train")}
    for chain, verdict in parquet.chains_with_verdicts(
        run_dir / "sample" / "chains.parquet", run_dir / "filter" / "verdicts.parquet"
    ):
        if verdict.kept:
            row = to_json(chain) if form == "jsonl" else _chat_row(questions[chain.question], chain)
            yield storage.encode_json_line(row)


def _chat_row(question: Question, chain: Chain) -> dict[str, Any]:
    prompt = prompts.build_prompt(question.text, prompts.FORMATS["zero-shot-rationale"])
    return {"messages": [*prompt.messages, {"role": "assistant", "content": chain.text}]}


def _find_chain(run_dir: Path, key: str) -> tuple[Chain, Verdict]:
    read_run_recipe(run_dir)
    for chain in parquet.read_stored_chains(run_dir / "sample", {key, key.rpartition("#")[0]}):
        if key in (f"{chain.question}#{chain.index}", chain.question if chain.index == 0 else None):
            path = run_dir / "filter" / "verdicts.parquet"
            if path.exists():
                return chain, next(verdict for own, verdict in parquet.read_verdicts(path) if own == chain.key)
            question = _find_question(run_dir, chain.question)
            return chain, grading.grade(chain.text, question.gold, question.task, chain.stop)
    first = next(parquet.read_stored_chains(run_dir / "sample"), None)
    if first is None:
        hint = f"run `potstill sample {run_dir}`, or wait for it"
        raise UserError("no chain is stored yet", code="E-cli-no-chains", where=run_dir, hint=hint)
    hint = f"name a training question, or QUESTION#INDEX, such as {first.question}#{first.index}"
    raise UserError("no such chain", code="E-cli-unknown-chain", where=key, hint=hint)


def _find_target(run_dir: Path, chain: Chain, verdict: Verdict) -> tuple[Chain, Target, tokenization.Tokenizer] | None:
    """A chain as it was rewritten for the student, its target and the student's tokenizer; None if the chain was not
    kept or is not aligned yet. Raises UserError if the targets were made from something else."""
    if not verdict.kept or manifest.read_finished(run_dir / "align") is None:
        return None
    recipe = read_run_recipe(run_dir)
    tokenizer = tokenization.load_tokenizer(models.tokenizer_folder(recipe))
    origin = examples.target_origin(run_dir, recipe, tokenizer)
    target = TargetStore(examples.targets_folder(run_dir, recipe), origin).get(chain)
    written, _ = rewrite.prepare_chain(chain, recipe.transfer.rewrite, recipe.transfer.calculator_marks)
    return written, target, tokenizer


def _find_question(run_dir: Path, question_id: str) -> Question:
    sets = read_run_recipe(run_dir).questions.train
    return next(q for q in run_questions.read_questions(run_dir, sets, "train") if q.id == question_id)


def _new_table(*columns: str, title: str | Text) -> Table:
    return Table(*columns, title=_plain_text(title), title_justify="left", box=None, pad_edge=False)


def _plain_text(value: object, style: str = "") -> Text:
    """A foreign text for a terminal: its markup is not interpreted, its control characters are escaped."""
    return Text(escape_hidden(str(value)), style)
