"""`potstill grade`: answers of any tool, one row a line, graded in the order of the file.

A row has `text`, `gold`, optional `task` and how its text ended, under any of `ENDS`; a sample that
lm-evaluation-harness logged is read as such a row. A gold answer may be text, a number, true or false, or a whole
solution, as in a set of your own (`questions.golds`).
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

# Names under which tools say how a text ended: ours, OpenAI's and vLLM's, Anthropic's, Gemini's, Ollama's, llama.cpp's.
STOP_FIELDS: Final = ("stop", "finish_reason", "stop_reason", "finishReason", "done_reason", "stop_type")
STOP_WORDS: Final[dict[str, StopReason]] = {"end": "end", "cut": "cut", "length": "length"}


def grade_file(path: Path, out: Path, task: str | None = None) -> None:
    """Read rows with `text`, `gold`, optional `task` and `stop`; write them to `out` with `verdict` and `found`.

    task  for the rows that name none; only here may it be a function
    Raises UserError naming the line for a row without text or gold, and for one that ended in an unknown way; then
    nothing is written.
    """
    if task is not None:
        grading.check_task(task)
    rows = list(_read_rows(path))
    samples, filters = lm_eval.deduplicate_filters(rows)
    with progress.bar("grade", len(samples), "rows") as tick:
        graded = [_grade_row(where, row, task, tick) for where, row in samples]
    storage.write_jsonl(out, graded)
    if len(filters) > 1:
        progress.print_line(
            f"the samples stand there once for each of {len(filters)} filters ({', '.join(filters)}), with the same"
            " responses; each document is graded once, by its whole response"
        )
    progress.print_line(f"{len(graded)} rows: {_count_verdicts(graded)}")


def _read_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Place and row of every record; a line of JSON may not hold NaN, which no line could hold again."""
    if dataset_files.is_plain_jsonl(path) and not path.name.endswith((".csv", ".tsv", ".json")):
        yield from ((f"{path} line {number}", row) for number, row in storage.read_jsonl(path))
        return
    for _, place, row in dataset_files.read_dataset_rows(path):
        try:
            json.dumps(row, allow_nan=False)
        except (TypeError, ValueError) as fault:
            hint = "take the field out, or write it as text"
            raise UserError("a row that JSON cannot hold", where=f"{path} {place}", found=fault, hint=hint) from None
        yield f"{path} {place}", row


def _grade_row(where: str, row: Mapping[str, Any], task: str | None, tick: progress.Advance) -> dict[str, Any]:
    own, row = row, lm_eval.sample_to_row(row, where) if lm_eval.is_logged_sample(row) else row
    text, stated = row.get("text"), row.get("task")
    if not isinstance(text, str):
        found = repr(text) if "text" in row else f"the fields {', '.join(row)}"
        raise UserError("text must be text", where=where, found=found, hint='write {"text": "..."}')
    if row.get("gold") is None:
        found = "null" if "gold" in row else f"the fields {', '.join(row)}"
        raise UserError("gold must be an answer", where=where, found=found, hint='write {"gold": "..."}')
    if stated is not None and not isinstance(stated, str):
        raise UserError("task must be text", where=where, found=repr(stated), hint="correct or leave out task")
    try:
        if stated and grading.parse_function_name(stated) is not None:
            hint = "leave `task` out of the rows, and say --task, which is yours"
            raise UserError("a row cannot name a function to run", found=stated, hint=hint)
        verdict = _grade_answer(text, row["gold"], stated or task, _read_stop(row, where), where)
    except UserError as fault:
        raise UserError(fault.what, code=fault.code, where=where, found=fault.found, hint=fault.hint) from None
    tick()
    return {**own, "verdict": verdict.grade, "found": verdict.answer}


def _grade_answer(text: str, gold: Any, task: str | None, stop: StopReason | None, where: str) -> Verdict:
    """Of true and false, which do not say in which words a text answers, the first pair that the text has."""
    if isinstance(gold, bool) and _answer_type(task) in (None, "boolean"):
        words = ("yes", "true", "valid") if gold else ("no", "false", "invalid")
        verdicts = [grading.grade(text, word, task, stop) for word in words]
        return next((each for each in verdicts if each.grade in ("right", "wrong")), verdicts[0])
    return grading.grade(
        text, custom_set.read_gold(gold, where, name="gold", answer_type=_answer_type(task)).text, task, stop
    )


def _answer_type(task: str | None) -> str | None:
    if task is None:
        return None
    known = grading.BBH_ANSWER_TYPES.get(task)
    return "function" if grading.parse_function_name(task) is not None else known or task.rpartition("/")[2]


def _read_stop(row: Mapping[str, Any], where: str) -> StopReason | None:
    """How the text ended; None where the row does not say. Raises UserError for a word that nobody knows: a text that
    was cut off must not be graded as a whole one."""
    from potstill.teachers.openai_api import chain_reader  # the words of servers, which rows without them need not know

    said = {name: row[name] for name in STOP_FIELDS if row.get(name) not in (None, "")}
    if "finish_reason" in said:
        said.pop("stop_reason", None)  # vLLM's: which string or token it was
    if len(said) > 1 and not isinstance(said.get("stop"), str):
        said.pop("stop", None)  # what was asked for, a list of strings; llama.cpp writes true
    if "truncated" in row and isinstance(row["truncated"], bool) and not said:
        return "length" if row["truncated"] else "end"
    found = set[StopReason]()
    for name, word in said.items():
        if not isinstance(word, str):
            raise UserError(f"{name} must be text", where=where, found=repr(word), hint=f"correct or leave out {name}")
        kind = STOP_WORDS.get(word) or chain_reader.read_finish_reason(word)
        if kind == "unknown":
            hint = f"write how the text ended as {', '.join(STOP_WORDS)}, or leave {name} out"
            raise UserError(f"{name} is no known way in which a text ends", where=where, found=repr(word), hint=hint)
        if kind != "unsaid":
            found.add(kind if kind in STOP_WORDS else "end" if kind == "string" else "length")  # type: ignore[arg-type]
    return "length" if "length" in found else next(iter(found), None)


def _count_verdicts(graded: list[dict[str, Any]]) -> str:
    kinds = dict.fromkeys(row["verdict"] for row in graded)
    return ", ".join(f"{sum(row['verdict'] == kind for row in graded)} {kind}" for kind in kinds) or "nothing"
