"""Results of batch files: the chains that each brings, and what to remember of those that lack some.

    >>> told = b'{"custom_id": "x", "response": null, "error": {"code": "batch_expired", "message": "too late"}}'
    >>> _answer(_result.decode(told)).outcome, _answer(_result.decode(told)).said
    ('busy', 'batch_expired too late')

A result is a line with the `custom_id` of its request and a `response` (`status_code`, `body`) or an `error`; `batches`
has the requests. One that is read again brings nothing new, and costs nothing.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import msgspec

from potstill.errors import UserError
from potstill.files.reading import mine_to_mend
from potstill.records import Chain
from potstill.teachers.openai import body, client, complaints
from potstill.teachers.openai.asking import Ask
from potstill.teachers.openai.batches import Batch, Before, parsed
from potstill.teachers.openai.budget import Budget
from potstill.teachers.openai.client import Answer
from potstill.teachers.openai.taking import count, taken
from potstill.teachers.watch import Watch

UNTOUCHED: Final = ("batch_expired", "batch_cancelled")  # errors of requests that no model has seen
REFUSED: Final = 10  # questions; more, and more than one of twenty results, are not for the questions


class Response(msgspec.Struct):
    status_code: int = 200
    body: msgspec.Raw = msgspec.Raw(b"null")


class Result(msgspec.Struct):
    custom_id: str
    response: Response | None = None
    error: msgspec.Raw = msgspec.Raw(b"null")


_result = msgspec.json.Decoder(Result)


def read(
    batch: Batch,
    paths: Iterable[Path],
    done: Container[tuple[str, str, int]],
    right: dict[str, int],
    before: Before,
    counted: set[str],
    budget: Budget,
    watch: Watch,
) -> Iterator[tuple[list[Chain], list[dict[str, Any]], list[str]]]:
    """Of each result the chains that are not stored, what to remember of it if it lacks some (see `Before`), and its
    id if it is one that was paid and not counted yet.

    counted  ids of results that the ledger has; those that are found now join them
    Raises UserError, naming file and line, for a line that is no result of a request of this run; and where so many
    questions were refused that it is not for the questions.
    """
    refused: list[dict[str, Any]] = []
    counted |= before.names
    seen = 0
    for seen, (result, name, ask) in enumerate(_asked(batch, paths), 1):  # noqa: B007 - how many there were
        answer = _answer(result)
        billed = _billed(answer, name, counted)
        if billed:
            watch.requests += 1
            budget.settle((0.0, 0.0), ask.prompt, len(ask.indices), answer)
        if all((ask.question.id, batch.settings.source, index) in done for index in ask.indices):
            if billed:
                yield [], [], billed
            continue
        chains, left, said = [], ask.indices, answer.said
        if answer.body is not None:
            found, left, said = taken(answer.body, ask, batch.settings, batch.manner, batch.reader)
            chains = [chain for chain in found if chain.key not in done]
        for chain in chains:
            count(chain, ask.question, watch, right)
        rows = []
        if left:
            watch.fault(said)
            row = {"custom_id": name, "outcome": answer.outcome, "said": said}
            if answer.outcome == "refused":
                watch.refused[ask.question.id] = said
                refused.append(row)
            elif answer.outcome != "busy" and before.add(row):
                rows.append(row)
        if chains or rows or billed:
            yield chains, rows, billed
    if len(watch.refused) > max(REFUSED, seen // 20):
        question, said = next(iter(watch.refused.items()))
        raise UserError(
            f"the service refused {len(watch.refused)} questions; every chain that came is stored",
            where=question,
            found=said,
            do="fix what it names; where that is a key of the recipe, in a recipe of another name",
        )
    yield [], [row for row in refused if before.add(row)], []


def _billed(answer: Answer, name: str, counted: set[str]) -> list[str]:
    """The id of a result that is to be counted now: one that a model has seen, the first time that it is read."""
    if answer.outcome == "busy" or name in counted:
        return []
    counted.add(name)
    return [name]


def _asked(batch: Batch, paths: Iterable[Path]) -> Iterator[tuple[Result, str, Ask]]:
    """Each result of some files, its id, and what was asked."""
    for path in paths:
        with mine_to_mend(path), open(path, "rb") as file:
            for place, line in enumerate(file, 1):
                if line.strip():
                    yield _line(batch, line, f"{path} line {place}")


def _line(batch: Batch, line: bytes, where: str) -> tuple[Result, str, Ask]:
    try:
        result = _result.decode(line)
    except body.Malformed as fault:
        raise UserError(
            "not a whole result",
            where=where,
            found=fault,
            do="fetch the file again, or remove this line and ask its request again; what came before it is stored",
        ) from None
    name = parsed(result.custom_id)
    if name is None or name[0] != batch.tag or name[1] >= len(batch.questions):
        raise UserError(
            "a result of another run",
            where=where,
            found=f"custom_id {result.custom_id[:80]}, where those of this run begin with {batch.tag}",
            do="name the run whose requests these were: with other values in its recipe they would be other requests",
        )
    if result.response is None and bytes(result.error) == b"null":
        raise UserError(
            "neither a response nor an error",
            where=where,
            found="a request" if b'"method"' in line else result.custom_id,
            do="name the files that the service gave back, not those that were sent",
        )
    _, number, indices, tries = name
    question = batch.questions[number]
    return result, result.custom_id, Ask(question, batch.prompt_of(question), indices, tries, mended=tries > 0)


def _answer(result: Result) -> Answer:
    """As if it had come at once. A request that no model has seen is `busy`: it may be sent again as it is."""
    response, error = result.response, bytes(result.error)
    inside = bytes(response.body) if response is not None else b"null"
    if response is not None and response.status_code == 200 and inside != b"null":
        found = client.opened(inside)
        return replace(found, said=client.shown(found.said))
    told = complaints.complaint(error if inside == b"null" else inside)
    said, code = client.shown(told.said), client.shown(_code(error))
    if code in UNTOUCHED:
        return Answer("busy", said=f"{code} {said}")
    if response is None or response.status_code == 200:
        return Answer("again", said=f"{code} {said}".strip())
    return Answer(client.outcome(response.status_code, told), said=f"HTTP {response.status_code} {said}")


def _code(error: bytes) -> str:
    try:
        found = msgspec.json.decode(error)
    except body.Malformed:
        return ""
    return str(found.get("code") or "") if isinstance(found, dict) else ""
