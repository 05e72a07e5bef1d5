"""`potstill grade`: grades the answers of any tool, one row each, in the order of the file.

A row has `text` and `gold`, and optionally `task` and how its text ended, under one of `STOP_FIELDS`. A sample that
lm-evaluation-harness logged is converted to such a row. A gold answer may be a text, a number, true or false, or a whole
solution, as in a custom set (`data.custom_set`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from potstill import grading, progress, storage
from potstill.cli import lm_eval
from potstill.data import custom_set
from potstill.errors import UserError
from potstill.records import StopReason, Verdict
from potstill.storage import dataset_files

# How tools name it: potstill; OpenAI and vLLM; Anthropic; Gemini; Ollama; llama.cpp.
STOP_FIELDS: Final = ("stop", "finish_reason", "stop_reason", "finishReason", "done_reason", "stop_type")
STOP_WORDS: Final[dict[str, StopReason]] = {"end": "end", "cut": "cut", "length": "length"}


def grade_file(path: Path, out: Path, task: str | None = None) -> None:
    """Reads rows with `text`, `gold`, optional `task` and `stop`; writes them to `out` with `verdict` and `found`.

    task  of the rows that have none; only here may it be a function

    Raises UserError naming the line for a row without text or gold, or with an unknown stop reason; then nothing is
    written.
    """
    if task is not None:
        grading.check_task(task)
    rows, filters = lm_eval.deduplicate_filters(list(_read_rows(path)))
    with progress.bar("grade", len(rows), "rows") as advance:
        graded = [_grade_row(where, row, task, advance) for where, row in rows]
    storage.write_jsonl(out, graded)
    if len(filters) > 1:
        progress.print_line(
            f"the file has each document once per filter, with the same responses ({len(filters)} filters:"
            f" {', '.join(filters)}); each document is graded once, by its whole response"
        )
    progress.print_line(f"{len(graded)} rows: {_count_verdicts(graded)}")


def _read_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(position, row) of every row. Raises UserError for a row that JSON cannot represent, such as one with NaN."""
    if dataset_files.is_plain_jsonl(path) and not path.name.endswith((".csv", ".tsv", ".json")):
        yield from ((f"{path} line {number}", row) for number, row in storage.read_jsonl(path))
        return
    for _, position, row in dataset_files.read_dataset_rows(path):
        try:
            json.dumps(row, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise UserError(
                "JSON cannot represent this row",
                code="E-grade-row-json",
                where=f"{path} {position}",
                found=error,
                hint="remove the field, or write it as text",
            ) from None
        yield f"{path} {position}", row


def _grade_row(where: str, row: Mapping[str, Any], task: str | None, advance: progress.Advance) -> dict[str, Any]:
    answer = lm_eval.sample_to_row(row, where) if lm_eval.is_logged_sample(row) else row
    text, row_task = answer.get("text"), answer.get("task")
    fields = f"the fields {', '.join(answer)}"
    if not isinstance(text, str):
        found = repr(text) if "text" in answer else fields
        raise UserError(
            "text must be text", code="E-grade-text", where=where, found=found, hint='write {"text": "..."}'
        )
    if answer.get("gold") is None:
        found = "null" if "gold" in answer else fields
        raise UserError(
            "gold must be an answer", code="E-grade-gold", where=where, found=found, hint='write {"gold": "..."}'
        )
    if row_task is not None and not isinstance(row_task, str):
        raise UserError(
            "task must be text",
            code="E-grade-task",
            where=where,
            found=repr(row_task),
            hint="correct or remove `task`",
        )
    if row_task and grading.parse_function_name(row_task) is not None:
        raise UserError(
            "a row cannot name a function to run",
            code="E-grade-row-function",
            where=where,
            found=row_task,
            hint="remove `task` from the rows, and name the function with --task",
        )
    try:
        verdict = _grade_answer(text, answer["gold"], row_task or task, _read_stop(answer, where), where)
    except UserError as error:
        raise UserError(error.what, code=error.code, where=where, found=error.found, hint=error.hint) from None
    advance()
    return {**row, "verdict": verdict.grade, "found": verdict.answer}


def _grade_answer(text: str, gold: Any, task: str | None, stop: StopReason | None, where: str) -> Verdict:
    """The verdict of a text. A gold of true or false is tried in the words yes/no, true/false and valid/invalid."""
    answer_type = _answer_type(task)
    if isinstance(gold, bool) and answer_type in (None, "boolean"):
        words = ("yes", "true", "valid") if gold else ("no", "false", "invalid")
        verdicts = [grading.grade(text, word, task, stop) for word in words]
        return next((verdict for verdict in verdicts if verdict.grade in ("right", "wrong")), verdicts[0])
    gold_text = custom_set.read_gold(gold, where, name="gold", answer_type=answer_type).text
    return grading.grade(text, gold_text, task, stop)


def _answer_type(task: str | None) -> str | None:
    if task is None:
        return None
    known = grading.BBH_ANSWER_TYPES.get(task)
    return "function" if grading.parse_function_name(task) is not None else known or task.rpartition("/")[2]


def _read_stop(row: Mapping[str, Any], where: str) -> StopReason | None:
    """How the text ended; None if the row does not say. Raises UserError for an unknown word: a truncated text must not
    be graded as a whole one."""
    from potstill.teachers.openai_api import chain_reader  # only rows with a stop reason need it

    words = {name: row[name] for name in STOP_FIELDS if row.get(name) not in (None, "")}
    if "finish_reason" in words:
        words.pop("stop_reason", None)  # vLLM's: which string or token ended the text
    if len(words) > 1 and not isinstance(words.get("stop"), str):
        words.pop("stop", None)  # the requested stop strings, as a list; llama.cpp writes true
    if "truncated" in row and isinstance(row["truncated"], bool) and not words:
        return "length" if row["truncated"] else "end"
    stops = set[StopReason]()
    for name, word in words.items():
        if not isinstance(word, str):
            raise UserError(
                f"{name} must be text",
                code="E-grade-stop-type",
                where=where,
                found=repr(word),
                hint=f"correct or remove `{name}`",
            )
        kind = STOP_WORDS.get(word) or chain_reader.read_finish_reason(word)
        if kind == "unknown":
            raise UserError(
                f"{name} is not a known stop reason",
                code="E-grade-stop-unknown",
                where=where,
                found=repr(word),
                hint=f"write {', '.join(STOP_WORDS)}, or remove `{name}`",
            )
        if kind != "unsaid":
            stops.add(STOP_WORDS.get(kind, "end" if kind == "string" else "length"))
    return "length" if "length" in stops else next(iter(stops), None)


def _count_verdicts(graded: list[dict[str, Any]]) -> str:
    verdicts = [row["verdict"] for row in graded]
    return ", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in dict.fromkeys(verdicts)) or "nothing"
