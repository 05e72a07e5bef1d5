"""Taking: the chains of one answer, and what it lacks; the same whether the answer came at once or in a file.

>>> from potstill.records import Question
>>> from potstill.teachers.openai import body
>>> answer = body.decode(b'{"choices": [{"text": "So.\\\\nThe answer is 4.\\\\nNext", "finish_reason": "stop"}]}')
>>> ask = Ask(Question("q", "2 + 2?", "4", "s", "train", "number"), Prompt(()), (3, 4))
>>> chains, left, said = taken(answer, ask, Settings("m", candidates=0), Manner(), Reader("teacher", "none"))
>>> [(chain.index, chain.text) for chain in chains], left, said
([(3, 'So.\\nThe answer is 4.')], (4,), 'fewer texts than asked')
"""

from __future__ import annotations

from dataclasses import replace

from potstill import answers
from potstill.records import Chain, Prompt, Question
from potstill.teachers.cut import cut
from potstill.teachers.openai import complaints, finish, reading
from potstill.teachers.openai.asking import Ask, Manner, Settings
from potstill.teachers.openai.body import Body, Choice, Malformed
from potstill.teachers.openai.reading import Reader
from potstill.teachers.watch import Watch

__all__ = ["Prompt", "count", "taken"]


def taken(
    body: Body, ask: Ask, settings: Settings, manner: Manner, reader: Reader
) -> tuple[list[Chain], tuple[int, ...], str]:
    """The chains of a body, cut behind their answers, under the indices that were asked, in order; the indices that are
    left; and what is wrong with the texts that gave none."""
    chains, left, said = [], list(ask.indices), "fewer texts than asked"
    finish.settled(body, settings.max_tokens)
    for choice in body.choices[: len(ask.indices)]:
        chain, why = _chain(choice, ask, left[0], settings, manner, reader)
        if chain is None:
            said = why
            continue
        left.pop(0)
        chains.append(chain)
    return chains, tuple(left), said


def _chain(
    choice: Choice, ask: Ask, index: int, settings: Settings, manner: Manner, reader: Reader
) -> tuple[Chain | None, str]:
    if finish.ending(choice.finish_reason) == "broken":
        why = complaints.of(choice.error).said if choice.error else f"finish_reason {choice.finish_reason}"
        return None, f"the server broke the text off: {why}"
    if choice.text is None and choice.message is None:
        return None, "a choice without a text"
    if repeats(choice, ask.prompt):
        return None, "the text begins with the prompt"
    try:
        chain, answer = reading.parted(choice, ask.question.id, index, reader)
    except Malformed as fault:  # bytes are looked at only where they are needed
        return None, f"no answer that can be read: {fault}"
    if settings.candidates and not chain.candidates and chain.content and reading.OTHER not in chain.defects:
        return None, "no log-probabilities this time"
    if settings.candidates and manner.whole and not ask.mended and "entries missing" in chain.defects:
        return None, "entries missing this time"
    return cut(chain, answer), ""


def repeats(choice: Choice, prompt: Prompt) -> bool:
    """Whether a text of legacy completions begins with its prompt, as from a server that echoes."""
    return bool(prompt.plain) and choice.text is not None and choice.text.startswith(prompt.plain)


def hardened(chain: Chain, defect: str) -> Chain:
    """The chain as a text alone, marked: it gets hard targets."""
    marks = tuple(sorted({*chain.defects, defect}))
    return replace(chain, tokens=(), spans=(), candidates=(), semantics="none", defects=marks)


def count(chain: Chain, question: Question, watch: Watch, right: dict[str, int]) -> None:
    """Grade a chain on the fly and count it."""
    watch.chains += 1
    watch.graded += 1
    if answers.grade(chain.text, question.gold, question.task, chain.stop).grade == "right":
        watch.right += 1
        right[question.id] = right.get(question.id, 0) + 1
