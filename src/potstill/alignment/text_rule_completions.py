"""Counts how pre-tokens continue in the chains of a run. The rule `text` uses it to continue outcomes of the teacher.

    >>> from tokenizers import Tokenizer, models
    >>> letters = Tokenizer(models.BPE({letter: index for index, letter in enumerate("48 pens")}, []))
    >>> texts = [b"4", b"8", b" pens"], [b"4", b"8"], [b"4", b"8"], [b"4", b" pens"]
    >>> run = completions([Chain.from_tokens("q", i, tokens) for i, tokens in enumerate(texts)], letters)
    >>> run.suffixes("q", b"", b"4")  # (the rest of its pre-token, whether the text ended there, share)
    ((b'8', True, 0.5), (b'8', False, 0.25), (b'', False, 0.25))

There are two sources. The second one is used only if the first one does not have the text:

- The prefix tree of the question. If a chain of the same question begins with the same text, the outcomes of its next
  step are used, with the probabilities that the teacher gave.
- Suffixes. They are the texts with which pre-tokens went on after the same token in the same context (the same bytes
  before it in its pre-token). The chains of the question are counted; all chains of the run together count as one more.
  For a context that no chain has, the run's counts are those of the token at the start of any pre-token, or anywhere
  inside one. For a token that no chain has, they are those of numbers with the same number of digits.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

from potstill.alignment.exact_rules import StepProbabilities, check_chain, step_distributions
from potstill.alignment.pre_tokens import PreTokens, get_pre_tokens
from potstill.records import Chain

MAX_SUFFIXES: Final = 24  # of a token in one context; the probability of rarer suffixes stays open
MAX_CACHED_CONTEXTS: Final = 50_000  # a full cache is emptied, which changes no result
MIN_SHARE: Final = 5e-3  # a continuation with a smaller share of its outcome is not followed
RUN_WEIGHT: Final = 1.0  # weight of the whole run, as a number of chains of the question
_DIGIT: Final = re.compile(rb"[0-9]")
Ending = tuple[bytes, bool]  # the rest of a pre-token, and whether the text ended there
Suffix = tuple[bytes, bool, float]  # an ending and its share
SuffixCounts = dict[tuple[bytes, bytes], Counter[Ending]]  # by (bytes before a token in its pre-token, token)
WrittenTokens = tuple[tuple[int, ...], float]  # the student's tokens of a text, and the text's share


class Completions:
    """Counts how pre-tokens continue in a list of chains. The object keeps the chains.

    The data of one question are computed when they are needed, and replaced by the data of the next question. So
    transfer all chains of a question before those of the next one.
    """

    def __init__(self, chains: Iterable[Chain], pre_tokens: PreTokens) -> None:
        self.pre_tokens = pre_tokens
        self._chains: dict[str, list[Chain]] = defaultdict(list)
        for chain in chains:
            if chain.tokens:
                self._chains[chain.question].append(chain)
        # Counts over the run, the most specific context first: by the bytes before the token; by whether the token starts
        # a pre-token; for numbers, by the number of digits.
        self._exact: SuffixCounts = defaultdict(Counter)
        self._loose: SuffixCounts = defaultdict(Counter)
        self._shape: SuffixCounts = defaultdict(Counter)
        for group in self._chains.values():
            for before, token, ending in _token_suffixes(group, pre_tokens):
                self._exact[before, token][ending] += 1
                if _DIGIT.search(token):
                    self._shape[_digit_shape(before), _digit_shape(token)][ending] += 1
        for (before, token), endings in self._exact.items():
            self._loose[b"" if before else b" ", token].update(endings)
        self._most_common: dict[int, list[tuple[Ending, int]]] = {}  # by the id of one of these counters
        # The data of the current question.
        self._question: str | None = None
        self._prefix_tree: dict[bytes, StepProbabilities] = {}
        self._steps: dict[tuple[str, str, int], tuple[Chain, Sequence[StepProbabilities]]] = {}
        self._near: SuffixCounts = {}
        # By (before, token, first, teacher): the continuations encoded so far, and the suffixes that were not needed yet.
        # The second cache is for contexts that no chain of the question has: their suffixes are the same for all
        # questions.
        self._question_cache: dict[tuple, tuple[list[WrittenTokens], list[Suffix]]] = {}
        self._run_cache: dict[tuple, tuple[list[WrittenTokens], list[Suffix]]] = {}

    def __repr__(self) -> str:
        chains = sum(map(len, self._chains.values()))
        return f"Completions({chains} chains of {len(self._chains)} questions)"

    def prefix_tree(self, question: str) -> Mapping[bytes, StepProbabilities]:
        """Maps the beginning of a chain of this question, in bytes, to the probabilities of the outcomes after it."""
        self._open(question)
        return self._prefix_tree

    def suffixes(self, question: str, before: bytes, token: bytes) -> tuple[Suffix, ...]:
        """The suffixes of a pre-token that begins with `before` + `token`. Their shares add up to at most 1."""
        self._open(question)
        context = self.pre_tokens.context(before, token)
        near = self._near.get(context)
        # The fallback for numbers that no chain has: numbers with the same number of digits.
        counts = self._exact.get(context) or self._loose.get((b"" if context[0] else b" ", token))
        if counts is None:
            counts = self._shape.get((_digit_shape(context[0]), _digit_shape(token)))
        # The run's counts are a prior with the weight of one chain. They decide if the question has few chains, and
        # hardly matter if many of its chains agree. If one source is empty, the other one has all of the weight.
        shares: dict[Ending, float] = {}
        total_near = sum(near.values()) if near else 0
        weight = RUN_WEIGHT if total_near and counts else 0.0 if total_near else 1.0
        if near:
            for ending, count in near.most_common(MAX_SUFFIXES):
                shares[ending] = count / (total_near + weight)
        if counts and weight:
            total = counts.total()
            # Each counter is sorted once. Its id can be the key because the counters live as long as this object.
            common = self._most_common.get(id(counts))
            if common is None:
                common = self._most_common[id(counts)] = counts.most_common(MAX_SUFFIXES)
            for ending, count in common:
                shares[ending] = shares.get(ending, 0.0) + weight * count / total / (total_near + weight)
        return tuple((rest, ended, share) for (rest, ended), share in shares.items())

    def continuations(
        self, question: str, before: bytes, token: bytes, first: bool, teacher: PreTokens | None, least: float = 0.0
    ) -> list[WrittenTokens]:
        """The student's tokens of the pre-tokens that begin with `before` + `token`, each with its share, the most likely
        first. They include the end token if the text ended after the pre-token.

        first    whether the pre-token begins the text
        teacher  the teacher's pre-tokens; pre-tokens that its tokenizer would split differently do not count
        least    only continuations with at least this share are returned, whatever was asked for before
        """
        self._open(question)
        key = before, token, first, teacher
        in_question = self.pre_tokens.context(before, token) in self._near
        cache = self._question_cache if in_question else self._run_cache
        cached = cache.get(key)
        if cached is None:
            if len(cache) >= MAX_CACHED_CONTEXTS:
                cache.clear()
            suffixes = sorted(self.suffixes(question, before, token), key=lambda suffix: -suffix[2])
            cached = cache[key] = [], suffixes[::-1]
        # Encoding takes most of the time, so only suffixes with at least the least share are encoded.
        written, waiting = cached
        least = max(least, MIN_SHARE)
        while waiting and waiting[-1][2] >= least:
            rest, ended, share = waiting.pop()
            pre_token = before + token + rest
            if teacher is None or teacher.cuts(pre_token, len(before), len(before) + len(token)):
                eos = self.pre_tokens.encoder.vocabulary.eos if ended else None
                tokens = self.pre_tokens.tokens(pre_token, first)
                written.append((tokens if eos is None else (*tokens, eos), share))
        known = len(written)
        while known and written[known - 1][1] < least:  # an earlier call had a lower least share
            known -= 1
        return written if known == len(written) else written[:known]

    def steps(self, chain: Chain) -> Sequence[StepProbabilities]:
        """The probabilities of the outcomes at each step of a chain."""
        self._open(chain.question)
        cached = self._steps.get(chain.key)
        return cached[1] if cached and cached[0] is chain else step_distributions(chain)

    def _open(self, question: str) -> None:
        """Compute the data of a question, unless it is the current one."""
        if question == self._question:
            return
        chains = self._chains.get(question, [])
        self._question, self._prefix_tree, self._steps, self._question_cache = question, {}, {}, {}
        for chain in chains:
            rows = step_distributions(chain)
            self._steps[chain.key] = chain, rows
            # Chains that begin with the same text have the same distribution after it, so only the first one's is kept.
            for (start, _), row in zip([*chain.spans, (len(chain.content), 0)], rows, strict=False):
                self._prefix_tree.setdefault(chain.content[:start], row)
        self._near = defaultdict(Counter)
        for before, token, ending in _token_suffixes(chains, self.pre_tokens):
            self._near[before, token][ending] += 1


def completions(chains: Iterable[Chain], tokenizer: object) -> Completions:
    """How pre-tokens continue in the chains of a run, for `transfer` with the rule `text` and the same tokenizer.

    chains     at least the chains that will be transferred; chains without tokens are ignored
    tokenizer  the student's, which decides where pre-tokens begin
    """
    chains = list(chains)
    for chain in chains:
        check_chain(chain)
    return Completions(chains, get_pre_tokens(tokenizer))


def _token_suffixes(chains: Sequence[Chain], pre_tokens: PreTokens) -> Iterator[tuple[bytes, bytes, Ending]]:
    """For each token: the bytes before it in its pre-token, the token, and the ending of the pre-token."""
    for chain in chains:
        content = chain.content
        bounds = [*pre_tokens.boundaries(content), len(content)]
        begin = index = 0
        for token, (start, end) in zip(chain.tokens, chain.spans, strict=True):
            # Tokens and boundaries both ascend, so one pass over both lists is enough.
            while bounds[index] <= start and index + 1 < len(bounds):
                begin, index = bounds[index], index + 1
            # A token may end in a later pre-token; the ending is then the rest of that pre-token.
            after = index
            while bounds[after] < end:
                after += 1
            stop = bounds[after]
            if stop < len(content):
                yield *pre_tokens.context(content[begin:start], token), (content[end:stop], False)
            elif (
                chain.stop != "length"
            ):  # a text cut off at its token limit does not show the end of its last pre-token
                yield *pre_tokens.context(content[begin:start], token), (content[end:], True)


def _digit_shape(data: bytes) -> bytes:
    return _DIGIT.sub(b"0", data)
