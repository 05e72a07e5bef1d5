"""The rule `text`: each outcome of the teacher is a text, and counts for the tokens that the student would write for it.

    >>> from tokenizers import Tokenizer, models
    >>> from potstill.alignment.pre_tokens import get_pre_tokens
    >>> student = get_pre_tokens(Tokenizer(models.BPE({digit: int(digit) for digit in "0123456789"}, [])))
    >>> chain = Chain.from_tokens("q", 0, [b"12"], [[(b"12", -0.223), (b"17", -1.61)]])  # 0.8 and 0.2
    >>> soft = apply_text_rule(chain, student, [1, 2], np.array([[0, 1], [1, 2]]))
    >>> [{token: round(p, 2) for token, p in row.items()} for row in soft.values()]
    [{1: 1.0}, {7: 0.2, 2: 0.8}]

An outcome that the teacher gave at a step but did not sample branches off the chain's text. It is continued to the end of
the pre-token in which it differs from the chain, with the probabilities of the run's chains (`text_rule_completions`).
The student's tokens of the resulting text are a *branch*. Only the first token that is not the chain's own matters: the
branch agrees with the chain before it, and cannot have the chain's tokens after it. So branches that leave the chain at
the same position with the same token are one branch.

At a position of the student, each branch that agrees with all tokens before the position votes for its next token. The
other branches are impossible there. The chain's own text is one more branch. The tail is the probability that the teacher
did not show, and that of outcomes whose continuation is unknown.

The probability that the teacher did not show at a step has branches too, which are guesses: they continue the text before
the step as other chains of the run do, without the outcomes that were shown. They decide how much of this probability still
counts at a position. It is tail there, unless the step begins after the position: then guesses vote like other branches,
because what the teacher did show, the token before, contains them.

Several steps of the teacher may count at one position. The *current* step is the step whose token contains the start of
the position. A vote is the branch's probability given the text before the current step. For a branch of an earlier step,
that is its probability divided by the probabilities of the tokens that the chain took since; for a branch of a later
step, it is multiplied by the probabilities of the tokens between. The votes are divided by their sum, so that the
distribution is conditional on the tokens before the position.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import pairwise
from typing import Final

import numpy as np

from potstill.alignment.exact_rules import Distribution, StepProbabilities, step_distributions
from potstill.alignment.pre_tokens import PreTokens, is_whitespace
from potstill.alignment.text_rule_completions import MIN_SHARE, Completions, Context, WrittenTokens, new_digest
from potstill.prompts import find_answer_end
from potstill.records import END, Chain, End

MIN_TARGET_PROBABILITY: Final = 1e-6  # a target's smaller probabilities are tail
MIN_OUTCOME_PROBABILITY: Final = 3e-4  # a less likely outcome counts as unseen
# A less likely outcome that no chain continues is tail, even if its first tokens are known.
MIN_OPEN_PROBABILITY: Final = 5e-3
COMMON_PROBABILITY: Final = 0.02  # only the likeliest continuations of a less likely outcome are followed
MIN_BRANCH_PROBABILITY: Final = 2e-5  # less likely continuations get no branch: their probability stays open
MIN_UNSEEN: Final = 0.03
MIN_GUESS_PROBABILITY: Final = 1e-3  # less likely guesses are left out
# Without guesses: the part of the unseen probability of a step that is estimated to agree with the tokens that the chain
# took since.
UNSEEN_AGREEMENT: Final = 0.1
_MIN_TAKEN: Final = 1e-9  # a chain's token with a smaller probability ends the search for earlier steps that count

# (leaves, token, until, apart), a plain tuple because there are many. A branch is open if its tokens are unknown from
# the position `leaves` on.
#   leaves  the first position of the student at which the branch differs from the chain
#   token   the branch's token there; None for an open branch
#   until   for an open branch, the last position at which it may count, which is the first after its pre-token; else 0
#   apart   for an open branch, the first byte of the content at which it may differ; else 0
Branch = tuple[int, int | None, int, int]
Branches = list[tuple[Branch, float]]  # each with its probability given the text before its step


@dataclass(frozen=True, slots=True)
class _ChainPath:
    """A chain with the student's pre-tokens and the teacher's steps. Offsets count bytes of the content.

    ids              the student's tokens of the text
    run, teacher     as in `apply_text_rule`
    begins           [pre-tokens] the start of each pre-token
    digests          [pre-tokens] the digest of the text before each pre-token
    unsure           indices of the pre-tokens that a similar text might not have, because a piece of the student's
                     vocabulary may join the pre-token to the one before it
    firsts           [pre-tokens + 1] the position of each pre-token's first token, and the number of positions
    rows             [steps] each step's outcomes of at least MIN_OUTCOME_PROBABILITY, with their probabilities
    starts, stops    [steps] start and end of the token of each step
    within           [steps] the pre-token in which each step starts
    taken            [steps] the probability of the chain's own token; 0 if the teacher did not show it
    unseen           [steps] 1 minus the sum of the probabilities in `rows`
    answer           the start of the answer sentence, if the text ends with it; after that start a newline ends the
                     text too
    """

    chain: Chain
    ids: Sequence[int]
    pre_tokens: PreTokens
    run: Completions | None
    teacher: PreTokens | None
    begins: list[int]
    digests: list[blake2b]
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
    """The distributions by position; None if the tokens of the text differ from the tokens of its pre-tokens.

    pre_tokens    the student's
    ids, offsets  [n] and [n, 2]: the tokens of the chain's text, and their offsets in its content, in bytes
    run           how pre-tokens continue in the run's chains; without it every outcome whose text may go on is open
    teacher       the teacher's pre-tokens; branches that its tokenizer would split differently do not count
    """
    path = _build_path(chain, pre_tokens, ids, run, teacher)
    if path is None:
        return None
    branches = [list(_build_branches(path, step).items()) for step in range(len(path.rows))]
    guesses = [list(_build_guesses(path, step).items()) for step in range(len(path.rows))]
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
            # Tokens without width have the offset of the token after them; the first one with it is the current step.
            step = bisect_left(path.starts, start)
            if step == len(path.starts) or path.starts[step] > start:
                step -= 1
            if token is None or step < 0:
                continue
            # The steps inside a pre-token count at its positions. At its first position, the steps of the pre-token
            # before it count too, because that pre-token might have gone on.
            lowest = begins[pre_token - 1] if position == first and pre_token else low
            if row := _vote(path, branches, guesses, position, token, step, start, lowest, begins[pre_token + 1]):
                soft[position] = row
    return soft


def _vote(
    path: _ChainPath,
    branches: list[Branches],
    guesses: list[Branches],
    position: int,
    taken: int,
    current: int,
    start: int,
    low: int,
    high: int,
) -> Distribution:
    """The distribution at one position, given the student's tokens before it.

    taken      the chain's token at this position
    current    the step whose token contains the start of this position
    start      the start of this position's text in the content, in bytes
    low, high  the range of the content, in bytes: only the steps that touch it count
    """
    votes: dict[int, float] = {}
    total = 0.0
    weighed: list[tuple[int, float]] = []
    # The outcomes of earlier steps of the pre-token may reach this position. Divide their probabilities by those of the
    # tokens that the chain has taken since.
    scale, step = 1.0, current - 1
    while step >= 0 and path.stops[step] > low and path.taken[step] > _MIN_TAKEN:
        scale /= path.taken[step]
        weighed.append((step, scale))
        # Unseen outcomes rarely agree with the tokens taken since, so only a part of their probability still counts.
        if guesses[step]:
            total += scale * _agreeing_probability(guesses[step], position, start)
        else:
            total += scale * path.taken[step] * path.unseen[step] * UNSEEN_AGREEMENT
        step -= 1
    weighed.append((current, 1.0))
    if guesses[current]:
        total += _agreeing_probability(guesses[current], position, start)
    else:
        # All unseen outcomes of the current step are still possible if the position begins at the start of the step.
        total += path.unseen[current] * (1.0 if path.starts[current] >= start else UNSEEN_AGREEMENT)
    # Later steps of the pre-token divide the weight of the taken token among its continuations: in proportion to seen
    # outcomes and guesses, or to seen outcomes alone, because without guesses unseen ones say nothing about this position.
    weight, step = path.taken[current], current + 1
    while weight and step < len(path.starts) and path.starts[step - 1] < high:
        seen = 1.0 if guesses[step] else 1.0 - path.unseen[step]
        weight = weight / seen if seen > 0.0 else 0.0
        weighed.append((step, weight))
        weight *= path.taken[step]
        step += 1
    for step, scale in weighed:
        later = step > current and guesses[step]
        for (leaves, token, until, apart), probability in branches[step] + guesses[step] if later else branches[step]:
            if position < leaves:
                token = taken  # the branch still agrees with the chain
            elif token is None:
                # An open branch: its tokens from here on are unknown. It is tail as long as it may agree with the chain.
                if position <= until and apart >= start:
                    total += scale * probability
                continue
            elif position > leaves:
                continue  # impossible: the branch has left the chain before this position
            votes[token] = votes.get(token, 0.0) + scale * probability
            total += scale * probability
    votes[taken] = votes.get(taken, 0.0) + weight  # the chain's own text
    total += weight
    if total <= 0.0:
        return {}
    return {token: mass / total for token, mass in votes.items() if mass > MIN_TARGET_PROBABILITY * total}


def _agreeing_probability(guesses: Branches, position: int, start: int) -> float:
    """The probability of the guesses that agree with all tokens before a position, which begins at the byte `start`."""
    agreeing = [
        probability
        for (leaves, token, until, apart), probability in guesses
        if position < leaves
        or (position == leaves and token is not None)
        or (token is None and position <= until and apart >= start)
    ]
    return sum(agreeing, 0.0)


def _build_path(
    chain: Chain, pre_tokens: PreTokens, ids: Sequence[int], run: Completions | None, teacher: PreTokens | None
) -> _ChainPath | None:
    """The path of a chain; None if the tokens of the text differ from the tokens of its pre-tokens.

    A pre-token for which the student's tokenizer gives no token belongs to the pre-token after it.
    """
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
    digests, digest = [], new_digest()
    for begin, end in pairwise([*begins, len(content)]):
        digests.append(digest.copy())
        digest.update(content[begin:end])
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
        digests=digests,
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
    outcomes = path.rows[step]
    taken = path.chain.tokens[step] if step < len(path.chain.tokens) else END
    branches: dict[Branch, float] = {}
    if len(outcomes) == 1 and taken in outcomes:  # as at most steps
        return branches
    content, start, ids = path.chain.content, path.starts[step], path.ids
    for outcome, probability in outcomes.items():
        if outcome == taken:
            continue
        token = b"" if isinstance(outcome, End) else outcome
        # 1. Find the byte of the content at which the outcome leaves the chain's text, and the pre-token of this byte.
        shared = _shared_length(token, content, start)
        apart = start + shared
        pre_token = path.within[step]
        while pre_token + 1 < len(path.begins) and path.begins[pre_token + 1] <= apart:
            pre_token += 1
        if pre_token and path.begins[pre_token] == apart and not is_whitespace(token[shared : shared + 1]):
            pre_token -= 1  # without whitespace no new pre-token begins: the outcome lengthens the pre-token before
        until = path.firsts[pre_token + 1]
        begin, pre_token = _comparison_start(path, step, token, apart, pre_token, isinstance(outcome, End))
        first = path.firsts[pre_token]
        # An outcome may contain the end of one pre-token and leave the chain in the next. The tokens of the first
        # pre-token are the chain's own and need no comparison.
        skipped = first - path.firsts[begin]
        # 2. Find the student's tokens of the texts that continue the outcome. The rest of its probability stays open.
        written = _write_outcome(path, step, outcome, apart, begin, probability)
        texts = [(tokens, probability * share) for tokens, share in written]
        texts = [(tokens, mass) for tokens, mass in texts if mass > MIN_BRANCH_PROBABILITY]
        left = probability - sum([mass for _, mass in texts])
        if left > MIN_BRANCH_PROBABILITY:
            # If no chain continues an outcome, its first tokens may still be the same for all continuations.
            is_known = not written and probability >= MIN_OPEN_PROBABILITY
            before = content[path.begins[begin] : start]
            texts.append((_settled_tokens(path, before, token, begin == 0) if is_known else (), left))
        # 3. Find the first token of each text that is not the chain's.
        for tokens, mass in texts:
            branch = _find_branch(ids, tokens, first, skipped, until, apart)
            branches[branch] = branches.get(branch, 0.0) + mass
    return branches


def _find_branch(ids: Sequence[int], tokens: Sequence[int], first: int, skipped: int, until: int, apart: int) -> Branch:
    """The branch of a text: its first token that is not the chain's.

    ids           the student's tokens of the chain's text
    tokens        the tokens of the branch; those from the index `skipped` on are compared with `ids` from `first` on
    until, apart  as in `Branch`, for an open one
    """
    leaves, index = first, skipped
    while index < len(tokens) and leaves < until and tokens[index] == ids[leaves]:
        leaves += 1
        index += 1
    return (leaves, tokens[index], 0, 0) if index < len(tokens) else (leaves, None, until, apart)


def _build_guesses(path: _ChainPath, step: int) -> dict[Branch, float]:
    """Branches for the outcomes that the teacher did not show at a step, each with its probability given the text before it.

    They continue the text as the run's chains do. Empty if little is unseen, or if no chain continues with another outcome.
    """
    unseen, run = path.unseen[step], path.run
    if run is None or unseen < MIN_UNSEEN:
        return {}
    content, start, pre_token = path.chain.content, path.starts[step], path.within[step]
    begin, first = path.begins[pre_token], pre_token == 0
    last = content[max(begin, path.starts[step - 1]) : start] if step else b""
    context = Context(_previous(path, pre_token), content[begin:start], last)
    guesses: dict[Branch, float] = {}
    position, until = path.firsts[pre_token], path.firsts[pre_token + 1]
    least = MIN_GUESS_PROBABILITY / unseen
    for rest, ended, share in run.unseen_endings(path.chain.question, context, path.rows[step], first, least):
        tokens = run.tokens(context.text + rest, first, ended)
        apart = start + _shared_length(rest, content, start)
        branch = _find_branch(path.ids, tokens, position, 0, until, apart)
        guesses[branch] = guesses.get(branch, 0.0) + unseen * share
    return guesses


def _previous(path: _ChainPath, pre_token: int) -> bytes | None:
    """The text of the pre-token before one; None for the first one."""
    return path.chain.content[path.begins[pre_token - 1] : path.begins[pre_token]] if pre_token else None


def _comparison_start(
    path: _ChainPath, step: int, token: bytes, apart: int, pre_token: int, ended: bool
) -> tuple[int, int]:
    """The pre-token of the chain from which an outcome is written, and the one from which it is compared with the chain.

    These are the pre-token in which the outcome begins, and the one in which it leaves the chain's text. If the
    outcome's own text has no boundary at the start of one of them, an earlier pre-token takes its place.
    """
    content, start, begin = path.chain.content, path.starts[step], min(path.within[step], pre_token)
    boundary, after = path.begins[pre_token], token[apart - start : apart - start + 1]
    is_joined = path.unsure and not path.unsure.isdisjoint(range(begin, pre_token + 1))
    leaves_at_boundary = boundary and boundary == apart
    if not is_joined and not (
        leaves_at_boundary and path.pre_tokens.is_unsure(content[boundary - 1 : boundary], after)
    ):
        return begin, pre_token
    # One of the boundaries is doubtful in this outcome's text. Split that text again from an earlier, sure boundary, and
    # go back to boundaries that both texts have.
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
    """The student's first tokens of `before` + `token` that are the same for all continuations of the text."""
    last = path.pre_tokens.last_boundary(before + token, len(before), first)
    known = path.pre_tokens.tokens(before[:last], first) if last else ()
    return known + path.pre_tokens.settled(before[last:], token, first and not last, path.teacher)


def _write_outcome(
    path: _ChainPath, step: int, outcome: bytes | End, apart: int, pre_token: int, probability: float
) -> list[WrittenTokens]:
    """The student's tokens of the texts that continue an outcome, each with its share; the shares add up to at most 1.

    A text begins at the chain's pre-token `pre_token`, and ends with the pre-token in which it leaves the chain's text.

    apart        the first byte of the content that the outcome does not share
    probability  of the outcome; continuations with less than MIN_BRANCH_PROBABILITY are not followed
    """
    content, start, first, pre_tokens = path.chain.content, path.starts[step], pre_token == 0, path.pre_tokens
    low, eos = path.begins[pre_token], pre_tokens.encoder.vocabulary.eos
    end = () if eos is None else (eos,)
    if isinstance(outcome, End):
        return [(pre_tokens.tokens(content[low:start], first) + end, 1.0)]
    in_answer = path.answer is not None and start > path.answer
    question, before, leaves = path.chain.question, path.digests[pre_token], apart - low
    prefix_tree: Mapping[bytes, StepProbabilities] = path.run.prefix_tree(question) if path.run else {}
    written: list[WrittenTokens] = []
    # The texts that have not reached the end of their pre-token: (text before the last token, last token, share).
    growing: list[tuple[bytes, bytes, float]] = [(content[low:start], outcome, 1.0)]
    while growing:
        text, token, share = growing.pop()
        grown = text + token
        # A text is finished at the newline after the answer, or at the end of the pre-token in which it leaves the chain.
        if in_answer and (newline := grown.find(b"\n", start - low)) >= 0:
            written.append((pre_tokens.tokens(grown[:newline], first) + end, share))
        elif (boundary := pre_tokens.next_boundary(grown, leaves + 1, first)) is not None:
            written.append((pre_tokens.tokens(grown[:boundary], first), share))
        elif row := prefix_tree.get(_digest_after(before, grown)):
            # A chain of the question begins with this text: continue it with the chain's probabilities at its next step.
            total = sum(row.values())
            for next_outcome, p in row.items():
                next_share = share * p / total
                if next_share < MIN_SHARE or not next_outcome:
                    continue
                if isinstance(next_outcome, End):
                    written.append((pre_tokens.tokens(grown, first) + end, next_share))
                else:
                    growing.append((grown, next_outcome, next_share))
        elif path.run:  # otherwise continue it as pre-tokens continue elsewhere in the run
            last = pre_tokens.last_boundary(grown, len(text), first)
            lead = pre_tokens.tokens(grown[:last], first) if last else ()
            rare = probability * share < COMMON_PROBABILITY
            previous = (
                grown[pre_tokens.last_boundary(grown, last - 1, first) : last] if last else _previous(path, pre_token)
            )
            context = Context(previous, grown[last:], token)
            rest = path.run.continuations(question, context, first and not last, path.teacher, rare)
            written += rest if share == 1.0 and not lead else [(lead + tokens, share * p) for tokens, p in rest]
    return written


def _digest_after(before: blake2b, text: bytes) -> bytes:
    """The digest of a text that comes after a text with a known digest."""
    digest = before.copy()
    digest.update(text)
    return digest.digest()


def _shared_length(token: bytes, content: bytes, start: int) -> int:
    """The length in bytes of the common prefix of a token and the content from `start` on."""
    if content.startswith(token, start):
        return len(token)
    shared = 0  # in most cases it stays 0
    while shared < len(token) and start + shared < len(content) and content[start + shared] == token[shared]:
        shared += 1
    return shared
