"""`potstill export RUN --as preference`: pairs of a right and a wrong chain of a question, for TRL's DPOTrainer.

    pairs.jsonl    one pair per line: `prompt`, `chosen`, `rejected`
    export.json    counts and the parity figures

The prompt is the one on which the student was trained. For a student with a chat template, prompt and chains are messages,
which TRL renders with the template; for other students, they are texts, to which TRL adds the end token.

A chosen chain is a chain that the filter kept. A rejected chain has a wrong answer. Chains without an answer and truncated
chains are not used, because they would teach the format, not the reasoning. Chains that the filter dropped for other
reasons than their answers are not used, either. The run's seed and the question determine the order in which chains are
paired. No chain is in two pairs.

    >>> choose_pairs(["right a", "right b"], ["wrong a", "wrong b", "wrong c"], seed=3, question="m/1", most=2)
    [('right a', 'wrong a'), ('right b', 'wrong b')]
"""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from potstill import storage
from potstill.data import run_questions
from potstill.errors import UserError
from potstill.export.parity import not_equal
from potstill.export.source import ExportedRun, new_folder
from potstill.grading import grade
from potstill.records import Prompt, Question
from potstill.run_reader import open_run

if TYPE_CHECKING:
    from potstill.models import Student

PAIRS_FILE: Final = "pairs.jsonl"


def choose_pairs(
    right: Sequence[str], wrong: Sequence[str], *, seed: int, question: str, most: int
) -> list[tuple[str, str]]:
    """At most `most` pairs of a right and a wrong text of a question."""

    def shuffled(texts: Sequence[str]) -> list[str]:
        distinct = sorted(set(texts))
        return sorted(distinct, key=lambda text: hashlib.sha256(f"{seed}/{question}/{text}".encode()).digest())

    return list(itertools.islice(zip(shuffled(right), shuffled(wrong), strict=False), most))


def export_preferences(run: ExportedRun, folder: Path, most: int) -> list[str]:
    """Write the folder. Returns sentences with counts and parity figures.

    most  maximum number of pairs per question

    Raises UserError if no question has a right and a wrong chain.
    """
    student = run.open_student()
    sets = run.recipe.questions.train
    questions = {question.id: question for question in run_questions.read_questions(run.run_dir, sets, "train")}
    right: dict[str, list[str]] = {name: [] for name in questions}
    wrong: dict[str, list[str]] = {name: [] for name in questions}
    verdicts: Counter[str] = Counter()
    for chain, verdict in open_run(run.run_dir).chains():
        verdicts["kept" if verdict.kept else verdict.dropped or verdict.grade] += 1
        if verdict.kept:
            right[chain.question].append(chain.text)
        elif verdict.grade == "wrong" and verdict.dropped is None and chain.question in questions:
            wrong[chain.question].append(chain.text)
    rows, pairs = [], []
    for name, question in questions.items():
        for chosen, rejected in choose_pairs(right[name], wrong[name], seed=run.recipe.seed, question=name, most=most):
            rows.append(_row(run, student, question, chosen, rejected))
            pairs.append((question, chosen, rejected))
    if not rows:
        raise UserError(
            "no question has both a right and a wrong chain",
            code="E-export-no-pairs",
            where="--as preference",
            found=", ".join(f"{count} {name}" for name, count in sorted(verdicts.items())),
            hint="sample several chains per question at a temperature above 0 (teacher.samples, teacher.temperature)",
        )
    with new_folder(folder, "preference", run.run_dir) as (partial, about):
        storage.write_jsonl(partial / PAIRS_FILE, rows)
        read = [row for _, row in storage.read_jsonl(partial / PAIRS_FILE)]
        _check_pairs(run, student, read, pairs)
        in_pairs = len({question.id for question, _, _ in pairs})
        counts = {"questions": len(questions), "questions_in_pairs": in_pairs, "pairs": len(rows)}
        sentences = [
            f"{len(rows)} pairs of {in_pairs} of {len(questions)} training questions",
            f"prompts: {len(rows)} of {len(rows)} equal the trained prompt byte by byte",
            f"verdicts: {len(rows)} of {len(rows)} chosen chains graded right, {len(rows)} of {len(rows)} rejected wrong",
        ]
        about |= {
            "seed": run.recipe.seed,
            "most_pairs_per_question": most,
            "chains": dict(sorted(verdicts.items())),
            "parity": {**counts, "sentences": sentences},
        }
    return sentences


def _row(run: ExportedRun, student: Student, question: Question, chosen: str, rejected: str) -> dict[str, Any]:
    prompt = run.prompt_of(question)
    if student.chat is None:
        return {"prompt": student.render(prompt), "chosen": chosen, "rejected": rejected}
    replies = ([{"role": "assistant", "content": text}] for text in (chosen, rejected))
    messages = Prompt((*student.chat.system, *prompt.turns)).messages
    row = {"prompt": messages, **dict(zip(("chosen", "rejected"), replies, strict=True))}
    kwargs = dict(student.chat.settings.kwargs)
    return row | ({"chat_template_kwargs": kwargs} if kwargs else {})  # the name that TRL reads


def _check_pairs(
    run: ExportedRun, student: Student, rows: Sequence[dict[str, Any]], pairs: Sequence[tuple[Question, str, str]]
) -> None:
    """Raise UserError if a written row is not the trained prompt with a right and a wrong chain."""
    for row, (question, _, _) in zip(rows, pairs, strict=True):
        texts = list(_texts(row))
        trained = student.render(run.prompt_of(question))
        if student.chat is None:
            written = row["prompt"]
        else:
            written = student.chat.tokenizer.apply_chat_template(
                row["prompt"],
                chat_template=student.chat.source,
                tokenize=False,
                add_generation_prompt=True,
                **row.get("chat_template_kwargs", {}),
            )
        verdicts = [grade(text, question.gold, question.task).grade for text in texts]
        if written != trained or verdicts != ["right", "wrong"]:
            raise not_equal("a written pair differs from the chosen pair", f"{question.id}: {verdicts}")


def _texts(row: dict[str, Any]) -> Iterator[str]:
    for name in ("chosen", "rejected"):
        yield row[name] if isinstance(row[name], str) else row[name][0]["content"]
