"""A chain as the student's words and the teacher's steps: what the rule `text` reads.

A word is as in module `words`; one that the student's tokenizer drops altogether belongs to the one behind it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from potstill.prompts import answer_end
from potstill.records import END, Chain, End
from potstill.transfer.candidates import Step
from potstill.transfer.words import Words

LEAST: Final = 3e-4  # an outcome less likely than this counts as unseen


@dataclass(frozen=True, slots=True)
class Path:
    """
    chain, ids      the chain, and the student's tokens of its text
    words           where each word begins in the content
    unsure          the words that a like text might not have, because a piece of the student joins what is there
    firsts          the position of each word's first token, and the number of positions
    rows            the outcomes of each step that count
    starts, stops   of the token of each step, in the content
    within          the word in which each step begins
    taken, unseen   the probability of what the chain says (0 if its source did not show it), and what was not shown
    answer          where the answer sentence begins, if it ends the text: behind that a newline ends the text too
    """

    chain: Chain
    ids: Sequence[int]
    words: list[int]
    unsure: frozenset[int]
    firsts: list[int]
    rows: Sequence[Step]
    starts: list[int]
    stops: list[int]
    within: list[int]
    taken: list[float]
    unseen: list[float]
    answer: int | None


def path_of(chain: Chain, words: Words, ids: Sequence[int], steps: Sequence[Step]) -> Path | None:
    """None where the words of the text are not what its tokens are made of.

    ids    the tokens of the chain's text
    steps  the probabilities of the outcomes of each step
    """
    content, begins, firsts = chain.content, [0], [0]
    pieces: list[int] = []
    for end in [*words.seams(content), len(content)]:
        found = words.ids(content[begins[-1] : end], first=len(begins) == 1)
        if found or end == len(content):
            pieces += found
            begins.append(end)
            firsts.append(len(pieces))
    if pieces != list(ids):
        return None
    begins.pop()
    rows = [{what: p for what, p in step.items() if p >= LEAST} for step in steps]
    at = [*chain.spans, (len(content), len(content))][: len(rows)]
    says = [*chain.tokens, END]
    return Path(
        chain=chain,
        ids=ids,
        words=begins,
        unsure=frozenset(
            word for word, at in enumerate(begins) if at and words.unsure(content[at - 1 : at], content[at : at + 1])
        ),
        firsts=firsts,
        rows=rows,
        starts=[start for start, _ in at],
        stops=[stop for _, stop in at],
        within=[bisect_right(begins, start) - 1 for start, _ in at],
        taken=[row.get(what, 0.0) for row, what in zip(rows, says, strict=False)],
        unseen=[max(0.0, 1.0 - sum(row.values())) for row in rows],
        answer=_answer(chain),
    )


def _answer(chain: Chain) -> int | None:
    text = chain.content.decode("latin-1")
    spoken = text.lower().find("answer is")
    return spoken if spoken >= 0 and answer_end(text) == len(text) and chain.stop != "length" else None


def said(chain: Chain, step: int) -> bytes | End:
    """What the chain says at a step."""
    return chain.tokens[step] if step < len(chain.tokens) else END
