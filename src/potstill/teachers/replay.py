"""Chains that somebody stored: another run's, a colleague's, the answers that a paid model gave last year.

    >>> question = Question("mine/1", "What is 1 + 1?", "2", "mine", "train", "number")
    >>> stored = [{"question": "mine/1", "text": "1 + 1 = 2."}, {"question": "What is 1 + 1?", "text": "It is 2."}]
    >>> [[chain.key for chain in batch] for batch in sample(enumerate(stored, 1), [question], where="old.jsonl")]
    [[('mine/1', 'replay', 0), ('mine/1', 'replay', 1)]]

A row is what `encoding.to_json` writes for a chain, of which only `question` and `text` must be there. Rows are read
as a stream: memory holds their keys, never all the chains.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any, get_args

from potstill import storage
from potstill.data import splits
from potstill.errors import UserError
from potstill.records import Chain, Question, Semantics, StopReason, token_spans
from potstill.serialization import from_json
from potstill.storage import dataset_files, parquet
from potstill.teachers import ChainKey

Row = Mapping[str, Any] | Chain
_ROW_HINT = (
    'a row is {"question": id or text, "text": ...} with optional index, source, stop, tokens, candidates, semantics'
)


def read_rows(path: Path) -> Iterator[tuple[int, Row]]:
    """Number and row of every record in a file: JSON lines, Parquet as potstill writes it, or any other form that
    `files.rows` reads. Raises UserError."""
    if path.suffix == ".parquet" and parquet.is_chain_file(path):
        yield from enumerate(parquet.read_chains(path), 1)
    elif path.suffix == ".jsonl" and dataset_files.is_plain_jsonl(path):
        yield from storage.read_jsonl(path)  # as a stream: such a file may be larger than memory
    else:
        yield from ((number, row) for number, _, row in dataset_files.read_dataset_rows(path))


def sample(
    rows: Iterable[tuple[int, Row]],
    questions: Sequence[Question],
    *,
    where: str,
    known: Iterable[Question] = (),
    source: str = "replay",
    batch: int = 256,
    done: Container[ChainKey] = (),
) -> Iterator[list[Chain]]:
    """The chains of `rows`, `batch` at a time, in their order.

    rows       number of the row in its file, and the row: a chain, or its JSON. `question` is an id, or the question's
               text (compared in canonical form). Without `index` the rows of a question and source are counted.
    questions  those that are wanted
    known      others that rows may be about: held out, or left out of this run. Their chains are passed over.
    where      the file, for messages
    source     of rows that name none

    Raises UserError, naming file and record, for a row that is no chain and for a key that comes twice; and, once all
    rows are counted, for chains of questions that nobody knows, none of which is then yielded.
    """
    reader = _RowReader(questions, known, where, source)
    waiting: list[Chain] = []
    for number, row in rows:
        chain = reader.read(number, row)
        if chain is None or reader.strangers:
            continue
        waiting.append(chain)
        if len(waiting) == batch:
            if not all(chain.key in done for chain in waiting):
                yield waiting
            waiting = []
    reader.finish()
    if not all(chain.key in done for chain in waiting):
        yield waiting


class _RowReader:
    """What must be remembered from row to row: the keys and the counts."""

    def __init__(self, questions: Sequence[Question], known: Iterable[Question], where: str, source: str) -> None:
        self.where, self.source = where, source
        self.wanted = {question.id for question in questions}
        self.ids: set[str] = set()
        self.texts: dict[str, set[str]] = {}  # canonical text -> ids
        for question in (*questions, *known):
            self.ids.add(question.id)
            self.texts.setdefault(splits.canonical_question(question.text), set()).add(question.id)
        self.seen: dict[ChainKey, int] = {}
        self.counts: dict[tuple[str, str], int] = {}
        self.strangers, self.first = 0, ""

    def read(self, number: int, row: Row) -> Chain | None:
        where = f"{self.where} record {number}"
        named = row.question if isinstance(row, Chain) else _read_question(row, where)
        question = self._id(named, where)
        if question is None:
            self.strangers += 1
            self.first = self.first or f"record {number}: {named[:80]!r}"
            return None
        if question not in self.wanted or self.strangers:
            return None
        if isinstance(row, Chain):
            chain = row
        else:
            filled = {"source": self.source, "semantics": "unknown" if row.get("candidates") else "none", **row}
            place = (question, str(filled["source"]))
            filled.setdefault("index", self.counts.get(place, 0))
            self.counts[place] = self.counts.get(place, 0) + 1
            chain = _read_chain({**filled, "question": question}, where)
        if chain.key in self.seen:
            raise UserError(
                f"question {chain.question!r}, source {chain.source!r}, index {chain.index} stands here twice",
                where=where,
                found=f"the same key in record {self.seen[chain.key]}",
                hint="give the rows of a question different indices, or none at all",
            )
        self.seen[chain.key] = number
        return chain

    def finish(self) -> None:
        if self.strangers:
            raise UserError(
                f"{self.strangers} chains are about questions that this run does not know",
                where=self.where,
                found=f"the first is {self.first}",
                hint="name questions by their id or exact text, and put the set that they come from into the recipe",
            )

    def _id(self, named: str, where: str) -> str | None:
        if named in self.ids:
            return named
        found = self.texts.get(splits.canonical_question(named), set())
        if len(found) > 1:
            raise UserError(
                f"the question's text belongs to {len(found)} questions",
                where=where,
                found=", ".join(sorted(found)[:3]),
                hint="name the question by its id",
            )
        return next(iter(found), None)


def _read_question(row: Mapping[str, Any], where: str) -> str:
    named = row.get("question")
    if not isinstance(named, str) or not named:
        raise UserError("names no question", where=where, found=f"question: {named!r}", hint=_ROW_HINT)
    return named


def _read_chain(row: Mapping[str, Any], where: str) -> Chain:
    try:
        _check_fields(row)
        chain = from_json(Chain, row)
        _check_consistency(chain)
    except (KeyError, TypeError, ValueError, AttributeError, AssertionError) as fault:
        found = f"no field {fault}" if isinstance(fault, KeyError) else str(fault)
        raise UserError("is not a chain", where=where, found=found, hint=_ROW_HINT) from None
    return chain


def _check_fields(row: Mapping[str, Any]) -> None:
    for name, allowed in (("stop", get_args(StopReason)), ("semantics", get_args(Semantics))):
        if name in row and row[name] not in allowed:
            raise ValueError(f"{name}: {row[name]!r} is none of {', '.join(allowed)}")
    index, source = row["index"], row["source"]
    if not isinstance(index, int) or isinstance(index, bool) or index < 0:
        raise ValueError(f"index: {index!r} is no number from 0 on")
    if not isinstance(source, str) or not source:
        raise ValueError(f"source: {source!r} is no name")
    defects = row.get("defects")
    for text in (source, row.get("text"), *(defects if isinstance(defects, list) else ())):
        if isinstance(text, str):
            _check_unicode(text)


def _check_unicode(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as fault:
        shown = ascii(text[max(0, fault.start - 30) : fault.start + 10])
        raise ValueError(f"half of a surrogate pair, which is no character: {shown}") from None


def _check_consistency(chain: Chain) -> None:
    """What would make a chain's parts contradict each other."""
    length, last = len(chain.content), 0
    for token, (start, end) in zip(chain.tokens, chain.spans, strict=True):
        if not last <= start <= end <= length:
            raise ValueError(f"token {token!r} at bytes {start} to {end} of a text of {length}")
        last = end
    if chain.tokens and chain.spans == token_spans(chain.tokens) and b"".join(chain.tokens) != chain.content:
        raise ValueError("the tokens, put one after the other, are not the text")
    if len(chain.candidates) not in (0, len(chain.tokens), len(chain.tokens) + 1):
        raise ValueError(f"{len(chain.candidates)} steps of candidates for {len(chain.tokens)} tokens")
    for step in chain.candidates:
        for what, value in step:
            if not isfinite(value) or value > 1e-3:
                raise ValueError(f"{value} is no natural log-probability (of {what!r})")
    if chain.candidates and chain.semantics == "none":
        raise ValueError("candidates with semantics none")
