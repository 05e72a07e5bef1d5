"""The rule `text`: a teacher's outcomes are texts, and each of them counts for what the student would write for it.

    >>> from tokenizers import Tokenizer, models
    >>> from potstill.alignment.pre_tokens import get_pre_tokens
    >>> student = get_pre_tokens(Tokenizer(models.BPE({digit: int(digit) for digit in "0123456789"}, [])))
    >>> chain = Chain.from_tokens("q", 0, [b"12"], [[(b"12", -0.223), (b"17", -1.61)]])  # 0.8 and 0.2
    >>> soft = apply_text_rule(chain, student, [1, 2], np.array([[0, 1], [1, 2]]))
    >>> [{token: round(p, 2) for token, p in row.items()} for row in soft.values()]
    [{1: 1.0}, {7: 0.2, 2: 0.8}]

An outcome that the teacher saw at a step but did not take branches off the chain's text. It is followed to the end of
the pre-token in which it differs, with the probabilities of the run's chains (`text_rule_completions`), and written in
the student's tokens: a *branch*. Of these tokens only the first that is not the chain's own matters: before it the
branch agrees with the chain, and after it the chain's tokens are impossible for it. So branches that leave the chain at
the same position with the same token are one branch.

At a position of the student, the branches that begin with the tokens already written vote for their next token; the
others are impossible there. The chain's own text is one more branch. Probability that was not shown, or whose
continuation is unknown, is the tail.

Several steps of the teacher may count at one position. The *current* step is the one whose token holds the start of the
position. A vote is the branch's probability given the text before the current step: of an earlier step, its probability
divided by those of the tokens that the chain took since; of a later step, multiplied by those taken before it. The votes
are divided by their sum, so that the distribution is conditional on the tokens already written.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from potstill.alignment.exact_rules import Distribution, StepProbabilities, step_distributions
from potstill.alignment.pre_tokens import PreTokens, is_whitespace
from potstill.alignment.text_rule_completions import MIN_SHARE, Completions, WrittenTokens
from potstill.prompts import find_answer_end
from potstill.records import END, Chain, End

MIN_TARGET_PROBABILITY: Final = 1e-6  # a smaller probability in a target is tail
MIN_OUTCOME_PROBABILITY: Final = 3e-4  # an outcome less likely than this counts as unseen
# An outcome that no chain continues is tail if it is less likely than this, even if its first tokens are known.
MIN_OPEN_PROBABILITY: Final = 5e-3
MIN_BRANCH_PROBABILITY: Final = 2e-5  # branches less likely than this are not told apart
# The estimated share of the probability not shown at a step whose texts begin with the tokens that the chain took.
UNSEEN_AGREEMENT: Final = 0.1
_MIN_TAKEN: Final = 1e-9  # earlier steps do not count after a token that the chain took with less than this

# (leaves, token, until, apart), a plain tuple because there are many:
#   leaves  the first position of the student at which the branch differs from the chain
#   token   the branch's token there; None: unknown, the branch is open
#   until   of an open branch: the last position at which it may count, the first one after its pre-token; else 0
#   apart   of an open branch: the first byte of the content that it may not share; else 0
Branch = tuple[int, int | None, int, int]


@dataclass(frozen=True, slots=True)
class _ChainPath:
    """A chain as the student's pre-tokens and the teacher's steps. Offsets are bytes of the content.

    ids              the student's tokens of the text
    run, teacher     as in `apply_text_rule`
    begins           [pre-tokens] where each pre-token begins
    unsure           the pre-tokens that a similar text might not have, because a piece of the student joins this one's
                     text to the one before
    firsts           [pre-tokens + 1] the position of each pre-token's first token, and the number of positions
    rows             [steps] the outcomes of each step that count
    starts, stops    [steps] where the token of each step starts and stops
    within           [steps] the pre-token in which each step starts
    taken, unseen    [steps] the probability of the chain's own token (0 if its source did not show it), and the
                     probability that was not shown
    answer           where the answer sentence begins, if it ends the text: after it a newline ends the text too
    """

    chain: Chain
    ids: Sequence[int]
    pre_tokens: PreTokens
    run: Completions | None
    teacher: PreTokens | None
    begins: list[int]
    unsure: frozenset[int]
    firsts: list[int]
    rows: Sequence[StepProbabilities]
    starts: list[int]
    stops: list[int]
    within: list[int]
    taken: list[float]
    unseen: list[float]
    answer: int | None


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
    run           how pre-tokens continue in the run's chains; without it every outcome that could still grow is open
    teacher       the teacher's pre-tokens: branches that it would have cut differently do not count
    """
    path = _build_path(chain, pre_tokens, ids, run, teacher)
    if path is None:
        return None
    branches = [list(_build_branches(path, step).items()) for step in range(len(path.rows))]
    content = len(chain.content)
    written, starts = [*ids, pre_tokens.encoder.vocabulary.eos], [*offsets[:, 0].tolist(), content]
    begins = [*path.begins, content]
    soft: dict[int, Distribution] = {}
    for pre_token, low in enumerate(path.begins):
        first, after = path.firsts[pre_token], path.firsts[pre_token + 1]
        # The end token is one more position of the last pre-token.
        after += pre_token + 1 == len(path.begins) and chain.stop != "length"
        for position in range(first, after):
            start, token = low if position == first else starts[position], written[position]
            # Tokens without width share their offset with the one after them; the first of them is the current step.
            step = bisect_left(path.starts, start)
            if step == len(path.starts) or path.starts[step] > start:
                step -= 1
            if token is None or step < 0:
                continue
            # The steps inside a pre-token count at its positions. Where its first token is, the pre-token before might
            # have gone on, so that the steps of that one count there too.
            lowest = begins[pre_token - 1] if position == first and pre_token else low
            if row := _vote(path, branches, position, token, step, start, lowest, begins[pre_token + 1]):
                soft[position] = row
    return soft


def _vote(
    path: _ChainPath,
    branches: list[list[tuple[Branch, float]]],
    position: int,
    taken: int,
    current: int,
    start: int,
    low: int,
    high: int,
) -> Distribution:
    """The distribution at one position, given the student's tokens before it.

    taken      the chain's token there
    current    the step whose token holds the start of this position
    start      where the text of this position begins in the content
    low, high  the steps that touch this range of the content count
    """
    votes: dict[int, float] = {}
    total = 0.0
    weighed: list[tuple[int, float]] = []
    # Earlier steps of the pre-token, whose outcomes may reach as far as this position: divide by the probability of the
    # tokens that the chain has taken since.
    scale, step = 1.0, current - 1
    while step >= 0 and path.stops[step] > low and path.taken[step] > _MIN_TAKEN:
        scale /= path.taken[step]
        weighed.append((step, scale))
        # Outcomes that were not shown there rarely agree with the tokens taken since: only a part is still possible.
        total += scale * path.taken[step] * path.unseen[step] * UNSEEN_AGREEMENT
        step -= 1
    weighed.append((current, 1.0))
    # At the current step nothing unseen is excluded yet if the position begins where the step does.
    total += path.unseen[current] * (1.0 if path.starts[current] >= start else UNSEEN_AGREEMENT)
    # Later steps of the pre-token divide the weight of the token that was taken among its continuations. Only the
    # proportions of their shown outcomes count, because those not shown tell nothing about this position.
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
                # Open: its tokens from here on are unknown. As far as it may still agree, it is tail.
                if position <= until and apart >= start:
                    total += scale * probability
                continue
            elif position > leaves:
                continue  # impossible: it has left the chain before
            votes[token] = votes.get(token, 0.0) + scale * probability
            total += scale * probability
    votes[taken] = votes.get(taken, 0.0) + weight  # the chain's own text
    total += weight
    if total <= 0.0:
        return {}
    return {token: mass / total for token, mass in votes.items() if mass > MIN_TARGET_PROBABILITY * total}


def _build_path(
    chain: Chain, pre_tokens: PreTokens, ids: Sequence[int], run: Completions | None, teacher: PreTokens | None
) -> _ChainPath | None:
    """None where the tokens of the text are not those of its pre-tokens. A pre-token that the student's tokenizer drops
    altogether belongs to the one after it."""
    content, begins, firsts = chain.content, [0], [0]
    pieces: list[int] = []
    for end in [*pre_tokens.boundaries(content), len(content)]:
        tokens = pre_tokens.ids(content[begins[-1] : end], len(begins) == 1)
        if tokens or end == len(content):
            pieces += tokens
            begins.append(end)
            firsts.append(len(pieces))
    if pieces != list(ids):
        return None
    begins.pop()
    steps = run.steps(chain) if run else step_distributions(chain)
    rows = [{outcome: p for outcome, p in step.items() if p >= MIN_OUTCOME_PROBABILITY} for step in steps]
    spans = [*chain.spans, (len(content), len(content))][: len(rows)]
    text = content.decode("latin-1")  # one character a byte
    answer = text.lower().find("answer is")
    ends_text = answer >= 0 and find_answer_end(text) == len(text) and chain.stop != "length"
    return _ChainPath(
        chain=chain,
        ids=ids,
        pre_tokens=pre_tokens,
        run=run,
        teacher=teacher,
        begins=begins,
        unsure=frozenset(
            index
            for index, begin in enumerate(begins)
            if begin and pre_tokens.is_unsure(content[begin - 1 : begin], content[begin : begin + 1])
        ),
        firsts=firsts,
        rows=rows,
        starts=[start for start, _ in spans],
        stops=[stop for _, stop in spans],
        within=[bisect_right(begins, start) - 1 for start, _ in spans],
        taken=[row.get(outcome, 0.0) for row, outcome in zip(rows, [*chain.tokens, END], strict=False)],
        unseen=[max(0.0, 1.0 - sum(row.values())) for row in rows],
        answer=answer if ends_text else None,
    )


def _build_branches(path: _ChainPath, step: int) -> dict[Branch, float]:
    """The branches of a step, each with its probability given the text before it."""
    content, start, ids = path.chain.content, path.starts[step], path.ids
    taken = path.chain.tokens[step] if step < len(path.chain.tokens) else END
    branches: dict[Branch, float] = {}
    for outcome, probability in path.rows[step].items():
        if outcome == taken:
            continue
        token = b"" if isinstance(outcome, End) else outcome
        # 1. Where in the content the outcome leaves the chain's text, and in which pre-token.
        shared = _shared_length(token, content, start)
        apart = start + shared
        pre_token = path.within[step]
        while pre_token + 1 < len(path.begins) and path.begins[pre_token + 1] <= apart:
            pre_token += 1
        if pre_token and path.begins[pre_token] == apart and not is_whitespace(token[shared : shared + 1]):
            pre_token -= 1  # no whitespace that would begin a new pre-token: the outcome lengthens the one before
        until = path.firsts[pre_token + 1]
        begin, pre_token = _comparison_start(path, step, token, apart, pre_token, isinstance(outcome, End))
        first = path.firsts[pre_token]
        # An outcome may hold the end of one pre-token and leave the chain in the next: the first one's tokens are the
        # chain's own, and need no comparison.
        skipped = first - path.firsts[begin]
        # 2. What the student would write for the texts to which the outcome grows. The rest of it stays open.
        written = _write_outcome(path, step, outcome, apart, begin, probability)
        texts = [(tokens, probability * share) for tokens, share in written]
        texts = [(tokens, mass) for tokens, mass in texts if mass > MIN_BRANCH_PROBABILITY]
        left = probability - sum([mass for _, mass in texts])
        if left > MIN_BRANCH_PROBABILITY:
            # Where no chain continues an outcome, its first tokens may be the same however it continues.
            is_known = not written and probability >= MIN_OPEN_PROBABILITY
            before = content[path.begins[begin] : start]
            texts.append((_settled_tokens(path, before, token, begin == 0) if is_known else (), left))
        # 3. The first token of each that is not the chain's.
        for tokens, mass in texts:
            leaves, index = first, skipped
            while index < len(tokens) and leaves < until and tokens[index] == ids[leaves]:
                leaves += 1
                index += 1
            branch = (leaves, tokens[index], 0, 0) if index < len(tokens) else (leaves, None, until, apart)
            branches[branch] = branches.get(branch, 0.0) + mass
    return branches


def _comparison_start(
    path: _ChainPath, step: int, token: bytes, apart: int, pre_token: int, ended: bool
) -> tuple[int, int]:
    """The pre-tokens of the chain from which on an outcome is written and compared: those in which it begins and in
    which it leaves the chain's text, or earlier ones where its own text has no boundary there."""
    content, start, begin = path.chain.content, path.starts[step], min(path.within[step], pre_token)
    boundary, after = path.begins[pre_token], token[apart - start : apart - start + 1]
    is_joined = path.unsure and not path.unsure.isdisjoint(range(begin, pre_token + 1))
    leaves_at_boundary = boundary and boundary == apart
    if not is_joined and not (
        leaves_at_boundary and path.pre_tokens.is_unsure(content[boundary - 1 : boundary], after)
    ):
        return begin, pre_token
    # Some boundary on the way is doubtful in this outcome's text: cut that text again, from far enough back, and return
    # to boundaries that both texts have.
    base = begin
    while base and (
        path.begins[base] == apart or (base in path.unsure and apart - path.begins[base] <= path.pre_tokens.reach)
    ):
        base -= 1
    low = path.begins[base]
    common = {0, *path.pre_tokens.boundaries(content[low:start] + token, not base, ended)}
    while path.begins[begin] - low not in common:
        begin -= 1
    while path.begins[pre_token] - low not in common:
        pre_token -= 1
    return begin, pre_token


def _settled_tokens(path: _ChainPath, before: bytes, token: bytes, first: bool) -> tuple[int, ...]:
    """The student's tokens of `before` and the token that are the same however the text continues."""
    last = path.pre_tokens.last_boundary(before + token, len(before), first)
    known = path.pre_tokens.tokens(before[:last], first) if last else ()
    return known + path.pre_tokens.settled(before[last:], token, first and not last, path.teacher)


def _write_outcome(
    path: _ChainPath, step: int, outcome: bytes | End, apart: int, pre_token: int, probability: float
) -> list[WrittenTokens]:
    """The student's tokens, from the chain's pre-token `pre_token` on, of the texts to which an outcome grows by the
    end of the pre-token in which it leaves the chain's text; with their shares, at most 1 in sum.

    apart        the first byte of the content that the outcome does not share
    probability  of the outcome: continuations with less than MIN_BRANCH_PROBABILITY are not followed
    """
    content, start, first, pre_tokens = path.chain.content, path.starts[step], pre_token == 0, path.pre_tokens
    low, eos = path.begins[pre_token], pre_tokens.encoder.vocabulary.eos
    end = () if eos is None else (eos,)
    if isinstance(outcome, End):
        return [(pre_tokens.tokens(content[low:start], first) + end, 1.0)]
    in_answer = path.answer is not None and start > path.answer
    question, before, leaves = path.chain.question, content[:low], apart - low
    prefix_tree: Mapping[bytes, StepProbabilities] = path.run.prefix_tree(question) if path.run else {}
    written: list[WrittenTokens] = []
    # Texts that have not reached the end of their pre-token: (text before the last token, last token, share).
    growing: list[tuple[bytes, bytes, float]] = [(content[low:start], outcome, 1.0)]
    while growing:
        text, token, share = growing.pop()
        grown = text + token
        # It is finished at the newline after the answer, or at the end of the pre-token in which it leaves the chain.
        if in_answer and (newline := grown.find(b"\n", start - low)) >= 0:
            written.append((pre_tokens.tokens(grown[:newline], first) + end, share))
        elif (boundary := pre_tokens.next_boundary(grown, leaves + 1, first)) is not None:
            written.append((pre_tokens.tokens(grown[:boundary], first), share))
        elif row := prefix_tree.get(before + grown):
            # A chain of the question has this text: it continues with the probabilities that the chain's source saw.
            total = sum(row.values())
            for next_outcome, p in row.items():
                next_share = share * p / total
                if next_share < MIN_SHARE or not next_outcome:
                    continue
                if isinstance(next_outcome, End):
                    written.append((pre_tokens.tokens(grown, first) + end, next_share))
                else:
                    growing.append((grown, next_outcome, next_share))
        elif path.run:  # else as pre-tokens continued elsewhere in the run
            last = pre_tokens.last_boundary(grown, len(text), first)
            lead = pre_tokens.tokens(grown[:last], first) if last else ()
            least = MIN_BRANCH_PROBABILITY / (probability * share)
            rest = path.run.continuations(question, text[last:], token, first and not last, path.teacher, least)
            written += rest if share == 1.0 and not lead else [(lead + tokens, share * p) for tokens, p in rest]
    return written


def _shared_length(token: bytes, content: bytes, start: int) -> int:
    """How many bytes of a token the content has from `start` on."""
    if content.startswith(token, start):
        return len(token)
    shared = 0  # most often none
    while shared < len(token) and start + shared < len(content) and content[start + shared] == token[shared]:
        shared += 1
    return shared
