"""A teacher's distributions in a student's vocabulary: from a chain to a `Target`, under a named rule.

    >>> class Letters:  # stands in for a tokenizer: one token a letter, 3 ends the text
    ...     ids, offsets = [0, 1], [(0, 1), (1, 2)]
    ...     def encode(self, text, add_special_tokens):
    ...         return self
    >>> student = Fast(Vocabulary((b"a", b"b", b"c", None), {"</s>": 3}, 3, None, None, False, ""), Letters())
    >>> step = [(b"b", -0.1), (b"c", -3.0), (b"cd", -4.0)]
    >>> target = transfer(Chain.from_tokens("q", 0, [b"a", b"b"], [[(b"a", 0.0)], step]), student, "span")
    >>> target.ids, target.kinds, {token: round(p, 3) for token, p in target.distribution(1).items()}
    ((0, 1, 3), ('same', 'same', 'end'), {1: 0.905, 2: 0.05})
    >>> round(target.tail(1), 3)
    0.045

`one-hot`: every position is certain of its token. `span`: a student token on exactly the bytes of one teacher token
gets that token's distribution. `paper`: the published rule (PAPER section 4). Pure; of the teacher it needs only bytes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, Final

import numpy as np

from potstill.alignment import dtw, spans
from potstill.errors import UserError
from potstill.records import END, Chain, End, Kind, Target
from potstill.vocabulary import Fast, Vocabulary, fast

RULES: Final = ("one-hot", "span", "paper")
VERSION: Final = 1  # of what the rules make; stored in the manifest of the stage that keeps targets
Distribution = dict[int, float]


def transfer(
    chain: Chain, tokenizer: Any, rule: str = "span", completions: object = None, teacher: object = None
) -> Target:
    """The target of a chain in the vocabulary of a student.

    tokenizer  potstill's, a `tokenizers.Tokenizer`, or a fast tokenizer of transformers
    rule       one of RULES
    completions, teacher   for rules that read them; none of RULES does, so they must be None

    Ids are those that the tokenizer gives the chain's text (names of special tokens in it are text; bytes that are not
    UTF-8 are U+FFFD), and its end token unless the chain stopped for length. Probabilities are exp of the chain's
    natural logarithms, those of candidates with the same token added up; what has no token of its own is the tail.
    Kinds: `same` where a distribution was transferred, `hard` where the token is certain, `end` for the end token.
    Raises UserError for an unknown rule, a tokenizer without an end token, and a log-probability that is no number.
    """
    if rule not in RULES:
        raise UserError("unknown transfer rule", found=rule, do=f"choose one of: {', '.join(RULES)}")
    if completions is not None or teacher is not None:
        raise UserError(f"the rule `{rule}` reads neither completions nor the teacher's tokenizer", do="leave them out")
    coder = fast(tokenizer)
    vocabulary = coder.vocabulary
    ids, places = _encoded(chain, coder)
    soft: dict[int, Distribution] = {}
    if chain.candidates and rule == "span":
        soft = _by_spans(chain, vocabulary, ids, places)
    elif chain.candidates and rule == "paper":
        soft = _by_warping(chain, vocabulary, ids)
    kinds: list[Kind] = ["hard"] * len(ids)
    for position in soft:
        if position < len(ids):
            kinds[position] = "same"
    if chain.stop != "length":
        if vocabulary.eos is None:
            do = "open it with potstill.tokenizers.open(folder, eos=...)"
            raise UserError("cannot tell which token of the student ends a text", do=do)
        ids = [*ids, vocabulary.eos]
        kinds.append("end")
    rows = [soft.get(position) or {token: 1.0} for position, token in enumerate(ids)]
    return Target(
        ids=tuple(ids),
        offsets=(0, *accumulate(map(len, rows))),
        candidate_ids=tuple(token for row in rows for token in row),
        probabilities=tuple(probability for row in rows for probability in row.values()),
        kinds=tuple(kinds),
    )


def _encoded(chain: Chain, coder: Fast) -> tuple[list[int], np.ndarray]:
    """Ids of the chain's text, and [n, 2] their spans in its content."""
    encoding = coder.encode(chain.text)
    places = np.asarray(encoding.spans, np.int64).reshape(-1, 2)
    if (original := _original(chain.content)) is not None:
        places = original[places]
    return encoding.ids, places


def _original(content: bytes) -> np.ndarray | None:
    """Where each byte of the readable text stands in the content; None where the content is UTF-8, so the same.

    Of the three bytes of U+FFFD all stand where the bad bytes begin: a student token that ends inside it has no width.
    """
    places: list[int] = []
    start = 0
    while True:
        try:
            content[start:].decode("utf-8")
        except UnicodeDecodeError as error:
            bad = start + error.start
            places += [*range(start, bad), bad, bad, bad]
            start += error.end
        else:
            return np.array([*places, *range(start, len(content) + 1)], np.int64) if places else None


def _by_spans(chain: Chain, vocabulary: Vocabulary, ids: Sequence[int], places: np.ndarray) -> dict[int, Distribution]:
    """Distributions by position: of student tokens on exactly the bytes of one teacher token, and of the end."""
    soft: dict[int, Distribution] = {}
    chunks = spans(chain.spans, places)
    for i, j, kind in zip(chunks.teacher.tolist(), chunks.student.tolist(), chunks.kinds.tolist(), strict=False):
        if kind == 0:
            known = {chain.tokens[i]: ids[j]}
            row = _distribution(chain, i, vocabulary, known, first=bool(places[j][0] == 0))
            if row:
                soft[j] = row
    # The last step speaks of the end only if nothing that the student drops stands between its last token and the end.
    touching = not len(chunks) or chunks.student[-1] > chunks.student[-2]
    if len(chain.candidates) > len(chain.tokens) and chain.stop == "end" and touching and vocabulary.eos is not None:
        row = _distribution(chain, len(chain.tokens), vocabulary, {}, first=not ids)
        if vocabulary.eos in row:
            soft[len(ids)] = row
    return soft


def _by_warping(chain: Chain, vocabulary: Vocabulary, ids: Sequence[int]) -> dict[int, Distribution]:
    """The published rule: exactly one teacher token, of the same string once its spaces are `▁`."""
    soft: dict[int, Distribution] = {}
    names = {token: name for name, token in vocabulary.specials.items()}
    theirs = [_string(vocabulary.bytes_of(token)) or names.get(token, "") for token in ids]
    own = [token.decode("utf-8", "replace") for token in chain.tokens]
    for j, group in enumerate(dtw(own, theirs).groups):
        if len(group) == 1 and own[group[0]].replace(" ", "▁") == theirs[j]:
            row = _distribution(chain, group[0], vocabulary, {chain.tokens[group[0]]: ids[j]}, first=False, end=False)
            if row:
                soft[j] = row
    return soft


def _string(piece: bytes | None) -> str:
    return "" if piece is None else piece.decode("utf-8", "replace").replace(" ", "▁")


def _distribution(
    chain: Chain, step: int, vocabulary: Vocabulary, known: dict[bytes, int], *, first: bool, end: bool = True
) -> Distribution:
    """What the chain's source saw at a step, by student token; empty if it saw nothing that is one.

    known  the token of the text that was really written, whatever the tokenizer made of it
    end    whether END is the student's end token, else it is tail
    """
    row: Distribution = {}
    for what, value in chain.candidates[step]:
        if math.isnan(value):
            do = "drop the chain, or its candidates"
            raise UserError("a log-probability is not a number", where=f"chain {chain.key} step {step}", do=do)
        probability = math.exp(min(value, 0.0))
        token = _token(what, vocabulary, known, first, end)
        if token is not None and probability > 0.0:
            row[token] = row.get(token, 0.0) + probability
    total = math.fsum(row.values())
    # Rounded logarithms can add up to a little more than 1; a distribution cannot.
    return {token: probability / total for token, probability in row.items()} if total > 1.0 else row


def _token(what: bytes | End, vocabulary: Vocabulary, known: dict[bytes, int], first: bool, end: bool) -> int | None:
    if what is END:
        return vocabulary.eos if end else None
    assert isinstance(what, bytes)
    return known[what] if what in known else vocabulary.find(what, first)
