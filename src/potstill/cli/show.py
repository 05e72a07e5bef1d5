"""`potstill show`: prints a chain, its training target, a training batch, the answers to a question, or wrong answers.

A chain in the teacher's tokens is printed above the same chain in the student's tokens:

    W│eng   earns    $  12   every
    ▁We│ng  ▁earn│s  ▁$12    ▁every

Colours show the kinds of positions. A bar separates tokens of the same block. A block is the shortest piece of text that
ends at a token boundary of both tokenizers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, Final, cast

from rich.console import Console
from rich.table import Table
from rich.text import Text

from potstill import grading, models
from potstill.alignment import rewrite, spans
from potstill.alignment.exact_rules import encode_chain_text
from potstill.alignment.target_store import TargetStore
from potstill.cli.tables import plain_text, print_note, print_table
from potstill.data import run_questions
from potstill.errors import UserError, escape_hidden
from potstill.evaluation import checkpoint as checkpoints
from potstill.records import END, Chain, End, Question, Target, TargetKind, Verdict
from potstill.report.summary import readable_token
from potstill.run_reader import open_run
from potstill.serialization import to_json
from potstill.storage import manifest, parquet
from potstill.tokenization import Tokenizer
from potstill.training import examples

GRADE_COLOURS: Final = {"right": "green", "wrong": "red", "no answer": "yellow", "truncated": "yellow"}
KINDS: Final = {  # kind of a position -> its colour and its meaning
    "same": ("green", "one token each"),
    "merged": ("cyan", "several teacher tokens, one student token"),
    "split": ("blue", "one teacher token, several student tokens"),
    "mixed": ("magenta", "several tokens of both"),
    "hard": ("yellow", "one candidate, no teacher distribution"),
    "end": ("bright_black", "the end"),
}
MAX_CANDIDATES: Final = 5  # maximum number of candidates per row
MIN_PROBABILITY: Final = 0.0005  # the smallest probability that three decimals can show


def print_chain(run_dir: Path, key: str, *, as_json: bool = False) -> None:
    """Print a chain with its verdict, the teacher's tokens above the student's, coloured by kind, and all candidates."""
    chain, verdict = _find_chain(run_dir, key)
    question = _find_question(run_dir, chain.question)
    if as_json:
        graded = {**to_json(verdict), "kept": verdict.kept}
        _print_json({"question": to_json(question), "chain": to_json(chain), "verdict": graded})
        return
    console = Console()
    console.print(plain_text(question.text, "bold"), plain_text(f"\ngold: {question.gold}\n"))
    console.print(plain_text(chain.text))
    grade = f"\n{verdict.grade}" + (f" ({verdict.answer})" if verdict.answer else "")
    outcome = "kept" if verdict.kept else f"dropped: {verdict.dropped}" if verdict.dropped else "not kept"
    console.print(plain_text(grade, GRADE_COLOURS[verdict.grade]), Text(outcome))
    defects = f", defects: {', '.join(chain.defects)}" if chain.defects else ""
    about = f"source {chain.source}, stop {chain.stop}, log-probabilities {chain.semantics}{defects}\n"
    console.print(plain_text(about))
    aligned = _find_target(run_dir, chain, verdict)
    if aligned is not None:
        written, target, tokenizer = aligned
        if written is not chain:
            console.print(plain_text("rewritten for the student:\n"), plain_text(written.text), "\n")
        for line in interlinear_lines(written, target, tokenizer, console.width):
            console.print(line, no_wrap=True, crop=True)
        console.print(kind_legend(target), "")
        print_table(candidate_table(written, target, tokenizer))
    elif chain.candidates:
        table = _new_table("token", "probability", "other candidates")
        for step in range(len(chain.candidates)):
            table.add_row(*_teacher_cells(chain, step))
        print_table(table)


def print_target(run_dir: Path, key: str, *, as_json: bool = False) -> None:
    """Print the training target of a chain: its tokens, coloured by kind, and the distribution at each position."""
    chain, verdict = _find_chain(run_dir, key)
    aligned = _find_target(run_dir, chain, verdict)
    if aligned is None:
        what = "the chains are not aligned yet" if verdict.kept else "this chain was not kept, so it has no target"
        raise UserError(what, code="E-cli-no-target", where=key, hint="use --chain to see the chain")
    written, target, tokenizer = aligned
    ranked = [
        sorted(target.distribution(position).items(), key=lambda item: -item[1]) for position in range(len(target))
    ]
    if as_json:
        positions = [
            {
                "token": token,
                "text": _student_token(tokenizer, token),
                "kind": target.kind(position),
                "tail": target.tail(position),
                "distribution": [
                    {"token": candidate, "text": _student_token(tokenizer, candidate), "p": p}
                    for candidate, p in ranked[position]
                ],
            }
            for position, token in enumerate(target.ids)
        ]
        _print_json({"chain": f"{chain.question}#{chain.index}", "text": written.text, "positions": positions})
        return
    table = _new_table("token", "kind", "distribution", "tail")
    for position, token in enumerate(target.ids):
        colour, shares = KINDS[target.kind(position)][0], ranked[position]
        table.add_row(
            Text(_student_token(tokenizer, token), colour),
            Text(target.kind(position), colour),
            Text("  ".join(f"{_student_token(tokenizer, candidate)} {p:.3f}" for candidate, p in shares)),
            f"{target.tail(position):.3f}",
        )
    print_table(table)


def print_batch(run_dir: Path, step: int, *, as_json: bool = False) -> None:
    """Print the prompts of a training step, and the first prompt of each format as the student reads it."""
    if step < 1:
        hint = "name a step such as 1"
        raise UserError("steps are counted from 1", code="E-cli-step", where="--batch", found=step, hint=hint)
    recipe = open_run(run_dir).recipe
    student = models.from_recipe(recipe)
    training_data = examples.read_training_data(run_dir, recipe, student)
    rows = training_data.examples(step)
    first = {row.format: row for row in reversed(rows)}
    decode = student.tokenizer.decode
    if as_json:
        groups = [
            {"question": row.question, "format": row.format.name, "chains": list(row.chains), "epoch": row.epoch}
            for row in training_data.groups(step)
        ]
        replayed = [row for row in rows if row.format == examples.REPLAY_FORMAT]
        replay = [{"question": row.question, "weight": row.weight} for row in replayed]
        texts = {name: {"prompt": decode(row.prompt), "target": decode(row.target.ids)} for name, row in first.items()}
        _print_json({"step": step, "groups": groups, "replay": replay, "first_of_each_format": texts})
        return
    table = _new_table("question", "format", "chains", "epoch")
    for group in training_data.groups(step):
        chains = ", ".join(map(str, group.chains)) or "answer"
        table.add_row(plain_text(group.question), group.format.name, chains, str(group.epoch))
    for row in rows:
        if row.format == examples.REPLAY_FORMAT:
            table.add_row(plain_text(row.question), row.format, f"weight {row.weight:.3f}", "")
    console = Console()
    print_table(table)
    for name, row in sorted(first.items()):
        console.print(Text(f"\n{name}", "bold"))
        console.print(plain_text(decode(row.prompt), "dim"))
        console.print(plain_text(decode(row.target.ids), "green"))


def print_predictions(run_dir: Path, question: str, *, as_json: bool = False) -> None:
    """Print the answers of all fully evaluated checkpoints to a validation question; in a run that only evaluates, the
    answers to a test question."""
    recipe = open_run(run_dir).recipe
    folder = run_dir / ("evaluate" if recipe.has_teacher else "test")
    table = _new_table("step", "format", "grade", "answer", "text")
    example, found = "", list[dict[str, Any]]()
    for checkpoint in checkpoints.list_answered_checkpoints(folder):
        if manifest.read_finished(folder / checkpoint.name) is None:
            continue
        for format in recipe.evaluate.formats:
            for answer in checkpoints.read_predictions(folder, checkpoint, format, recipe.evaluate.decodings[0]):
                example = example or f", such as {answer.question}"
                if answer.question == question:
                    found.append({"checkpoint": checkpoint.name, "format": format, **to_json(answer)})
                    grade = Text(answer.grade, GRADE_COLOURS[answer.grade])
                    texts = (plain_text(answer.answer or ""), plain_text(answer.text))
                    table.add_row(checkpoint.label, format, grade, *texts)
    if not found:
        hint = f"name a validation question{example}"
        raise UserError("no answer to this question", code="E-cli-no-prediction", where=question, hint=hint)
    if as_json:
        _print_json({"question": question, "answers": found})
        return
    print_table(table)


def print_wrong_answers(run_dir: Path, *, as_json: bool = False) -> None:
    """Print the test questions that the selected checkpoint did not answer right, with its answers in the format of the
    selection; in a run that only evaluates, those of the model.

    Raises UserError if the run has not been tested.
    """
    run = open_run(run_dir)
    answers = {answer.question: answer for answer in run.predictions("test")}
    asked = [question for question in run.questions("test") if question.id in answers]
    wrong = [(question, answers[question.id]) for question in asked if answers[question.id].grade != "right"]
    if as_json:
        rows = [{"text": question.text, "gold": question.gold, "answer": to_json(answer)} for question, answer in wrong]
        _print_json({"questions": len(asked), "wrong": rows})
        return
    for question, answer in wrong:
        print_note(question.id, "bold")
        print_note(f"  {question.text}")
        print_note(f"  gold answer  {question.gold}")
        print_note(f"  {answer.grade:<11}  {answer.answer or 'none'}", GRADE_COLOURS[answer.grade])
        print_note(f"  text         {answer.text}\n", "dim")
    print_note(f"{len(wrong)} of {len(asked)} test questions were not answered right")


def _print_json(value: dict[str, Any]) -> None:
    print(json.dumps(value, ensure_ascii=False))


def _new_table(*columns: str) -> Table:
    return Table(*columns, box=None, pad_edge=False)


def _find_chain(run_dir: Path, key: str) -> tuple[Chain, Verdict]:
    open_run(run_dir)
    before, named = key.rpartition("#")[0], key.rsplit("#", 2)[0]
    for chain in parquet.read_stored_chains(run_dir / "sample", {key, before, named}):
        keys = {f"{chain.question}#{chain.index}", f"{chain.question}#{chain.source}#{chain.index}"}
        if key in keys or (key == chain.question and chain.index == 0):
            path = run_dir / "filter" / "verdicts.parquet"
            if path.exists():
                return chain, next(row for chain_key, row in parquet.read_verdicts(path) if chain_key == chain.key)
            question = _find_question(run_dir, chain.question)
            return chain, grading.grade_chain(chain.text, question, chain.stop, chain.defects)
    first = next(parquet.read_stored_chains(run_dir / "sample"), None)
    if first is None:
        hint = f"run `potstill sample {run_dir}`, or wait until it stores a chain"
        raise UserError("no chain is stored yet", code="E-cli-no-chains", where=run_dir, hint=hint)
    hint = f"name a training question, or QUESTION#INDEX, such as {first.question}#{first.index}"
    raise UserError("no such chain", code="E-cli-unknown-chain", where=key, hint=hint)


def _find_target(run_dir: Path, chain: Chain, verdict: Verdict) -> tuple[Chain, Target, Tokenizer] | None:
    """The chain as rewritten for the student, its target, and the student's tokenizer.

    None if the chain was not kept, or is not aligned yet. Raises UserError if the targets were made from other inputs.
    """
    if not verdict.kept or manifest.read_finished(run_dir / "align") is None:
        return None
    recipe = open_run(run_dir).recipe
    tokenizer = models.tokenizer_from_recipe(recipe)
    origin = examples.target_origin(run_dir, recipe, tokenizer)
    target = TargetStore(examples.targets_folder(run_dir, recipe), origin).get(chain)
    written, _ = rewrite.prepare_chain(chain, recipe.transfer.rewrite, recipe.transfer.calculator_marks)
    return written, target, tokenizer


def _find_question(run_dir: Path, question_id: str) -> Question:
    sets = open_run(run_dir).recipe.questions.train
    return next(q for q in run_questions.read_questions(run_dir, sets, "train") if q.id == question_id)


# A chain in two tokenizations


@dataclass(frozen=True, slots=True)
class AlignedBlock:
    """A block of aligned tokens. The last step (the end) and the end token form a separate block.

    steps      positions of the teacher's tokens in the chain
    positions  positions of the student's tokens in the target
    """

    steps: range
    positions: range
    kind: TargetKind


def aligned_blocks(chain: Chain, target: Target, tokenizer: Tokenizer) -> list[AlignedBlock]:
    """The blocks of a chain and its target, in order. Every step and every position is in exactly one block."""
    _, offsets = encode_chain_text(chain, tokenizer.encoder)
    blocks = []
    for span in spans(chain.spans, offsets):
        kinds: set[TargetKind] = {target.kind(position) for position in span.student}
        kind = kinds.pop() if len(kinds) == 1 else cast(TargetKind, span.kind)
        blocks.append(AlignedBlock(span.teacher, span.student, kind))
    steps = range(len(chain.tokens), max(len(chain.tokens), len(chain.candidates)))
    positions = range(len(offsets), len(target))
    return [*blocks, AlignedBlock(steps, positions, "end")] if len(steps) or len(positions) else blocks


def interlinear_lines(chain: Chain, target: Target, tokenizer: Tokenizer, width: int) -> Iterator[Text]:
    """Pairs of lines, the teacher's tokens above the student's, with an empty line after each pair."""
    above, below = Text(), Text()
    for block in aligned_blocks(chain, target, tokenizer):
        teacher = Text("│".join(_token_text(_drawn_token(chain, step)) for step in block.steps), KINDS[block.kind][0])
        student = Text("│").join(
            Text(_student_token(tokenizer, target.ids[position]), KINDS[target.kind(position)][0])
            for position in block.positions
        )
        columns = max(teacher.cell_len, student.cell_len)
        if above.cell_len and above.cell_len + columns > width:
            yield from (above, below, Text())
            above, below = Text(), Text()
        above.append_text(teacher).append(" " * (columns - teacher.cell_len + 2))
        below.append_text(student).append(" " * (columns - student.cell_len + 2))
    if above.cell_len:
        yield from (above, below, Text())


def kind_legend(target: Target) -> Text:
    """The kinds of positions in a target, in their colours, with the number of positions per kind."""
    parts = [
        Text(f"{kind} {target.kinds.count(kind)}", colour).append(f" ({meaning})", "dim")
        for kind, (colour, meaning) in KINDS.items()
        if kind in target.kinds
    ]
    return Text("   ").join(parts)


def candidate_table(chain: Chain, target: Target, tokenizer: Tokenizer) -> Table:
    """A table of all blocks with the teacher's candidates and the student's target distributions."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("teacher", "p", "others", "student", "kind"):
        table.add_column(name, justify="right" if name == "p" else "left", no_wrap=name != "others")
    table.add_column("target", ratio=1)
    table.add_column("tail", justify="right", no_wrap=True)
    for block in aligned_blocks(chain, target, tokenizer):
        steps = [_teacher_cells(chain, step) for step in block.steps]
        positions = [_student_cells(target, tokenizer, position) for position in block.positions]
        for step, position in zip_longest(steps, positions):
            table.add_row(*(step or (Text(), "", Text())), *(position or (Text(), Text(), Text(), "")))
    return table


def _teacher_cells(chain: Chain, step: int) -> tuple[Text, str, Text]:
    """The cells of a teacher's step: its token, its probability if known, and the other candidates."""
    drawn = _drawn_token(chain, step)
    probabilities = (
        {token: math.exp(log) for token, log in chain.candidates[step]} if step < len(chain.candidates) else {}
    )
    p = probabilities.pop(drawn, None)
    likely = sorted(probabilities.items(), key=lambda other: -other[1])[:MAX_CANDIDATES]
    others = "  ".join(f"{_token_text(token)} {share:.3f}" for token, share in likely if share >= MIN_PROBABILITY)
    colour = "" if p is None else "green" if p > 0.9 else "yellow" if p > 0.5 else "red"
    return Text(_token_text(drawn), colour), "" if p is None else f"{p:.3f}", Text(others, "dim")


def _student_cells(target: Target, tokenizer: Tokenizer, position: int) -> tuple[Text, Text, Text, str]:
    """The cells of a student's position: its token, its kind, the target distribution, and the tail."""
    kind, distribution, tail = target.kind(position), target.distribution(position), target.tail(position)
    shares = sorted(((p, token) for token, p in distribution.items() if p >= MIN_PROBABILITY), reverse=True)
    texts = "  ".join(f"{_student_token(tokenizer, token)} {p:.3f}" for p, token in shares[: MAX_CANDIDATES + 1])
    return (
        Text(_student_token(tokenizer, target.ids[position]), KINDS[kind][0]),
        Text(kind, KINDS[kind][0]),
        Text("" if len(distribution) == 1 and not tail else texts),
        f"{tail:.3f}" if tail else "",
    )


def _student_token(tokenizer: Tokenizer, token: int) -> str:
    """The text of a student's token in a table: its bytes, or its name if it has no bytes."""
    data = tokenizer.token_bytes(token)
    names = (name for name, special in tokenizer.vocabulary.specials.items() if special == token)
    return _token_text(data) if data else next(names, "∅")


def _token_text(token: bytes | End) -> str:
    """The text of a token in a table, with visible spaces and line ends."""
    return "END" if token is END else escape_hidden(readable_token(token))


def _drawn_token(chain: Chain, step: int) -> bytes | End:
    return chain.tokens[step] if step < len(chain.tokens) else END
