"""A proposal for a file of questions: which columns are the question, the answer and so on, and how answers are graded.

    >>> rows = [{"text": f"My bill number {i} is wrong.", "team": ("billing", "sales")[i % 2]} for i in range(20)]
    >>> proposal = propose(rows)
    >>> proposal.columns, proposal.labels
    ({'question': 'text', 'answer': 'team'}, ('billing', 'sales'))
    >>> propose([{"problem": "What is 1 + 1?", "solution": "1 + 1 = 2\\n#### 2"}]).task
    'number'

The names of the columns decide first, then their contents. Nothing is written and nothing is silent: `potstill init` shows
the proposal, and asks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, get_args

from potstill import grading
from potstill.data import custom_set
from potstill.errors import UserError
from potstill.grading.words import parse_gold_label
from potstill.records import Split

# Field -> names that columns with this content usually have, the most specific first.
NAMES: Final[dict[str, tuple[str, ...]]] = {
    "question": (
        *("question", "problem", "prompt", "query", "instruction", "input", "text", "sentence", "body", "message"),
        *("content", "description", "ticket", "review", "comment", "title", "subject"),
    ),
    "answer": (
        *("answer", "gold", "label", "labels", "target", "category", "class", "intent", "department", "topic"),
        *("sentiment", "expected", "final_answer", "output", "response", "completion", "solution"),
    ),
    "rationale": ("rationale", "explanation", "reasoning", "chain_of_thought", "cot", "thought", "solution"),
    "choices": ("choices", "options", "endings"),
    "id": ("id",),
    "task": ("task",),
    "split": ("split",),
}
LABEL_NAMES: Final = ("label", "labels", "category", "class", "intent", "department", "topic", "sentiment")
UNUSED: Final = "none"  # a column that no file has: the field of this name is not read
MAX_LABELS: Final = 100
QUESTIONS_PER_LABEL: Final = 5  # fewer questions per different answer are no classification
LONGEST_ID: Final = 40  # characters of an id in a column of another name
LONG_ANSWER: Final = 200  # characters of a typical answer that is a text rather than an answer


@dataclass(frozen=True, slots=True)
class Proposal:
    """columns  field -> column, also for fields whose column has their own name; UNUSED for a column that cannot be read
    labels   the labels, if the answers are a classification
    task     the answer type, if all answers have the same
    splits   the number of rows of each split, if the file has splits
    notes    sentences that the user must know
    """

    columns: dict[str, str]
    labels: tuple[str, ...] | None = None
    task: str | None = None
    splits: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def propose(
    rows: Sequence[Mapping[str, Any]], chosen: Mapping[str, str] | None = None, task: str | None = None
) -> Proposal:
    """The proposal for the rows of a file.

    chosen  field -> column, as the user has decided
    task    the answer type, as the user has decided; `label`: a classification
    Raises UserError if a chosen column does not exist, and if no column can be the question or the answer.
    """
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = _find_columns(rows, names, dict(chosen or {}))
    notes: list[str] = []
    splits = _read_splits(rows, columns, notes)
    _check_ids(rows, columns, notes)
    if "choices" in columns:
        return Proposal(columns, task=task or "choice", splits=splits, notes=tuple(notes))
    golds = [_read_gold(row.get(columns["answer"]), row_number) for row_number, row in enumerate(rows, 1)]
    types = {grading.infer_answer_type(gold) for gold in golds if gold}
    is_named_label = columns["answer"].lower() in LABEL_NAMES
    labels = None
    if task in (None, "label") and not any(isinstance(row.get(columns["answer"]), bool) for row in rows):
        labels = _find_labels([gold for gold in golds if gold], is_named_label or types == {"text"}, task == "label")
    if labels and all(label.lstrip("-").isdecimal() for label in labels):
        notes.append(
            "the labels are numbers; names say more to a model: fields: {answer: {column: "
            f"{columns['answer']}, values: {{{labels[0]}: NAME, ...}}}}}}, and labels: [NAME, ...]"
        )
    if labels is None and task is None:
        task = types.pop() if len(types) == 1 else None
        lengths = sorted(len(gold) for gold in golds if gold)
        if lengths and lengths[len(lengths) // 2] > LONG_ANSWER:
            notes.append("the answers are long texts: potstill grades short answers, such as a number or a name")
    if "task" in columns and (labels is not None or not _are_tasks(rows, columns["task"])):
        columns["task"] = UNUSED
    return Proposal(columns, labels, None if labels else task, splits, tuple(notes))


def _find_columns(rows: Sequence[Mapping[str, Any]], names: Sequence[str], chosen: dict[str, str]) -> dict[str, str]:
    for name, column in chosen.items():
        if column not in names:
            what, found = f"the file has no column {column!r}", ", ".join(names)
            raise UserError(what, code="E-init-no-column", where=f"--{name}", found=found, hint="name one of them")
    columns = dict(chosen)
    lower = {name.lower(): name for name in reversed(names)}
    for name, guesses in NAMES.items():
        free = (lower[guess] for guess in guesses if guess in lower and lower[guess] not in columns.values())
        if name not in columns and (column := next(free, None)) is not None:
            columns[name] = column
    if "choices" in columns and "choices" not in chosen:
        options = (custom_set.read_options(row.get(columns["choices"])) for row in rows)
        columns = columns if all(options) else {name: columns[name] for name in columns if name != "choices"}
    rest = [name for name in names if name not in columns.values()]
    texts = {name: [row[name] for row in rows if isinstance(row.get(name), str)] for name in rest}
    if "question" not in columns and any(texts.values()):
        columns["question"] = max(rest, key=lambda name: sum(map(len, texts[name])))
        rest.remove(columns["question"])
    if "answer" not in columns and rest:
        numbers = {name: len({str(row.get(name)) for row in rows}) for name in rest}
        columns["answer"] = min(rest, key=lambda name: (numbers[name] == 1, numbers[name]))  # a constant is no answer
    for name in ("question", "answer"):
        if name not in columns:
            what, hint = f"no column can be the {name}", f"name it with --{name}"
            raise UserError(what, code="E-init-no-column", where="the file", found=", ".join(names), hint=hint)
    if "id" not in columns:
        free = (name for name in names if name not in columns.values() and _are_ids([row.get(name) for row in rows]))
        if (column := next(free, None)) is not None:
            columns["id"] = column
    return {name: columns[name] for name in NAMES if name in columns}


def _are_ids(values: Sequence[Any]) -> bool:
    """Whether all values are different whole numbers, or different short texts without white space."""
    texts = [str(value) for value in values if isinstance(value, str | int) and not isinstance(value, bool)]
    short = all(text and len(text) <= LONGEST_ID and not any(map(str.isspace, text)) for text in texts)
    return short and len(set(texts)) == len(values)


def _read_splits(rows: Sequence[Mapping[str, Any]], columns: dict[str, str], notes: list[str]) -> dict[str, int]:
    """The number of rows by split; {} if the column cannot be used, which is noted."""
    if "split" not in columns:
        return {}
    counts = Counter(str(row.get(columns["split"])) for row in rows)
    if set(counts) == set(get_args(Split)):
        return dict(counts)
    notes.append(
        f"the column `{columns['split']}` is not used: its values are {', '.join(sorted(counts)[:5])}, not train, validation"
        " and test. The questions are split again"
    )
    columns["split"] = UNUSED
    return {}


def _check_ids(rows: Sequence[Mapping[str, Any]], columns: dict[str, str], notes: list[str]) -> None:
    if "id" not in columns:
        return
    ids = [row.get(columns["id"]) for row in rows]
    usable = all(isinstance(value, str | int) and not isinstance(value, bool) and str(value).strip() for value in ids)
    if not usable or len({str(value).strip() for value in ids}) < len(ids):
        notes.append(f"the column `{columns['id']}` is not used: its values are not different numbers or texts")
        columns["id"] = UNUSED


def _read_gold(value: Any, number: int) -> str | None:
    """The gold answer in a field; None if it has none, which loading the set will report."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    try:
        return custom_set.read_gold(value, f"row {number}").text
    except UserError:
        return None


def _find_labels(golds: Sequence[str], likely: bool, required: bool) -> tuple[str, ...] | None:
    """The different answers in their most frequent spelling, sorted, if the answers are a classification."""
    spellings: dict[str, Counter[str]] = {}
    for gold in golds:
        spellings.setdefault(parse_gold_label(gold) or "", Counter())[" ".join(gold.split())] += 1
    many = len(spellings) > MAX_LABELS or len(golds) < QUESTIONS_PER_LABEL * len(spellings)
    if len(spellings) < 2 or (not required and (many or not likely)):
        return None
    return tuple(sorted(spelling.most_common(1)[0][0] for spelling in spellings.values()))


def _are_tasks(rows: Sequence[Mapping[str, Any]], column: str) -> bool:
    """Whether all values of a column are tasks of potstill."""
    try:
        for value in {value for row in rows if isinstance(value := row.get(column), str)}:
            grading.check_task(value)
    except UserError:
        return False
    return True
