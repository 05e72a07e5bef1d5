"""How pre-tokens continue in the chains of a run: the rule `text` completes outcomes that a chain did not take with it.

    >>> from tokenizers import Tokenizer, models
    >>> letters = Tokenizer(models.BPE({letter: index for index, letter in enumerate("48 pens")}, []))
    >>> texts = [b"4", b"8", b" pens"], [b"4", b"8"], [b"4", b"8"], [b"4", b" pens"]
    >>> run = completions([Chain.from_tokens("q", i, tokens) for i, tokens in enumerate(texts)], letters)
    >>> run.suffixes("q", b"", b"4")  # (the rest of its pre-token, whether the text ended there, share)
    ((b'8', True, 0.5), (b'8', False, 0.25), (b'', False, 0.25))

There are two sources, the nearer one first:

- The prefix tree of the question. A chain of the same question with the same text before gives the probabilities of its
  source at the next step, not counts.
- Suffixes. How pre-tokens continued after the same token in the same context (the same bytes before it in its
  pre-token): in the chains of the question, and with the weight of one more chain in those of the run. Where neither
  has that context: after the token at the start, or anywhere inside, of a pre-token. Where no chain has the token:
  after numbers of as many digits.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

from potstill.alignment.exact_rules import StepProbabilities, check_chain, step_distributions
from potstill.alignment.pre_tokens import PreTokens, get_pre_tokens
from potstill.records import Chain

MAX_SUFFIXES: Final = 24  # that are kept of one token in one context: what is rarer stays open
MAX_CACHED_CONTEXTS: Final = 50_000  # then the cache is emptied, which changes no result
MIN_SHARE: Final = 5e-3  # a branch with a smaller share of its outcome is not followed
RUN_WEIGHT: Final = 1.0  # chains that the whole run counts for beside those of the question
_DIGIT: Final = re.compile(rb"[0-9]")
Ending = tuple[bytes, bool]  # the rest of a pre-token, and whether the text ended there
Suffix = tuple[bytes, bool, float]  # the same with its share
SuffixCounts = dict[tuple[bytes, bytes], Counter[Ending]]  # by what stands before a token in its pre-token, and itself
WrittenTokens = tuple[tuple[int, ...], float]  # the student's tokens of a text, and its share


class Completions:
    """How pre-tokens continue in some chains. It holds the chains; what belongs to one question is computed when it is
    needed and replaced by the next question's, so transfer chains question by question."""

    def __init__(self, chains: Iterable[Chain], pre_tokens: PreTokens) -> None:
        self.pre_tokens = pre_tokens
        self._chains: dict[str, list[Chain]] = defaultdict(list)
        for chain in chains:
            if chain.tokens:
                self._chains[chain.question].append(chain)
        # Counts over the run, from the most to the least specific context: of the same bytes before the token; of the
        # token at the start or inside of a pre-token; of numbers with as many digits.
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
        # What belongs to the current question.
        self._question: str | None = None
        self._prefix_tree: dict[bytes, StepProbabilities] = {}
        self._steps: dict[tuple[str, str, int], tuple[Chain, Sequence[StepProbabilities]]] = {}
        self._near: SuffixCounts = {}
        # Per (before, token, first, teacher): the tokens written so far, and the suffixes that were not needed yet. The
        # second cache is for contexts that no chain of the question has: their suffixes are the same for all questions.
        self._question_cache: dict[tuple, tuple[list[WrittenTokens], list[Suffix]]] = {}
        self._run_cache: dict[tuple, tuple[list[WrittenTokens], list[Suffix]]] = {}

    def __repr__(self) -> str:
        chains = sum(map(len, self._chains.values()))
        return f"Completions({chains} chains of {len(self._chains)} questions)"

    def prefix_tree(self, question: str) -> Mapping[bytes, StepProbabilities]:
        """Content to the outcomes that a chain of this question saw after it, with their probabilities."""
        self._open(question)
        return self._prefix_tree

    def suffixes(self, question: str, before: bytes, token: bytes) -> tuple[Suffix, ...]:
        """How a pre-token continues after `before` and the token; the shares add up to at most 1."""
        self._open(question)
        context = self.pre_tokens.context(before, token)
        near = self._near.get(context)
        # Digits last, because numbers that no chain has are still numbers.
        counts = self._exact.get(context) or self._loose.get((b"" if context[0] else b" ", token))
        if counts is None:
            counts = self._shape.get((_digit_shape(context[0]), _digit_shape(token)))
        # The run's counts are a prior with the weight of one chain: they fill what few chains of the question leave
        # open, and hardly change what many agree on. Without one of the two sources the other has all of the weight.
        shares: dict[Ending, float] = {}
        total_near = sum(near.values()) if near else 0
        weight = RUN_WEIGHT if total_near and counts else 0.0 if total_near else 1.0
        if near:
            for ending, count in near.most_common(MAX_SUFFIXES):
                shares[ending] = count / (total_near + weight)
        if counts and weight:
            total = counts.total()
            # The counters live as long as this object, so that their ids are keys. Sorting each of them once is enough.
            common = self._most_common.get(id(counts))
            if common is None:
                common = self._most_common[id(counts)] = counts.most_common(MAX_SUFFIXES)
            for ending, count in common:
                shares[ending] = shares.get(ending, 0.0) + weight * count / total / (total_near + weight)
        return tuple((rest, ended, share) for (rest, ended), share in shares.items())

    def continuations(
        self, question: str, before: bytes, token: bytes, first: bool, teacher: PreTokens | None, least: float = 0.0
    ) -> list[WrittenTokens]:
        """The student's tokens of the pre-tokens that begin with `before` and the token, each with its share, the
        likeliest first; the end token included where the text ended.

        first    whether the pre-token begins the text
        teacher  pre-tokens that it would have cut differently do not count
        least    all continuations of at least this share are returned, and perhaps others
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
        # Encoding takes the time, so only as many suffixes are written as the least share requires.
        written, waiting = cached
        least = max(least, MIN_SHARE)
        while waiting and waiting[-1][2] >= least:
            rest, ended, share = waiting.pop()
            pre_token = before + token + rest
            if teacher is None or teacher.cuts(pre_token, len(before), len(before) + len(token)):
                eos = self.pre_tokens.encoder.vocabulary.eos if ended else None
                tokens = self.pre_tokens.tokens(pre_token, first)
                written.append((tokens if eos is None else (*tokens, eos), share))
        return written

    def steps(self, chain: Chain) -> Sequence[StepProbabilities]:
        """The probability of each outcome at each step of a chain."""
        self._open(chain.question)
        cached = self._steps.get(chain.key)
        return cached[1] if cached and cached[0] is chain else step_distributions(chain)

    def _open(self, question: str) -> None:
        """Compute what belongs to one question, unless it is the current one."""
        if question == self._question:
            return
        chains = self._chains.get(question, [])
        self._question, self._prefix_tree, self._steps, self._question_cache = question, {}, {}, {}
        for chain in chains:
            rows = step_distributions(chain)
            self._steps[chain.key] = chain, rows
            # Chains that begin with the same text saw the same distribution after it: the first one's is kept.
            for (start, _), row in zip([*chain.spans, (len(chain.content), 0)], rows, strict=False):
                self._prefix_tree.setdefault(chain.content[:start], row)
        self._near = defaultdict(Counter)
        for before, token, ending in _token_suffixes(chains, self.pre_tokens):
            self._near[before, token][ending] += 1


def completions(chains: Iterable[Chain], tokenizer: object) -> Completions:
    """How pre-tokens continue in the chains of a run, for `transfer` with the rule `text` and the same tokenizer.

    chains     at least those that will be transferred; chains without tokens count for nothing
    tokenizer  the student's: it decides where pre-tokens begin
    """
    chains = list(chains)
    for chain in chains:
        check_chain(chain)
    return Completions(chains, get_pre_tokens(tokenizer))


def _token_suffixes(chains: Sequence[Chain], pre_tokens: PreTokens) -> Iterator[tuple[bytes, bytes, Ending]]:
    """For each token: the bytes before it since the last whitespace, itself, and how its pre-token ends."""
    for chain in chains:
        content = chain.content
        bounds = [*pre_tokens.boundaries(content), len(content)]
        begin = index = 0
        for token, (start, end) in zip(chain.tokens, chain.spans, strict=True):
            # Tokens and boundaries both ascend: one pass over the two lists.
            while bounds[index] <= start and index + 1 < len(bounds):
                begin, index = bounds[index], index + 1
            # A token may reach into a later pre-token: the rest is the rest of that one.
            after = index
            while bounds[after] < end:
                after += 1
            stop = bounds[after]
            if stop < len(content):
                yield *pre_tokens.context(content[begin:start], token), (content[end:stop], False)
            elif chain.stop != "length":  # a text cut off by its token limit does not show how its last pre-token ends
                yield *pre_tokens.context(content[begin:start], token), (content[end:], True)


def _digit_shape(data: bytes) -> bytes:
    return _DIGIT.sub(b"0", data)
