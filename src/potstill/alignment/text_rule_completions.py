"""How texts continue in the chains of a run. The rule `text` uses it to continue what the teacher did not write.

    >>> from tokenizers import Tokenizer, models
    >>> letters = Tokenizer(models.BPE({letter: index for index, letter in enumerate("48 pens")}, []))
    >>> texts = [b"4", b"8", b" pens"], [b"4", b"8"], [b"4", b"8"], [b"4", b" pens"]
    >>> run = completions([Chain.from_tokens("q", i, tokens) for i, tokens in enumerate(texts)], letters)
    >>> run.endings("q", Context(None, b"4", b"4"))  # (the rest of the pre-token, whether the text ends there, share)
    ((b'8', True, 0.5), (b'', False, 0.25), (b'8', False, 0.25))

If a chain of the same question begins with the same text, the teacher's own probabilities after that text are known: the
prefix tree of the question has them.

Otherwise the sampled tokens of the chains are counted, as in an n-gram model with back-off. The context of a token is the
text of its pre-token so far, and the pre-token before it. Pre-tokens are continued token by token, with three levels of
counts:

1. in the chains of the question, behind the same pre-token before, in which digits may be others
2. in the chains of the question
3. in all chains of the run; if none of them has the text so far: behind a text that differs in its digits only, and if
   there is none, behind the same token

A level that counted n tokens has n times the weight of all levels after it, which count as one token (`BACK_OFF`).
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from hashlib import blake2b
from typing import Final, NamedTuple

from potstill.alignment.exact_rules import StepProbabilities, check_chain, step_distributions
from potstill.alignment.pre_tokens import PreTokens, get_pre_tokens, is_whitespace
from potstill.records import Chain, End

MIN_SHARE: Final = 5e-3  # a continuation with a smaller share is not followed
RARE_SHARE: Final = 0.04  # the same for continuations of rare outcomes
BACK_OFF: Final = 1.0  # weight of all further levels together, as a number of tokens
MAX_PIECES: Final = 256  # of one context and level
MAX_CACHED_CONTEXTS: Final = 50_000  # a full cache is emptied, which changes no result
MAX_REST: Final = 64  # bytes; longer continuations of a pre-token are not followed
_EQUAL_DIGITS: Final = bytes.maketrans(b"123456789", b"000000000")

# The beginnings of texts are known by their digests: all beginnings of a long text would need much memory.
new_digest = partial(blake2b, digest_size=16)

# What comes after a text: (bytes, where they end). The bytes are a token, or the part of it that belongs to the pre-token.
Piece = tuple[bytes, int]
# Where a piece ends: inside the pre-token, at its end, at the end of the text.
IN_PRE_TOKEN, AT_BOUNDARY, AT_END = 0, 1, 2
Ending = tuple[bytes, bool, float]  # the rest of a pre-token, whether the text ends there, share
# The counts that are used besides those of the run: whether those of the question, and the pre-token before, with equal
# digits, if those behind it.
Levels = tuple[bool, bytes | None]
RankedPieces = tuple[list[tuple[Piece, int]], int]  # the most frequent pieces with their counts; the sum of all counts
WrittenTokens = tuple[tuple[int, ...], float]  # the student's tokens of a text, and the text's share


class Context(NamedTuple):
    """The place of a token in a text.

    previous  the pre-token before the current one; None if the text begins with the current one
    text      the current pre-token so far; empty if the token begins it
    last      the last token of `text`, without what belongs to earlier pre-tokens
    """

    previous: bytes | None
    text: bytes
    last: bytes


class Completions:
    """Counts how pre-tokens continue in the chains of a run.

    The data of one question are computed when they are needed, and replaced by the data of the next question. So
    transfer all chains of a question before those of the next one.
    """

    def __init__(self, chains: Iterable[Chain], pre_tokens: PreTokens, keep: bool = True) -> None:
        """keep: whether the object keeps the chains, for the data of their questions; without them, `set_question` gives
        the chains of each question, and the memory does not grow with the number of chains."""
        self.pre_tokens = pre_tokens
        self._chains: dict[str, list[Chain]] = defaultdict(list)
        if keep:
            for chain in chains:
                self._chains[chain.question].append(chain)
            chains = itertools.chain.from_iterable(self._chains.values())
        self._count = 0
        # Counts over the run: by the text so far; by this text with equal digits; by the last token, and whether it
        # begins a pre-token.
        self._by_text: dict[bytes, Counter[Piece]] = defaultdict(Counter)
        self._by_shape: dict[bytes, Counter[Piece]] = defaultdict(Counter)
        self._by_token: dict[tuple[bytes, bool], Counter[Piece]] = defaultdict(Counter)
        for chain in chains:
            self._count += 1
            if chain.tokens:
                for (_, text, last), piece in _pieces(chain, pre_tokens):
                    self._by_text[text][piece] += 1
                    self._by_token[last, len(last) == len(text)][piece] += 1
        for text, pieces in self._by_text.items():
            shape = _equal_digits(text)
            if b"0" in shape:
                self._by_shape[shape].update(pieces)
        # Caches over the run.
        self._ranked_in_run: dict[int, RankedPieces] = {}
        self._next_in_run: dict[tuple[bytes | None, bytes, bytes], Sequence[tuple[Piece, float]]] = {}
        self._written_in_run: dict[tuple, list[WrittenTokens]] = {}
        # The data of the current question.
        self._question: str | None = None
        self._prefix_tree: dict[bytes, StepProbabilities] = {}
        self._steps: dict[tuple[str, str, int], tuple[Chain, Sequence[StepProbabilities]]] = {}
        self._near: dict[bytes, Counter[Piece]] = {}  # by the text so far
        self._nearest: dict[tuple[bytes, bytes], Counter[Piece]] = {}  # by the pre-token before, with equal digits, too
        self._next: dict[tuple[bytes | None, bytes, bytes], Sequence[tuple[Piece, float]]] = {}
        self._ranked_near: dict[int, RankedPieces] = {}
        self._written: dict[tuple, list[WrittenTokens]] = {}

    def __repr__(self) -> str:
        return f"Completions({self._count} chains)"

    def set_question(self, question: str, chains: Iterable[Chain]) -> None:
        """Use these chains, with their candidates, for the data of a question, in place of all chains that are kept."""
        self._chains, self._question = {question: list(chains)}, None

    def prefix_tree(self, question: str) -> Mapping[bytes, StepProbabilities]:
        """Maps the digest of the beginning of a chain of this question to the probabilities of the outcomes after it."""
        self._open(question)
        return self._prefix_tree

    def steps(self, chain: Chain) -> Sequence[StepProbabilities]:
        """The probabilities of the outcomes at each step of a chain."""
        self._open(chain.question)
        cached = self._steps.get(chain.key)
        return cached[1] if cached and cached[0] is chain else step_distributions(chain)

    def endings(self, question: str, context: Context, rare: bool = False) -> tuple[Ending, ...]:
        """How the pre-token of a context ends, the most likely ending first. The shares add up to 1; empty if no chain has
        the last token.

        rare  whether to leave out all endings with a smaller share than RARE_SHARE instead of MIN_SHARE, which is faster
        """
        self._open(question)
        levels = self._find_levels(context)
        pieces = self._next_pieces(context.text, context.last, levels)
        return self._follow(context.text, levels, pieces, RARE_SHARE if rare else MIN_SHARE)

    def unseen_endings(
        self, question: str, context: Context, shown: Iterable[bytes | End], first: bool, least: float = 0.0
    ) -> tuple[Ending, ...]:
        """The endings that do not begin with an outcome that the teacher showed, as `endings` returns them.

        first  whether the pre-token begins the text
        least  endings with a smaller share are left out
        """
        self._open(question)
        seen = {self._piece(context.text, outcome, first) for outcome in shown}
        levels = self._find_levels(context)
        pieces = self._next_pieces(context.text, context.last, levels)
        pieces = [(piece, share) for piece, share in pieces if piece not in seen]
        if context.previous is not None and not context.text:  # whitespace begins every pre-token but the first
            pieces = [(piece, share) for piece, share in pieces if is_whitespace(piece[0][:1])]
        total = sum([share for _, share in pieces])
        pieces = [(piece, share / total) for piece, share in pieces]
        return self._follow(context.text, levels, pieces, max(least, MIN_SHARE))

    def continuations(
        self, question: str, context: Context, first: bool, teacher: PreTokens | None, rare: bool = False
    ) -> list[WrittenTokens]:
        """The student's tokens of the pre-tokens that begin with the text of a context, each with its share, the most
        likely first. They include the end token if the text ends after the pre-token.

        first    whether the pre-token begins the text
        teacher  the teacher's pre-tokens; pre-tokens in which its tokenizer would not write the last token of the context
                 do not count
        rare     as in `endings`
        """
        self._open(question)
        near, shape = self._find_levels(context)
        cache = self._written if near else self._written_in_run
        key = shape, context.text, context.last, first, teacher, rare
        written = cache.get(key)
        if written is None:
            if len(cache) >= MAX_CACHED_CONTEXTS:
                cache.clear()
            text, start = context.text, len(context.text) - len(context.last)
            written = []
            for rest, ended, share in self.endings(question, context, rare):
                if teacher is None or teacher.cuts(text + rest, start, len(text)):
                    written.append((self.tokens(text + rest, first, ended), share))
            total = sum([share for _, share in written])
            written = cache[key] = [(tokens, share / total) for tokens, share in written]
        return written

    def tokens(self, pre_token: bytes, first: bool, ended: bool) -> tuple[int, ...]:
        """The student's tokens of a pre-token, with the end token if the text ends after it. `first`: it begins the text."""
        eos = self.pre_tokens.encoder.vocabulary.eos if ended else None
        tokens = self.pre_tokens.tokens(pre_token, first)
        return tokens if eos is None else (*tokens, eos)

    def _follow(
        self, text: bytes, levels: Levels, pieces: Sequence[tuple[Piece, float]], least: float
    ) -> tuple[Ending, ...]:
        """The endings of a pre-token that begins with a text, if it continues with one of some pieces. Their shares are
        given, the largest first."""
        shares: dict[tuple[bytes, bool], float] = {}
        growing = [(b"", 1.0, pieces)]  # (text before the pieces, its share, the pieces after it)
        while growing:
            before, weight, pieces = growing.pop()
            for (piece, end), p in pieces:
                share = weight * p
                if share < least:
                    break
                rest = before + piece
                if end != IN_PRE_TOKEN:
                    key = rest, end == AT_END
                    shares[key] = shares.get(key, 0.0) + share
                elif len(rest) < MAX_REST:
                    growing.append((rest, share, self._next_pieces(text + rest, piece, levels)))
        total = sum(shares.values())
        ranked = sorted(shares.items(), key=lambda pair: -pair[1])
        return tuple([(rest, ended, share / total) for (rest, ended), share in ranked])

    def _find_levels(self, context: Context) -> Levels:
        """The levels for a context and the texts that continue it."""
        # A context that no chain of the question has continues in the same way in all questions, so it can be cached.
        word = self.pre_tokens.word(context.text)
        if word not in self._near:
            return False, None
        shape = None if context.previous is None else _equal_digits(context.previous)
        return True, shape if (shape, word) in self._nearest else None

    def _next_pieces(self, text: bytes, last: bytes, levels: Levels) -> Sequence[tuple[Piece, float]]:
        """What comes after a text with this last token, with its share, the largest share first. Smaller shares than
        MIN_SHARE are left out. Empty if no chain has the last token."""
        near, shape = levels
        word = self.pre_tokens.word(text)
        nearest = None if shape is None else self._nearest.get((shape, word))
        cache = self._next if near else self._next_in_run
        key = None if nearest is None else shape, word, last
        cached = cache.get(key)
        if cached is not None:
            return cached
        if len(cache) >= MAX_CACHED_CONTEXTS:
            cache.clear()
        run = self._by_text.get(word) or self._by_shape.get(_equal_digits(word))
        run = run or self._by_token.get((last, len(last) == len(word)))
        found = [counts for counts in (nearest, self._near.get(word) if near else None, run) if counts]
        if len(found) == 1:
            ranked, total = self._ranked(found[0], self._ranked_in_run if found[0] is run else self._ranked_near)
            least = MIN_SHARE * total
            pieces = cache[key] = [(piece, count / total) for piece, count in ranked if count >= least]
            return pieces
        shares: dict[Piece, float] = {}
        weight = 1.0
        for counts in found:
            lower = BACK_OFF if counts is not found[-1] else 0.0
            ranked, total = self._ranked(counts, self._ranked_in_run if counts is run else self._ranked_near)
            scale = weight / (total + lower)
            for piece, count in ranked:
                share = scale * count
                if share < MIN_SHARE and piece not in shares:
                    break
                shares[piece] = shares.get(piece, 0.0) + share
            weight = scale * lower
        pieces = cache[key] = sorted(shares.items(), key=lambda pair: -pair[1])
        return pieces

    def _ranked(self, counts: Counter[Piece], cache: dict[int, RankedPieces]) -> RankedPieces:
        # Each counter is sorted once. Its id can be the key because the counters live as long as the cache.
        ranked = cache.get(id(counts))
        if ranked is None:
            ranked = cache[id(counts)] = counts.most_common(MAX_PIECES), counts.total()
        return ranked

    def _piece(self, text: bytes, outcome: bytes | End, first: bool) -> Piece:
        """The piece of an outcome of the teacher after a text."""
        if isinstance(outcome, End):
            return b"", AT_END
        boundary = self.pre_tokens.next_boundary(text + outcome, max(len(text), 1), first)
        return (outcome, IN_PRE_TOKEN) if boundary is None else (outcome[: boundary - len(text)], AT_BOUNDARY)

    def _open(self, question: str) -> None:
        """Compute the data of a question, unless it is the current one."""
        if question == self._question:
            return
        chains = [chain for chain in self._chains.get(question, ()) if chain.tokens]
        self._question, self._prefix_tree, self._steps = question, {}, {}
        self._next, self._written, self._ranked_near = {}, {}, {}
        near, nearest = self._near, self._nearest = defaultdict(Counter), defaultdict(Counter)
        for chain in chains:
            rows = step_distributions(chain)
            self._steps[chain.key] = chain, rows
            # Chains that begin with the same text have the same distribution after it, so only the first one's is kept.
            beginning = new_digest()
            for token, row in zip([*chain.tokens, b""], rows, strict=False):
                self._prefix_tree.setdefault(beginning.digest(), row)
                beginning.update(token)
            for (previous, text, _), piece in _pieces(chain, self.pre_tokens):
                near[text][piece] += 1
                if previous is not None:
                    nearest[_equal_digits(previous), text][piece] += 1


def completions(chains: Iterable[Chain], tokenizer: object, *, keep: bool = True) -> Completions:
    """How pre-tokens continue in the chains of a run, for `transfer` with the rule `text` and the same tokenizer.

    chains     at least the chains that will be transferred; chains without tokens are ignored
    tokenizer  the student's, which decides where pre-tokens begin
    keep       whether the chains are kept; if not, they need no candidates, and are given again with them, question by
               question (`Completions.set_question`)
    """

    def checked() -> Iterator[Chain]:
        for chain in chains:
            check_chain(chain)
            yield chain

    return Completions(checked(), get_pre_tokens(tokenizer), keep)


def _pieces(chain: Chain, pre_tokens: PreTokens) -> Iterator[tuple[tuple[bytes | None, bytes, bytes], Piece]]:
    """The context of each place of a chain at which a token follows or a pre-token ends, and what comes there."""
    content, spans, certain = chain.content, chain.spans, pre_tokens.certain
    bounds = [0, *pre_tokens.boundaries(content), len(content)]
    previous: bytes | None = None
    token = 0
    for begin, end in itertools.pairwise(bounds):
        reached, last = begin, b""
        while reached < end:
            start, stop = spans[token]
            inside = stop <= end
            until = stop if inside else end
            # A token that began in an earlier pre-token is not a piece of this one, but the text continues after it.
            if start == reached < stop:
                text = content[begin:reached]
                here = previous, text if certain else pre_tokens.word(text), last
                last = content[reached:until]
                yield here, (last, IN_PRE_TOKEN if inside else AT_BOUNDARY)
                reached = until
            elif until > reached:
                last, reached = content[begin:until], until
            token += inside
        text = content[begin:end]
        if end < len(content):
            if spans[token - 1][1] == end:
                yield (previous, text if certain else pre_tokens.word(text), last), (b"", AT_BOUNDARY)
        elif chain.stop != "length":  # a text cut off at its token limit does not show the end of its last pre-token
            yield (previous, text if certain else pre_tokens.word(text), last), (b"", AT_END)
        previous = text


def _equal_digits(data: bytes) -> bytes:
    """The bytes with a 0 for every digit."""
    return data.translate(_EQUAL_DIGITS)
