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

from potstill import answers, files, progress
from potstill.cli import lm_eval
from potstill.errors import UserError
from potstill.files import rows as files_rows
from potstill.questions import golds
from potstill.records import Stop, Verdict

# Names under which tools say how a text ended: ours, OpenAI's and vLLM's, Anthropic's, Gemini's, Ollama's, llama.cpp's.
ENDS: Final = ("stop", "finish_reason", "stop_reason", "finishReason", "done_reason", "stop_type")
OURS: Final[dict[str, Stop]] = {"end": "end", "cut": "cut", "length": "length"}


def grade_file(path: Path, out: Path, task: str | None = None) -> None:
    """Read rows with `text`, `gold`, optional `task` and `stop`; write them to `out` with `verdict` and `found`.

    task  for the rows that name none; only here may it be a function
    Raises UserError naming the line for a row without text or gold, and for one that ended in an unknown way; then
    nothing is written.
    """
    if task is not None:
        answers.check(task)
    rows = list(_rows(path))
    samples, filters = lm_eval.one_a_document(rows)
    with progress.bar("grade", len(samples), "rows") as tick:
        graded = [_graded(where, row, task, tick) for where, row in samples]
    files.write_jsonl(out, graded)
    if len(filters) > 1:
        progress.say(
            f"the samples stand there once for each of {len(filters)} filters ({', '.join(filters)}), with the same"
            " responses; each document is graded once, by its whole response"
        )
    progress.say(f"{len(graded)} rows: {_summary(graded)}")


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Place and row of every record; a line of JSON may not hold NaN, which no line could hold again."""
    if files_rows.is_plain(path) and not path.name.endswith((".csv", ".tsv", ".json")):
        yield from ((f"{path} line {number}", row) for number, row in files.read_jsonl(path))
        return
    for _, place, row in files_rows.rows(path):
        try:
            json.dumps(row, allow_nan=False)
        except (TypeError, ValueError) as fault:
            do = "take the field out, or write it as text"
            raise UserError("a row that JSON cannot hold", where=f"{path} {place}", found=fault, do=do) from None
        yield f"{path} {place}", row


def _graded(where: str, row: Mapping[str, Any], task: str | None, tick: progress.Tick) -> dict[str, Any]:
    own, row = row, lm_eval.as_row(row, where) if lm_eval.is_sample(row) else row
    text, stated = row.get("text"), row.get("task")
    if not isinstance(text, str):
        found = repr(text) if "text" in row else f"the fields {', '.join(row)}"
        raise UserError("text must be text", where=where, found=found, do='write {"text": "..."}')
    if row.get("gold") is None:
        found = "null" if "gold" in row else f"the fields {', '.join(row)}"
        raise UserError("gold must be an answer", where=where, found=found, do='write {"gold": "..."}')
    if stated is not None and not isinstance(stated, str):
        raise UserError("task must be text", where=where, found=repr(stated), do="correct or leave out task")
    try:
        if stated and answers.functions.named(stated) is not None:
            do = "leave `task` out of the rows, and say --task, which is yours"
            raise UserError("a row cannot name a function to run", found=stated, do=do)
        verdict = _verdict(text, row["gold"], stated or task, _stop(row, where), where)
    except UserError as fault:
        raise UserError(fault.what, where=where, found=fault.found, do=fault.do) from None
    tick()
    return {**own, "verdict": verdict.grade, "found": verdict.found}


def _verdict(text: str, gold: Any, task: str | None, stop: Stop | None, where: str) -> Verdict:
    """Of true and false, which do not say in which words a text answers, the first pair that the text has."""
    if isinstance(gold, bool) and _form(task) in (None, "boolean"):
        words = ("yes", "true", "valid") if gold else ("no", "false", "invalid")
        verdicts = [answers.grade(text, word, task, stop) for word in words]
        return next((each for each in verdicts if each.grade in ("right", "wrong")), verdicts[0])
    return answers.grade(text, golds.read(gold, where, name="gold", form=_form(task)).text, task, stop)


def _form(task: str | None) -> str | None:
    if task is None:
        return None
    known = answers.TASKS.get(task)
    return "function" if answers.functions.named(task) is not None else known or task.rpartition("/")[2]


def _stop(row: Mapping[str, Any], where: str) -> Stop | None:
    """How the text ended; None where the row does not say. Raises UserError for a word that nobody knows: a text that
    was cut off must not be graded as a whole one."""
    from potstill.teachers.openai import finish  # the words of servers, which rows without them need not know

    said = {name: row[name] for name in ENDS if row.get(name) not in (None, "")}
    if "finish_reason" in said:
        said.pop("stop_reason", None)  # vLLM's: which string or token it was
    if len(said) > 1 and not isinstance(said.get("stop"), str):
        said.pop("stop", None)  # what was asked for, a list of strings; llama.cpp writes true
    if "truncated" in row and isinstance(row["truncated"], bool) and not said:
        return "length" if row["truncated"] else "end"
    found = set[Stop]()
    for name, word in said.items():
        if not isinstance(word, str):
            raise UserError(f"{name} must be text", where=where, found=repr(word), do=f"correct or leave out {name}")
        kind = OURS.get(word) or finish.ending(word)
        if kind == "unknown":
            do = f"write how the text ended as {', '.join(OURS)}, or leave {name} out"
            raise UserError(f"{name} is no known way in which a text ends", where=where, found=repr(word), do=do)
        if kind != "unsaid":
            found.add(kind if kind in OURS else "end" if kind == "string" else "length")  # type: ignore[arg-type]
    return "length" if "length" in found else next(iter(found), None)


def _summary(graded: list[dict[str, Any]]) -> str:
    kinds = dict.fromkeys(row["verdict"] for row in graded)
    return ", ".join(f"{sum(row['verdict'] == kind for row in graded)} {kind}" for kind in kinds) or "nothing"
