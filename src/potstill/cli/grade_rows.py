"""`potstill grade`: grades the answers of any tool, one answer per row, in the order of the file.

    >>> sample = {"doc": {"answer": "6 x 3 = 18\\n#### 18"}, "target": "6 x 3 = 18\\n#### 18", "resps": [["It is 18."]]}
    >>> _sample_to_row(sample, "samples.jsonl line 1")
    {'text': 'It is 18.', 'gold': '6 x 3 = 18\\n#### 18'}

A row has `text` and `gold`, and optionally `task` and a stop reason in one of the `STOP_FIELDS`. A gold answer may be a
text, a number, true or false, or a whole solution, as in a custom set (`data.custom_set`). A sample that
lm-evaluation-harness logged is converted to such a row, without a stop reason. Its task comes from `--task`, or from the
document if `potstill export` wrote it. If a document has several responses, the first is graded.

The counts are over all rows, and over the rows of each set: of each value of the field `set`, or else of `task`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from potstill import grading, progress, storage
from potstill.cli.tables import numbers_table, plain_text, print_table
from potstill.data import custom_set
from potstill.errors import UserError
from potstill.evaluation import intervals
from potstill.records import StopReason, Verdict
from potstill.report.summary import percent_number
from potstill.storage import dataset_files

Row = dict[str, Any]
# The stop reason in the output of potstill; OpenAI and vLLM; Anthropic; Gemini; Ollama; llama.cpp.
STOP_FIELDS: Final = ("stop", "finish_reason", "stop_reason", "finishReason", "done_reason", "stop_type")
STOP_WORDS: Final[dict[str, StopReason]] = {"end": "end", "cut": "cut", "length": "length", "repeat": "repeat"}


@dataclass(frozen=True, slots=True)
class SetCounts:
    """The verdicts on the rows of a set; the share of right rows has a 95 % interval (Wilson). set: "" for all rows"""

    set: str
    n: int
    right: int
    wrong: int
    no_answer: int
    truncated: int

    @property
    def accuracy(self) -> float | None:
        """The share of right rows; None without a row."""
        return self.right / self.n if self.n else None

    @property
    def interval(self) -> tuple[float, float]:
        return intervals.wilson_interval(self.right, self.n)

    def to_json(self) -> dict[str, Any]:
        low, high = self.interval
        return {**asdict(self), "accuracy": self.accuracy, "low": low, "high": high}


@dataclass(frozen=True, slots=True)
class GradedFile:
    """rows: the rows with `verdict` and `found`; total: the counts of all rows; sets: of each set, if there are several"""

    rows: list[Row]
    total: SetCounts
    sets: list[SetCounts]

    def to_json(self) -> dict[str, Any]:
        verdicts = dict(Counter(row["verdict"] for row in self.rows))
        total = {name: value for name, value in self.total.to_json().items() if name != "set"}
        return {"rows": len(self.rows), "verdicts": verdicts, **total, "sets": [one.to_json() for one in self.sets]}


def grade_file(
    path: Path, out: Path | None = None, task: str | None = None, columns: Mapping[str, str] | None = None
) -> GradedFile:
    """Grade rows with `text`, `gold`, optional `task` and `stop`; each gets `verdict` and `found`.

    out      output file for these rows; None: no file
    task     the task of rows without a task; unlike a task in a row, it may name a function
    columns  `text` and `gold` -> the field, if it has another name

    Raises UserError, with the line, for a row without text or gold, or with an unknown stop reason. Nothing is written
    then.
    """
    if task is not None:
        grading.check_task(task)
    rows, filters = _merge_filters(list(_read_rows(path)))
    graded = list[Row]()
    with progress.bar("grade", len(rows), "rows") as advance:
        for where, row in rows:
            graded.append(_grade_row(where, row, task, columns or {}))
            advance()
    if out is not None:
        storage.write_jsonl(out, graded)
    if len(filters) > 1:
        progress.print_line(
            f"the file contains every document {len(filters)} times, once per filter ({', '.join(filters)}), with the same"
            " responses; each document is graded once, by its whole response"
        )
    by_set: dict[str, list[Row]] = {}
    for row in graded:
        by_set.setdefault(_set_name(row), []).append(row)
    sets = [_count(name or "(none)", part) for name, part in by_set.items()] if len(by_set) > 1 else []
    return GradedFile(graded, _count("", graded), sets)


def print_counts(graded: GradedFile, path: Path) -> None:
    """Print the accuracy of all rows, and of each set, in percent with its interval."""
    columns = ("set", "n", "right", "95 % interval", "wrong", "no answer", "truncated")
    table = numbers_table(*columns, title=f"{path.name}: graded answers, in percent")
    for one in (*graded.sets, graded.total):
        shares = [percent_number(count / one.n) for count in (one.wrong, one.no_answer, one.truncated)] if one.n else []
        right = percent_number(one.right / one.n) if one.n else ""
        low, high = map(percent_number, one.interval)
        table.add_row(plain_text(one.set or "all"), str(one.n), right, f"{low} to {high}", *shares)
    print_table(table)


def _set_name(row: Row) -> str:
    """The set or the task of a row; of a logged sample, the task of its document."""
    document = row.get("doc")
    task = document.get("potstill_task") if _is_logged_sample(row) and isinstance(document, dict) else None
    return str(row.get("set") or row.get("task") or task or "")


def _count(name: str, rows: Sequence[Row]) -> SetCounts:
    verdicts = Counter(row["verdict"] for row in rows)
    return SetCounts(name, len(rows), *(verdicts[verdict] for verdict in ("right", "wrong", "no answer", "truncated")))


def _read_rows(path: Path) -> Iterator[tuple[str, Row]]:
    """Place and content of every row. Raises UserError for a row that JSON cannot represent, such as a row with NaN."""
    if dataset_files.is_plain_jsonl(path) and not path.name.endswith((".csv", ".tsv", ".json")):
        yield from ((f"{path} line {number}", row) for number, row in storage.read_jsonl(path))
        return
    for _, position, row in dataset_files.read_dataset_rows(path):
        try:
            json.dumps(row, allow_nan=False)
        except (TypeError, ValueError) as error:
            what, where, hint = (
                "JSON cannot represent this row",
                f"{path} {position}",
                "remove the field, or write its value as text",
            )
            raise UserError(what, code="E-grade-row-json", where=where, found=error, hint=hint) from None
        yield f"{path} {position}", row


def _grade_row(where: str, row: Row, task: str | None, columns: Mapping[str, str]) -> Row:
    answer = _sample_to_row(row, where) if _is_logged_sample(row) else row
    for name, column in columns.items():
        if column not in row:
            what, hint = f"the row has no field {column}", f"name the field of the row: --{name} NAME"
            raise UserError(what, code="E-grade-field", where=where, found=f"the fields {', '.join(row)}", hint=hint)
        answer = {**answer, name: row[column]}
    text, gold, row_task = answer.get("text"), answer.get("gold"), answer.get("task")

    def row_error(what: str, code: str, field: str, hint: str) -> UserError:
        value = answer.get(field)
        found = value if isinstance(value, str) else "null" if value is None else repr(value)
        found = found if field in answer else f"the fields {', '.join(answer)}"
        return UserError(what, code=code, where=where, found=found, hint=hint)

    if not isinstance(text, str):
        raise row_error("text must be a string", "E-grade-text", "text", 'write {"text": "..."}, or add --text FIELD')
    if gold is None:
        raise row_error("gold must be an answer", "E-grade-gold", "gold", 'write {"gold": "..."}, or add --gold FIELD')
    if row_task is not None and not isinstance(row_task, str):
        raise row_error("task must be a string", "E-grade-task", "task", "correct or remove `task`")
    if row_task and grading.parse_function_name(row_task) is not None and not grading.is_task_of_set(row_task):
        hint = "remove `task` from the rows, and name the function with --task"
        raise row_error("a row may not name a grading function", "E-grade-row-function", "task", hint)
    try:
        verdict = _grade_answer(text, gold, row_task or task, _read_stop(answer, where), where)
    except UserError as fault:
        raise UserError(fault.what, code=fault.code, where=where, found=fault.found, hint=fault.hint) from None
    return {**row, "verdict": verdict.grade, "found": verdict.answer}


def _grade_answer(text: str, gold: Any, task: str | None, stop: StopReason | None, where: str) -> Verdict:
    """The verdict on a text. For a gold answer of true or false, the words yes/no, true/false and valid/invalid are tried."""
    answer_type = None
    if task is not None:
        is_function = grading.parse_function_name(task) is not None
        answer_type = "function" if is_function else grading.TASK_ANSWER_TYPES.get(task) or task.rpartition("/")[2]
    if isinstance(gold, bool) and answer_type in (None, "boolean"):
        words = ("yes", "true", "valid") if gold else ("no", "false", "invalid")
        verdicts = [grading.grade(text, word, task, stop) for word in words]
        return next((verdict for verdict in verdicts if verdict.grade in ("right", "wrong")), verdicts[0])
    gold_text = custom_set.read_gold(gold, where, name="gold", answer_type=answer_type).text
    return grading.grade(text, gold_text, task, stop)


def _read_stop(row: Mapping[str, Any], where: str) -> StopReason | None:
    """The stop reason of the text; None if the row does not have one.

    Raises UserError for an unknown stop reason, because a truncated text must not be graded as a complete text.
    """
    from potstill.teachers.openai_api import response  # only rows with a stop reason need it

    words = {name: row[name] for name in STOP_FIELDS if row.get(name) not in (None, "")}
    if "finish_reason" in words:
        words.pop("stop_reason", None)  # in vLLM's rows, the string or token that ended the text
    if len(words) > 1 and not isinstance(words.get("stop"), str):
        words.pop("stop", None)  # the list of requested stop strings; in llama.cpp's rows, true
    if isinstance(row.get("truncated"), bool) and not words:
        return "length" if row["truncated"] else "end"
    stops = set[StopReason]()
    for name, word in words.items():
        if not isinstance(word, str):
            what, hint = f"{name} must be a string", f"correct or remove `{name}`"
            raise UserError(what, code="E-grade-stop-type", where=where, found=repr(word), hint=hint)
        kind = STOP_WORDS.get(word) or response.read_finish_reason(word)
        if kind == "unknown":
            what, hint = f"{name} is not a known stop reason", f"write {', '.join(STOP_WORDS)}, or remove `{name}`"
            raise UserError(what, code="E-grade-stop-unknown", where=where, found=repr(word), hint=hint)
        if kind != "unsaid":
            stops.add(STOP_WORDS.get(kind, "end" if kind == "string" else "length"))
    return "length" if "length" in stops else next(iter(stops), None)


# Samples that lm-evaluation-harness logged


def _is_logged_sample(row: Mapping[str, Any]) -> bool:
    return "resps" in row and "doc" in row and "text" not in row


def _merge_filters(rows: Sequence[tuple[str, Row]]) -> tuple[list[tuple[str, Row]], list[str]]:
    """Each document once, in the order of the file; and the names of the filters for which it was logged.

    A filter selects a response or extracts a part of it, so all filters have the same responses. Raises UserError if they
    differ.
    """
    by_document: dict[str, dict[str, tuple[str, Any]]] = {}  # document -> filter -> (position, responses)
    kept = []
    for where, row in rows:
        if _is_logged_sample(row) and isinstance(row.get("filter"), str):
            document = json.dumps([row.get("doc_id"), row.get("doc_hash"), row["doc"]], sort_keys=True, default=str)
            filters = by_document.setdefault(document, {})
            is_repeated = bool(filters) and row["filter"] not in filters
            if is_repeated:
                other, responses = next(iter(filters.values()))
                if responses != row["resps"]:
                    what, hint = (
                        "two filters have different responses",
                        "write the samples of each filter into a separate file",
                    )
                    raise UserError(what, code="E-grade-filters", where=where, found=f"see {other}", hint=hint)
            filters[row["filter"]] = (where, row["resps"])
            if is_repeated:
                continue
        kept.append((where, row))
    return kept, list(dict.fromkeys(name for filters in by_document.values() for name in filters))


def _sample_to_row(sample: Row, where: str) -> Row:
    """The text and gold answer of a sample, and the task if its document has one. Raises UserError without a text."""
    text = sample["resps"]
    while isinstance(text, list) and text:
        text = text[0]
    if not isinstance(text, str):
        found, hint = (
            json.dumps(sample["resps"])[:80],
            "grade samples of generate_until tasks; multiple-choice tasks need no grader",
        )
        raise UserError("the sample has no text", code="E-grade-sample-text", where=where, found=found, hint=hint)
    document = sample["doc"] if isinstance(sample["doc"], dict) else {}
    row = {"text": text, "gold": document.get("potstill_gold", sample.get("target"))}
    return {**row, "task": document["potstill_task"]} if "potstill_task" in document else row
