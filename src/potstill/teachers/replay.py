"""The teacher `replay`: chains from a file, for example of another run, of a colleague, or of a paid model.

    >>> question = Question("mine/1", "What is 1 + 1?", "2", "mine", "train", "number")
    >>> rows = [{"question": "mine/1", "text": "1 + 1 = 2."}, {"question": "What is 1 + 1?", "text": "It is 2."}]
    >>> places = ["line 1", "line 2"]
    >>> [[chain.key for chain in batch] for batch in build_chains(zip(places, rows), [question], where="old.jsonl")]
    [[('mine/1', 'replay', 0), ('mine/1', 'replay', 1)]]

A row is the JSON of a chain (`serialization.to_json`); only `question` and `text` are required. Rows are read as a
stream, so memory holds their keys, but never all chains.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from math import isfinite
from pathlib import Path
from typing import Any, get_args

from potstill import storage
from potstill.data import splits
from potstill.errors import UserError
from potstill.records import CHAIN_STOPS, Chain, Question, Semantics, token_spans
from potstill.serialization import from_json
from potstill.storage import dataset_files, parquet
from potstill.storage.segments import ChainKey
from potstill.teachers.text_teacher import TextTeacher

Row = Mapping[str, Any] | Chain
BATCH_SIZE = 256


class StoredChains(TextTeacher):
    """The teacher `replay`, whose chains come from the file `teacher.chains`."""

    @property
    def path(self) -> Path:
        return self.find_path(self.recipe.teacher.chains, "teacher.chains")

    def read_chains(
        self, questions: Sequence[Question], other_questions: Iterable[Question] = ()
    ) -> Iterator[list[Chain]]:
        path, is_empty = self.path, True
        for batch in build_chains(
            read_rows(path),
            questions,
            where=str(path),
            known=other_questions,
            source=self.source,
            rename=self.is_one_of_several,
        ):
            is_empty = False
            yield batch
        if is_empty:
            raise self._no_chains_error(len(questions))

    def checks(self, *, weights: bool = True) -> Iterator[Callable[[], object]]:
        yield from super().checks(weights=weights)
        yield self._check_file

    def _check_file(self) -> None:
        if next(read_rows(self.path), None) is None:
            raise self._no_chains_error(0)

    def check_questions(self, questions: Sequence[Question]) -> None:
        """Raise UserError if the file has no chain for any of the questions."""
        wanted, total = count_rows(self.path, questions)
        if not wanted:
            raise self._no_chains_error(len(questions) if total else 0)

    def _no_chains_error(self, questions: int) -> UserError:
        what = (
            f"the file has no chain for any of the {questions} training questions"
            if questions
            else "the file has no chains"
        )
        hint = "name a file of chains; `question` is the id or the text of a training question"
        return UserError(what, code="E-teacher-no-chains", where=self.path, hint=hint)

    def count_chains(self, questions: Sequence[Question]) -> int | None:
        path = self.find_path_or_none(self.recipe.teacher.chains, "teacher.chains")
        return None if path is None else count_rows(path, questions)[0] or None

    def read_texts(self, questions: Sequence[Question]) -> Iterator[tuple[Question, str]]:
        for question, row in iter_wanted_rows(self.path, questions):
            if question is not None:
                yield question, row.text if isinstance(row, Chain) else str(row.get("text") or "")

    def forecast(
        self, questions: Sequence[Question], stored: Mapping[str, int] | None = None, scores: Path | None = None
    ) -> list[str]:
        path = self.find_path_or_none(self.recipe.teacher.chains, "teacher.chains")
        if path is None:
            return [f"teacher           replay: {self.recipe.teacher.chains} does not exist"]
        wanted, total = count_rows(path, questions)
        others = f"; and {total - wanted} chains for other questions" if total > wanted else ""
        scored = "" if self.scorer is None else f", {self.describe_scores()}"
        first = f"teacher           replay: {wanted} chains in {path}{scored}{others}"
        return [first, *self.forecast_scores(questions, stored, scores)]


def read_rows(path: Path) -> Iterator[tuple[str, Row]]:
    """Place (such as `line 3`) and row of every record in a file.

    The file has JSON lines, or is a Parquet file that potstill wrote, or has another format of `storage.dataset_files`.
    Raises UserError if it cannot be read.
    """
    if path.suffix == ".parquet" and parquet.is_chain_file(path):
        yield from ((f"record {number}", chain) for number, chain in enumerate(parquet.read_chains(path), 1))
    elif path.suffix == ".jsonl" and dataset_files.is_plain_jsonl(path):
        # a stream, because the file may be larger than memory
        yield from ((f"line {number}", row) for number, row in storage.read_jsonl(path))
    else:
        yield from ((place, row) for _, place, row in dataset_files.read_dataset_rows(path))


def count_rows(path: Path, questions: Sequence[Question]) -> tuple[int, int]:
    """The number of rows for the questions, and the number of all rows in a file. Raises UserError as `read_rows` does."""
    wanted = total = 0
    for question, _ in iter_wanted_rows(path, questions):
        wanted += question is not None
        total += 1
    return wanted, total


def iter_wanted_rows(path: Path, questions: Sequence[Question]) -> Iterator[tuple[Question | None, Row]]:
    """Every row of a file, and its question; None if it is not one of the questions. Raises UserError as `read_rows` does."""
    by_name = {splits.canonical_question(question.text): question for question in questions}
    by_name |= {question.id: question for question in questions}
    for place, row in read_rows(path):
        name = row.question if isinstance(row, Chain) else _read_question(row, f"{path} {place}")
        yield by_name.get(name) or by_name.get(splits.canonical_question(name)), row


def build_chains(
    rows: Iterable[tuple[str, Row]],
    questions: Sequence[Question],
    *,
    where: str,
    known: Iterable[Question] = (),
    source: str = "replay",
    rename: bool = False,
) -> Iterator[list[Chain]]:
    """The chains of the rows, in order, in batches of BATCH_SIZE.

    rows       pairs of a row's place in its file (such as `line 3`) and the row: a chain, or its JSON. `question` is the
               id or the text of a question (compared in canonical form). Rows without `index` are numbered per question
               and source
    questions  questions whose chains are yielded
    where      name of the file, for messages
    known      other questions of the sets, held out or not used by this run; their chains are skipped
    source     source of rows without one
    rename     all rows get this source, and are numbered again for each question

    Raises UserError, with file and place, for an invalid row and for a key that occurs twice. After the first chain of
    an unknown question, no chain is yielded; a UserError with the number of such chains follows the last row.
    """
    reader = _RowReader(questions, known, where, source, rename)
    batch: list[Chain] = []
    for place, row in rows:
        chain = reader.read(place, row)
        if chain is None or reader.unknown_count:
            continue
        batch.append(chain)
        if len(batch) == BATCH_SIZE:
            yield batch
            batch = []
    reader.check_unknown()
    if batch:
        yield batch


class _RowReader:
    """Reads rows one by one, and stores their keys and counts."""

    def __init__(
        self, questions: Sequence[Question], known: Iterable[Question], where: str, source: str, rename: bool
    ) -> None:
        self.where, self.source, self.rename = where, source, rename
        self.wanted_ids = {question.id for question in questions}
        self.known_ids: set[str] = set()
        self.ids_by_text: dict[str, set[str]] = {}  # canonical text -> ids
        for question in (*questions, *known):
            self.known_ids.add(question.id)
            self.ids_by_text.setdefault(splits.canonical_question(question.text), set()).add(question.id)
        self.place_of: dict[ChainKey, str] = {}
        self.counts: dict[tuple[str, str], int] = {}  # (question, source) -> rows
        self.renamed: dict[str, int] = {}  # question -> renamed rows
        self.unknown_count, self.first_unknown = 0, ""

    def read(self, place: str, row: Row) -> Chain | None:
        """The chain of a row; None if its question is not wanted or not known."""
        where = f"{self.where} {place}"
        name = row.question if isinstance(row, Chain) else _read_question(row, where)
        question = self._find_id(name, where)
        if question is None:
            self.unknown_count += 1
            self.first_unknown = self.first_unknown or f"{place}: {name[:80]!r}"
            return None
        if question not in self.wanted_ids or self.unknown_count:
            return None
        if isinstance(row, Chain):
            chain = row
        else:
            row = {"source": self.source, "semantics": "unknown" if row.get("candidates") else "none", **row}
            count_key = question, str(row["source"])
            row.setdefault("index", self.counts.get(count_key, 0))
            self.counts[count_key] = self.counts.get(count_key, 0) + 1
            chain = _read_chain({**row, "question": question}, where)
        if self.rename:
            index = self.renamed.get(chain.question, 0)
            self.renamed[chain.question] = index + 1
            chain = replace(chain, source=self.source, index=index)
        if chain.key in self.place_of:
            what = f"question {chain.question!r}, source {chain.source!r}, index {chain.index} occurs twice"
            found = f"the same key in {self.place_of[chain.key]}"
            hint = "give the rows of a question different indices, or no indices"
            raise UserError(what, code="E-data-duplicate-chain", where=where, found=found, hint=hint)
        self.place_of[chain.key] = place
        return chain

    def check_unknown(self) -> None:
        if self.unknown_count:
            raise UserError(
                f"{self.unknown_count} chains belong to questions that the run's sets do not contain",
                code="E-data-unknown-question",
                where=self.where,
                found=f"the first one is {self.first_unknown}",
                hint="name questions by their id or exact text, and add their set to the recipe",
            )

    def _find_id(self, name: str, where: str) -> str | None:
        if name in self.known_ids:
            return name
        ids = self.ids_by_text.get(splits.canonical_question(name), set())
        if len(ids) > 1:
            what, found = f"the text belongs to {len(ids)} questions", ", ".join(sorted(ids)[:3])
            hint = "give the id of the question instead of its text"
            raise UserError(what, code="E-data-ambiguous-question", where=where, found=found, hint=hint)
        return next(iter(ids), None)


def _read_question(row: Mapping[str, Any], where: str) -> str:
    name = row.get("question")
    if not isinstance(name, str) or not name:
        raise _row_error("the row names no question", where, f"question: {name!r}")
    return name


def _read_chain(row: Mapping[str, Any], where: str) -> Chain:
    try:
        _check_fields(row)
        chain = from_json(Chain, row)
        _check_consistency(chain)
    except (KeyError, TypeError, ValueError, AttributeError, AssertionError) as error:
        found = f"no field {error}" if isinstance(error, KeyError) else str(error)
        raise _row_error("the row is not a chain", where, found) from None
    return chain


def _row_error(what: str, where: str, found: str) -> UserError:
    hint = (
        "a row has `question` (id or text) and `text`, and may have index, source, stop, tokens, candidates, semantics"
    )
    return UserError(what, code="E-data-invalid-chain", where=where, found=found, hint=hint)


def _check_fields(row: Mapping[str, Any]) -> None:
    for name, allowed in (("stop", CHAIN_STOPS), ("semantics", get_args(Semantics))):
        if name in row and row[name] not in allowed:
            raise ValueError(f"{name}: {row[name]!r} is not one of {', '.join(allowed)}")
    index, source = row["index"], row["source"]
    if not isinstance(index, int) or isinstance(index, bool) or index < 0:
        raise ValueError(f"index: {index!r} is not a number from 0 on")
    if not isinstance(source, str) or not source:
        raise ValueError(f"source: {source!r} is not a name")
    defects = row.get("defects")
    for text in (source, row.get("text"), *(defects if isinstance(defects, list) else ())):
        try:
            str(text).encode("utf-8")
        except UnicodeEncodeError as error:
            context = ascii(error.object[max(0, error.start - 30) : error.start + 10])
            raise ValueError(f"the text contains half of a surrogate pair, which is no character: {context}") from None


def _check_consistency(chain: Chain) -> None:
    """Raises ValueError if parts of a chain contradict each other."""
    length, last = len(chain.content), 0
    for token, (start, end) in zip(chain.tokens, chain.spans, strict=True):
        if not last <= start <= end <= length:
            raise ValueError(f"token {token!r} at bytes {start} to {end} of a text of {length}")
        last = end
    if chain.tokens and chain.spans == token_spans(chain.tokens) and b"".join(chain.tokens) != chain.content:
        raise ValueError("the joined tokens are not the text")
    if len(chain.candidates) not in (0, len(chain.tokens), len(chain.tokens) + 1):
        raise ValueError(f"candidates of {len(chain.candidates)} positions for {len(chain.tokens)} tokens")
    for step in chain.candidates:
        for piece, logprob in step:
            if not isfinite(logprob) or logprob > 1e-3:
                raise ValueError(f"{logprob} is not a natural log-probability (of {piece!r})")
    if chain.candidates and chain.semantics == "none":
        raise ValueError("there are candidates, but semantics is none")
