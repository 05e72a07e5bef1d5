"""What the chains of a run say about how a word goes on.

    >>> from potstill.tokenization.encoder import Encoder
    >>> from potstill.tokenization.vocabulary import Vocabulary
    >>> class Letters:  # stands in for a tokenizer: one token a letter
    ...     def encode(self, text, add_special_tokens):
    ...         self.ids = list(text.encode())
    ...         return self
    >>> every = tuple(bytes([byte]) for byte in range(256))
    >>> words = PreTokens(Encoder(Vocabulary(every, {}, None, None, None, False, ""), Letters()))
    >>> texts = [b"4", b"8", b" pens"], [b"4", b"8"], [b"4", b"8"], [b"4", b" pens"]
    >>> run = Completions([Chain.from_tokens("q", i, tokens) for i, tokens in enumerate(texts)], words)
    >>> run.rests("q", b"", b"4")  # (the rest of its word, whether the text ended there, share)
    ((b'8', True, 0.5), (b'8', False, 0.25), (b'', False, 0.25))

Two sources, the nearer one first. A chain of the same question with the same text before says what its source saw at
the next step (`nodes`): probabilities, not counts. Else `rests`: how words went on behind the same token at the same
place in a word (the same letters before it), in the chains of the question, and as much as one more chain in those of
the run; where neither has that place, behind the token at any start or any inside of a word; and where no chain has the
token, behind numbers of as many digits.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

from potstill.alignment.exact_rules import StepProbabilities, step_distributions
from potstill.alignment.pre_tokens import PreTokens, get_pre_tokens
from potstill.records import Chain

MAX_SUFFIXES: Final = 24  # rests remembered of one token at one place: what is rarer stays open
Suffix = tuple[bytes, bool, float]
TokenContext = tuple[bytes, bytes]
ChainKey = tuple[str, str, int]
Ending = tuple[bytes, bool]
SuffixCounts = dict[TokenContext, Counter[Ending]]
CommonSuffixes = list[tuple[Ending, int]]
WrittenTokens = tuple[tuple[int, ...], float]
SuffixCache = dict[tuple[bytes, bytes, bool, PreTokens | None], tuple[list[WrittenTokens], list[Suffix]]]
MAX_CACHED_CONTEXTS: Final = 50_000  # places remembered; then all are forgotten, which changes no result
MIN_SHARE: Final = 5e-3  # a way with a smaller share of its outcome is not followed
RUN_WEIGHT: Final = 1.0  # chains that the whole run counts for beside those of the question
_DIGIT: Final = re.compile(rb"[0-9]")


class Completions:
    """How words go on in some chains. It holds the chains; what belongs to one question is made when it is asked for,
    so that chains should be transferred question by question."""

    def __init__(self, chains: Iterable[Chain], words: PreTokens) -> None:
        self.words = words
        self._chains: dict[str, list[Chain]] = defaultdict(list)
        for chain in chains:
            if chain.tokens:
                self._chains[chain.question].append(chain)
        self._exact: SuffixCounts = defaultdict(Counter)
        self._shape: SuffixCounts = defaultdict(Counter)
        for own in self._chains.values():
            for before, token, rest in _token_suffixes(own, words):
                self._exact[before, token][rest] += 1
                if _DIGIT.search(token):
                    self._shape[_digit_shape(before), _digit_shape(token)][rest] += 1
        self._loose: SuffixCounts = defaultdict(Counter)
        for (before, token), rests in self._exact.items():
            self._loose[b"" if before else b" ", token].update(rests)
        self._common: dict[int, CommonSuffixes] = {}
        self._question: str | None = None
        self._nodes: dict[bytes, StepProbabilities] = {}
        self._steps: dict[ChainKey, tuple[Chain, Sequence[StepProbabilities]]] = {}
        self._near: SuffixCounts = {}
        # (before, token, first, teacher) to what is written of its words, and the rests that nobody needed yet: of the
        # places that this question's chains have, and of all others, which are the same for every question.
        self._here: SuffixCache = {}
        self._anywhere: SuffixCache = {}

    def nodes(self, question: str) -> Mapping[bytes, StepProbabilities]:
        """Content to the outcomes, with their probabilities, that a chain of this question saw behind it."""
        self._open(question)
        return self._nodes

    def rests(self, question: str, before: bytes, token: bytes) -> tuple[Suffix, ...]:
        """How a word goes on behind a token that stands behind `before` in it; shares add up to at most 1."""
        self._open(question)
        place = self.words.place(before, token)
        wide = self._exact.get(place) or self._loose.get((b"" if place[0] else b" ", token))
        if wide is None:
            wide = self._shape.get((_digit_shape(place[0]), _digit_shape(token)))
        return _suffix_shares(self._near.get(place), wide, self._commonest(wide))

    def _commonest(self, wide: Counter[Ending] | None) -> CommonSuffixes:
        """The most frequent rests of a place of the run, found once."""
        if wide is None:
            return []
        known = self._common.get(id(wide))
        if known is None:
            known = self._common[id(wide)] = wide.most_common(MAX_SUFFIXES)
        return known

    def words_from(
        self, question: str, before: bytes, token: bytes, first: bool, teacher: PreTokens | None, least: float = 0.0
    ) -> list[WrittenTokens]:
        """The student's tokens of the words that begin with `before` and the token, each with its share, the likeliest
        first; the end token included where the text ended. All those of at least a share, and perhaps others.

        first    whether the word begins the text
        teacher  ways that it would have cut differently do not count
        """
        self._open(question)
        key = before, token, first, teacher
        memory = self._here if self.words.place(before, token) in self._near else self._anywhere
        known = memory.get(key)
        if known is None:
            if len(memory) >= MAX_CACHED_CONTEXTS:
                memory.clear()
            rests = sorted(self.rests(question, before, token), key=lambda rest: -rest[2])
            known = memory[key] = [], rests[::-1]
        written, waiting = known
        least = max(least, MIN_SHARE)
        while waiting and waiting[-1][2] >= least:
            rest, ended, share = waiting.pop()
            word = before + token + rest
            if teacher is None or teacher.cuts(word, len(before), len(before) + len(token)):
                eos = self.words.coder.vocabulary.eos if ended else None
                tokens = self.words.tokens(word, first)
                written.append((tokens if eos is None else (*tokens, eos), share))
        return written

    def steps(self, chain: Chain) -> Sequence[StepProbabilities]:
        """The probabilities of the outcomes of each step of a chain."""
        self._open(chain.question)
        known = self._steps.get(chain.key)
        return known[1] if known and known[0] is chain else step_distributions(chain)

    def _open(self, question: str) -> None:
        if question == self._question:
            return
        own = self._chains.get(question, [])
        self._question, self._nodes, self._steps, self._here = question, {}, {}, {}
        for chain in own:
            rows = step_distributions(chain)
            self._steps[chain.key] = chain, rows
            for (start, _), row in zip([*chain.spans, (len(chain.content), 0)], rows, strict=False):
                self._nodes.setdefault(chain.content[:start], row)
        self._near = defaultdict(Counter)
        for before, token, rest in _token_suffixes(own, self.words):
            self._near[before, token][rest] += 1


def completions(chains: Iterable[Chain], tokenizer: object) -> Completions:
    """How words go on in the chains of a run, for `transfer` with the rule `text` and the same tokenizer.

    chains     those that will be transferred, at least; only those with tokens say anything
    tokenizer  the student's: it decides what a word is
    """
    return Completions(chains, get_pre_tokens(tokenizer))


def _token_suffixes(chains: Sequence[Chain], words: PreTokens) -> Iterator[tuple[bytes, bytes, tuple[bytes, bool]]]:
    """Of each token: what is before it since the last white space, itself, and the rest of its word with whether the
    text ends."""
    for chain in chains:
        content = chain.content
        seams = [*words.seams(content), len(content)]
        word = at = 0
        for token, (start, end) in zip(chain.tokens, chain.spans, strict=True):
            while seams[at] <= start and at + 1 < len(seams):
                word, at = seams[at], at + 1
            behind = at
            while seams[behind] < end:
                behind += 1
            stop = seams[behind]
            if stop < len(content):
                yield *words.place(content[word:start], token), (content[end:stop], False)
            elif chain.stop != "length":
                yield *words.place(content[word:start], token), (content[end:], True)


def _suffix_shares(
    near: Counter[Ending] | None, wide: Counter[Ending] | None, common: CommonSuffixes
) -> tuple[Suffix, ...]:
    """Shares of rests: what the question's own chains say, and as much as one more chain of what the run's say.

    common  the most frequent of what the run's say
    """
    shares: dict[Ending, float] = {}
    own = sum(near.values()) if near else 0
    prior = RUN_WEIGHT if own and wide else 0.0 if own else 1.0
    if near:
        for rest, times in near.most_common(MAX_SUFFIXES):
            shares[rest] = times / (own + prior)
    if wide and prior:
        total = wide.total()
        for rest, times in common:
            shares[rest] = shares.get(rest, 0.0) + prior * times / total / (own + prior)
    return tuple((rest, ended, share) for (rest, ended), share in shares.items())


def _digit_shape(data: bytes) -> bytes:
    return _DIGIT.sub(b"0", data)
