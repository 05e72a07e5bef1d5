"""The rule `text`: a teacher's outcomes are texts, and each of them counts for what the student would write for it.

    >>> class Letters:  # stands in for a tokenizer: one token a letter
    ...     def encode(self, text, add_special_tokens):
    ...         self.ids = list(text.encode())
    ...         return self
    >>> from potstill.tokenization.encoder import Encoder
    >>> from potstill.tokenization.vocabulary import Vocabulary
    >>> table = tuple(bytes([byte]) for byte in range(256))
    >>> student = PreTokens(Encoder(Vocabulary(table, {}, None, None, None, False, ""), Letters()))
    >>> chain = Chain.from_tokens("q", 0, [b"12"], [[(b"12", -0.223), (b"17", -1.61)]])  # 0.8 and 0.2
    >>> soft = apply_text_rule(chain, student, list(b"12"), np.array([[0, 1], [1, 2]]))
    >>> [{chr(token): round(p, 2) for token, p in row.items()} for row in soft.values()]
    [{'1': 1.0}, {'7': 0.2, '2': 0.8}]

Every outcome that was seen but not taken is followed to the end of its pre-token and written in the student's tokens: a
*branch* (module `text_rule_branches`). At a position of the student, the branches that begin with the tokens already
written vote for their next token, each with its probability; the others are impossible there. The chain's own text is
one more branch. What was not shown, and what has no known continuation, is the tail.
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
# Of what a step did not show, the estimated share that begins with the tokens which were written into or after it.
UNSEEN_AGREEMENT: Final = 0.1
_MIN_TAKEN: Final = 1e-9  # after a token that the chain took with less than this, earlier steps say nothing


def apply_text_rule(
    chain: Chain,
    pre_tokens: PreTokens,
    ids: Sequence[int],
    offsets: np.ndarray,
    run: Completions | None = None,
    teacher: PreTokens | None = None,
) -> dict[int, Distribution] | None:
    """Distributions by position; None where the tokens of the text are not those of its pre-tokens.

    pre_tokens    the student's
    ids, offsets  the tokens of the chain's text and their offsets [n, 2] in its content
    run, teacher  as in `build_branches`
    """
    path = build_chain_path(chain, pre_tokens, ids, run.steps(chain) if run else step_distributions(chain))
    if path is None:
        return None
    branches = [list(build_branches(path, step, pre_tokens, run, teacher).items()) for step in range(len(path.rows))]
    taken: list[int | None] = [*ids, pre_tokens.encoder.vocabulary.eos]
    soft: dict[int, Distribution] = {}
    for position, start, low, high in _position_ranges(path, offsets):
        token = taken[position]
        # Tokens without width share their offset with the one after them; the first of them is the current step.
        step = bisect_left(path.starts, start)
        if step == len(path.starts) or path.starts[step] > start:
            step -= 1
        if token is None or step < 0:
            continue
        row = _vote(path, branches, position, token, step, start, low, high)
        if row:
            soft[position] = row
    return soft


def _position_ranges(path: ChainPath, offsets: np.ndarray) -> Iterator[tuple[int, int, int, int]]:
    """Each position; where in the content what it stands for begins; and the range of the content whose steps speak of
    it: its pre-token. The first token of a pre-token stands where the pre-token before might have gone on, so the range
    of that position includes it."""
    content = len(path.chain.content)
    begins = [*path.begins, content]
    starts = offsets[:, 0].tolist()
    for pre_token, low in enumerate(path.begins):
        first, after = path.firsts[pre_token], path.firsts[pre_token + 1]
        # The end token is one more position of the last pre-token.
        ends = pre_token + 1 == len(path.begins) and path.chain.stop != "length"
        for position in range(first, after + ends):
            opens = position == first
            start = low if opens else starts[position] if position < len(starts) else content
            yield position, start, begins[pre_token - 1] if opens and pre_token else low, begins[pre_token + 1]


def _vote(
    path: ChainPath,
    branches: list[list[tuple[Branch, float]]],
    position: int,
    taken: int,
    current: int,
    start: int,
    low: int,
    high: int,
) -> Distribution:
    """The distribution at one position, given the student's tokens before it.

    taken      what the chain says there
    current    the step whose token holds the start of this position
    start      where in the content what this position stands for begins
    low, high  where the steps that speak of it begin and end

    The distribution is conditional: votes of every branch that agrees with the tokens so far, divided by their sum.
    A branch of another step weighs as it would if it were counted from the current step.
    """
    votes: dict[int, float] = {}
    total = 0.0
    weighed: list[tuple[int, float]] = []
    # Earlier steps of the pre-token, whose outcomes may reach as far as this position. Since them the chain has taken
    # tokens with probability `taken`; a branch that did not take them weighs more by as much.
    scale, step = 1.0, current - 1
    while step >= 0 and path.stops[step] > low and path.taken[step] > _MIN_TAKEN:
        scale /= path.taken[step]
        weighed.append((step, scale))
        # What was not seen there rarely agrees with what was taken since, so only a part of it is still possible.
        total += scale * path.taken[step] * path.unseen[step] * UNSEEN_AGREEMENT
        step -= 1
    weighed.append((current, 1.0))
    # At the current step nothing unseen is excluded yet if the position begins where the step does.
    total += path.unseen[current] * (1.0 if path.starts[current] >= start else UNSEEN_AGREEMENT)
    # Later steps of the pre-token say how what was taken goes on. Their unseen part says nothing about this position,
    # so of each only the proportions of what it shows count.
    weight, step = path.taken[current], current + 1
    while weight and step < len(path.starts) and path.starts[step - 1] < high:
        seen = 1.0 - path.unseen[step]
        weight = weight / seen if seen > 0.0 else 0.0
        weighed.append((step, weight))
        weight *= path.taken[step]
        step += 1
    for step, scale in weighed:
        for (leaves, token, until, apart), probability in branches[step]:
            if position < leaves:
                token = taken  # still together with the chain
            elif token is None:
                # Open: what it says from here on is unknown. As far as it may still agree, it is tail.
                if position <= until and apart >= start:
                    total += scale * probability
                continue
            elif position > leaves:
                continue  # impossible: it has said something else than the chain
            votes[token] = votes.get(token, 0.0) + scale * probability
            total += scale * probability
    votes[taken] = votes.get(taken, 0.0) + weight  # the chain's own text
    total += weight
    if total <= 0.0:
        return {}
    return {token: mass / total for token, mass in votes.items() if mass > MIN_TARGET_PROBABILITY * total}
