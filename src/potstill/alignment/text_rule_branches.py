"""Where the outcomes that the teacher saw at a step, but did not take, lead the student: the branches of a chain.

An outcome branches off the chain's text. It is followed to the end of the pre-token in which it differs, with the
probabilities of the run's chains (`text_rule_completions`), and written in the student's tokens. Of those only the
first that is not the chain's own matters: up to it a branch says what the chain says, and after it the chain's tokens
are impossible for it. So branches that leave the chain at the same position with the same token are one branch.

    >>> class Letters:  # stands in for a tokenizer: one token a letter
    ...     def encode(self, text, add_special_tokens):
    ...         self.ids = list(text.encode())
    ...         return self
    >>> from potstill.alignment.exact_rules import step_distributions
    >>> from potstill.tokenization.encoder import Encoder
    >>> from potstill.tokenization.vocabulary import Vocabulary
    >>> table = tuple(bytes([byte]) for byte in range(256))
    >>> pre_tokens = PreTokens(Encoder(Vocabulary(table, {}, None, None, None, False, ""), Letters()))
    >>> chain = Chain.from_tokens("q", 0, [b"12"], [[(b"12", -0.5), (b"19", -1.2)]])
    >>> path = build_chain_path(chain, pre_tokens, list(b"12"), step_distributions(chain))
    >>> [(position, chr(token)) for position, token, _, _ in build_branches(path, 0, pre_tokens, None, None)]
    [(1, '9')]
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from potstill.alignment.exact_rules import StepProbabilities
from potstill.alignment.pre_tokens import PreTokens, is_whitespace
from potstill.alignment.text_rule_completions import MIN_SHARE, Completions, WrittenTokens
from potstill.prompts import find_answer_end
from potstill.records import END, Chain, End

MIN_OUTCOME_PROBABILITY: Final = 3e-4  # an outcome less likely than this counts as unseen
# An outcome that no chain continues and that is less likely than this is tail, whatever its first pieces are.
MIN_OPEN_PROBABILITY: Final = 5e-3
MIN_BRANCH_PROBABILITY: Final = 2e-5  # branches less likely than this are not told apart

# (leaves, token, until, apart), a plain tuple because there are many:
#   leaves  the first position of the student at which the branch does not say what the chain says
#   token   what it says there; None: unknown, the branch is open
#   until   of an open branch: the last position of which it may speak, the first one after its pre-token; else 0
#   apart   of an open branch: the first byte of the content that it may not share; else 0
Branch = tuple[int, int | None, int, int]


@dataclass(frozen=True, slots=True)
class ChainPath:
    """A chain as the student's pre-tokens and the teacher's steps. Offsets are bytes of the content.

    chain, ids       the chain, and the student's tokens of its text
    begins           [pre-tokens] where each pre-token begins
    unsure           the pre-tokens that a similar text might not have, because a piece of the student joins this one's
                     text to the one before
    firsts           [pre-tokens + 1] the position of each pre-token's first token, and the number of positions
    rows             [steps] the outcomes of each step that count
    starts, stops    [steps] where the token of each step starts and stops
    within           [steps] the pre-token in which each step starts
    taken, unseen    [steps] the probability of what the chain says (0 if its source did not show it), and what was not
                     shown
    answer           where the answer sentence begins, if it ends the text: after it a newline ends the text too
    """

    chain: Chain
    ids: Sequence[int]
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


def build_chain_path(
    chain: Chain, pre_tokens: PreTokens, ids: Sequence[int], steps: Sequence[StepProbabilities]
) -> ChainPath | None:
    """None where the tokens of the text are not those of its pre-tokens. A pre-token that the student's tokenizer drops
    altogether belongs to the one after it.

    ids    the tokens of the chain's text
    steps  the probabilities of the outcomes of each step
    """
    content, begins, firsts = chain.content, [0], [0]
    pieces: list[int] = []
    for end in [*pre_tokens.boundaries(content), len(content)]:
        tokens = pre_tokens.ids(content[begins[-1] : end], first=len(begins) == 1)
        if tokens or end == len(content):
            pieces += tokens
            begins.append(end)
            firsts.append(len(pieces))
    if pieces != list(ids):
        return None
    begins.pop()
    rows = [{outcome: p for outcome, p in step.items() if p >= MIN_OUTCOME_PROBABILITY} for step in steps]
    spans = [*chain.spans, (len(content), len(content))][: len(rows)]
    says = [*chain.tokens, END]
    return ChainPath(
        chain=chain,
        ids=ids,
        begins=begins,
        unsure=frozenset(
            i
            for i, begin in enumerate(begins)
            if begin and pre_tokens.is_unsure(content[begin - 1 : begin], content[begin : begin + 1])
        ),
        firsts=firsts,
        rows=rows,
        starts=[start for start, _ in spans],
        stops=[stop for _, stop in spans],
        within=[bisect_right(begins, start) - 1 for start, _ in spans],
        taken=[row.get(outcome, 0.0) for row, outcome in zip(rows, says, strict=False)],
        unseen=[max(0.0, 1.0 - sum(row.values())) for row in rows],
        answer=_answer_start(chain),
    )


def _answer_start(chain: Chain) -> int | None:
    text = chain.content.decode("latin-1")  # one character a byte
    start = text.lower().find("answer is")
    return start if start >= 0 and find_answer_end(text) == len(text) and chain.stop != "length" else None


def build_branches(
    path: ChainPath, step: int, pre_tokens: PreTokens, run: Completions | None, teacher: PreTokens | None
) -> dict[Branch, float]:
    """The branches of a step, each with its probability given the text before it.

    run      how pre-tokens continue in the run's chains; without it every outcome that could still grow is open
    teacher  the teacher's pre-tokens: branches that it would have cut differently do not count
    """
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
            pre_token -= 1  # no whitespace that would begin a new pre-token: the one before goes on
        until = path.firsts[pre_token + 1]
        begin, pre_token = _comparison_start(path, step, token, apart, pre_token, isinstance(outcome, End), pre_tokens)
        first = path.firsts[pre_token]
        # An outcome may hold the end of one pre-token and leave the chain in the next: the first one's tokens are the
        # chain's own, and need no comparison.
        skipped = first - path.firsts[begin]
        # 2. What the student would write for the texts to which the outcome grows. What is left over stays open.
        written = _write_outcome(path, step, outcome, apart, begin, probability, pre_tokens, run, teacher)
        texts = [(tokens, probability * share) for tokens, share in written]
        texts = [(tokens, mass) for tokens, mass in texts if mass > MIN_BRANCH_PROBABILITY]
        left = probability - sum([mass for _, mass in texts])
        if left > MIN_BRANCH_PROBABILITY:
            known: tuple[int, ...] = ()
            if not written and probability >= MIN_OPEN_PROBABILITY:
                # No chain continues it. Its first tokens may be the same however it goes on.
                before = content[path.begins[begin] : start]
                known = _settled_tokens(before, token, begin == 0, pre_tokens, teacher)
            texts.append((known, left))
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
    path: ChainPath, step: int, token: bytes, apart: int, pre_token: int, ended: bool, pre_tokens: PreTokens
) -> tuple[int, int]:
    """The pre-token of the chain from which on an outcome is written, and the one from which on it is compared: those
    in which it begins and in which it leaves the chain's text, or earlier ones where its own text has no boundary
    there."""
    content, start, begin = path.chain.content, path.starts[step], min(path.within[step], pre_token)
    boundary, after = path.begins[pre_token], token[apart - start : apart - start + 1]
    joined = path.unsure and not path.unsure.isdisjoint(range(begin, pre_token + 1))
    leaves_at_unsure = boundary and boundary == apart and pre_tokens.is_unsure(content[boundary - 1 : boundary], after)
    if not joined and not leaves_at_unsure:
        return begin, pre_token
    # Some boundary on the way is doubtful in this outcome's text: cut that text again, from far enough back, and go
    # back to boundaries that both texts have.
    base = begin
    while base and (
        path.begins[base] == apart or (base in path.unsure and apart - path.begins[base] <= pre_tokens.reach)
    ):
        base -= 1
    low = path.begins[base]
    common = {0, *pre_tokens.boundaries(content[low:start] + token, not base, ended)}
    while path.begins[begin] - low not in common:
        begin -= 1
    while path.begins[pre_token] - low not in common:
        pre_token -= 1
    return begin, pre_token


def _settled_tokens(
    before: bytes, token: bytes, first: bool, pre_tokens: PreTokens, teacher: PreTokens | None
) -> tuple[int, ...]:
    """The student's tokens of `before` and the token that are the same however the text goes on."""
    last = pre_tokens.last_boundary(before + token, len(before), first)
    known = pre_tokens.tokens(before[:last], first) if last else ()
    return known + pre_tokens.settled(before[last:], token, first and not last, teacher)


def _write_outcome(
    path: ChainPath,
    step: int,
    outcome: bytes | End,
    apart: int,
    pre_token: int,
    probability: float,
    pre_tokens: PreTokens,
    run: Completions | None,
    teacher: PreTokens | None,
) -> list[WrittenTokens]:
    """The student's tokens, from the chain's pre-token `pre_token` on, of the texts to which an outcome grows by the
    end of the pre-token in which it leaves the chain's text; with their shares, at most 1 in sum.

    apart        the first byte of the content that the outcome does not share
    probability  of the outcome: continuations that would come to less than MIN_BRANCH_PROBABILITY are not followed
    """
    content, start, first = path.chain.content, path.starts[step], pre_token == 0
    low, eos = path.begins[pre_token], pre_tokens.encoder.vocabulary.eos
    end = () if eos is None else (eos,)
    if isinstance(outcome, End):
        return [(pre_tokens.tokens(content[low:start], first) + end, 1.0)]
    in_answer = path.answer is not None and start > path.answer
    question, before, leaves = path.chain.question, content[:low], apart - low
    prefix_tree: Mapping[bytes, StepProbabilities] = run.prefix_tree(question) if run else {}
    written: list[WrittenTokens] = []
    # Texts that have not reached the end of their pre-token: (text before the last token, last token, share).
    growing: list[tuple[bytes, bytes, float]] = [(content[low:start], outcome, 1.0)]
    while growing:
        text, token, share = growing.pop()
        grown = text + token
        # It is finished at the newline after the answer, or at the end of the pre-token in which it leaves the chain.
        if in_answer and (newline := grown.find(b"\n", start - low)) >= 0:
            written.append((pre_tokens.tokens(grown[:newline], first) + end, share))
            continue
        if (boundary := pre_tokens.next_boundary(grown, leaves + 1, first)) is not None:
            written.append((pre_tokens.tokens(grown[:boundary], first), share))
            continue
        row = prefix_tree.get(before + grown)
        if row:  # a chain of the question was here: it goes on with the probabilities that its source saw
            total = sum(row.values())
            for next_outcome, p in row.items():
                next_share = share * p / total
                if next_share < MIN_SHARE or not next_outcome:
                    continue
                if isinstance(next_outcome, End):
                    written.append((pre_tokens.tokens(grown, first) + end, next_share))
                else:
                    growing.append((grown, next_outcome, next_share))
        elif run:  # else as pre-tokens continued elsewhere in the run
            last = pre_tokens.last_boundary(grown, len(text), first)
            lead = pre_tokens.tokens(grown[:last], first) if last else ()
            least = MIN_BRANCH_PROBABILITY / (probability * share)
            rest = run.continuations(question, text[last:], token, first and not last, teacher, least)
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
