"""The rule `text`: a teacher's outcomes are texts, and each of them is what the student would write for it.

Every outcome that was seen but not taken is followed to the end of its word and written in the student's tokens: a
*way* (module `ways`). At a position of the student the ways that begin with the pieces already written vote for their
next piece, each with its probability; the others were impossible. The chain's own text is one more way. What nobody
saw, and what nobody knows how to go on, is the tail.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np

from potstill.alignment.exact_rules import Distribution, step_distributions
from potstill.alignment.pre_tokens import PreTokens
from potstill.alignment.text_rule_branches import Branch, ChainPath, build_branches, build_chain_path
from potstill.alignment.text_rule_completions import Completions
from potstill.records import Chain

MIN_TARGET_PROBABILITY: Final = 1e-6  # a smaller probability in a target is tail
# Estimate: the share of what a step did not show that begins as the pieces do which were written into or behind it.
UNSEEN_AGREEMENT: Final = 0.1


def apply_text_rule(
    chain: Chain,
    words: PreTokens,
    ids: Sequence[int],
    places: np.ndarray,
    run: Completions | None = None,
    teacher: PreTokens | None = None,
) -> dict[int, Distribution] | None:
    """Distributions by position; None where the words of the text are not what its tokens are made of.

    ids, places  the tokens of the chain's text and their spans in its content
    """
    path = build_chain_path(chain, words, ids, run.steps(chain) if run else step_distributions(chain))
    if path is None:
        return None
    ways = [list(build_branches(path, step, words, run, teacher).items()) for step in range(len(path.rows))]
    taken: list[int | None] = [*ids, words.coder.vocabulary.eos]
    soft: dict[int, Distribution] = {}
    for position, start, low, high in _position_ranges(path, places):
        token = taken[position]
        # Tokens of no width share their place with the one behind them; the first of them is under way.
        own = bisect_left(path.starts, start)
        if own == len(path.starts) or path.starts[own] > start:
            own -= 1
        if token is None or own < 0:
            continue
        row = _vote(path, ways, position, token, own, start, low, high)
        if row:
            soft[position] = row
    return soft


def _position_ranges(path: ChainPath, places: np.ndarray) -> Iterator[tuple[int, int, int, int]]:
    """Each position; where in the content what it stands for begins; and from where to where lies the word whose steps
    speak of it. The first piece of a word stands where the word before it might have gone on."""
    content = len(path.chain.content)
    begins = [*path.words, content]
    starts = places[:, 0].tolist()
    for word, low in enumerate(path.words):
        first, behind = path.firsts[word], path.firsts[word + 1]
        ends = word + 1 == len(path.words) and path.chain.stop != "length"
        for position in range(first, behind + ends):
            opens = position == first
            start = low if opens else starts[position] if position < len(starts) else content
            yield position, start, begins[word - 1] if opens and word else low, begins[word + 1]


def _vote(
    path: ChainPath,
    ways: list[list[tuple[Branch, float]]],
    position: int,
    taken: int,
    own: int,
    start: int,
    low: int,
    high: int,
) -> Distribution:
    """The distribution at one position.

    taken      what the chain says there
    own        the step under way
    start      where in the content what this piece stands for begins
    low, high  where the word under way begins and ends
    """
    votes: dict[int, float] = {}
    total = 0.0
    weighed: list[tuple[int, float]] = []
    # Earlier steps of the word, whose outcomes may reach as far as this: each weighs against what the chain took since.
    scale, step = 1.0, own - 1
    while step >= 0 and path.stops[step] > low and path.taken[step] > 1e-9:
        scale /= path.taken[step]
        weighed.append((step, scale))
        # What was not seen there rarely reaches beyond what was taken: counted against that.
        total += scale * path.taken[step] * path.unseen[step] * UNSEEN_AGREEMENT
        step -= 1
    weighed.append((own, 1.0))
    total += path.unseen[own] * (1.0 if path.starts[own] >= start else UNSEEN_AGREEMENT)
    # Later steps of the word: they say how what was taken goes on, so of each only the proportions of what it shows.
    weight, step = path.taken[own], own + 1
    while weight and step < len(path.starts) and path.starts[step - 1] < high:
        seen = 1.0 - path.unseen[step]
        weight = weight / seen if seen > 0.0 else 0.0
        weighed.append((step, weight))
        weight *= path.taken[step]
        step += 1
    for step, scale in weighed:
        for (parts, token, until, apart), probability in ways[step]:
            if position < parts:
                token = taken
            elif token is None:
                if position <= until and apart >= start:
                    total += scale * probability  # open
                continue
            elif position > parts:
                continue  # impossible
            votes[token] = votes.get(token, 0.0) + scale * probability
            total += scale * probability
    votes[taken] = votes.get(taken, 0.0) + weight
    total += weight
    return (
        {token: mass / total for token, mass in votes.items() if mass > MIN_TARGET_PROBABILITY * total}
        if total > 0.0
        else {}
    )
