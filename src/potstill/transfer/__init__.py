"""A teacher's distributions in a student's vocabulary: from a chain to a `Target`, under a named rule.

    >>> class Letters:  # stands in for a tokenizer: one token a letter, 3 ends the text
    ...     def encode(self, text, add_special_tokens):
    ...         self.ids, self.offsets = ["abc".index(a) for a in text], [(i, i + 1) for i in range(len(text))]
    ...         return self
    >>> student = Fast(Vocabulary((b"a", b"b", b"c", None), {"</s>": 3}, 3, None, None, False, ""), Letters())
    >>> step = [(b"b", -0.1), (b"c", -3.0), (b"cb", -4.0)]
    >>> chain = Chain.from_tokens("q", 0, [b"a", b"b"], [[(b"a", 0.0)], step])
    >>> target = transfer(chain, student, "span")
    >>> target.ids, target.kinds, {token: round(p, 3) for token, p in target.distribution(1).items()}
    ((0, 1, 3), ('same', 'same', 'end'), {1: 0.905, 2: 0.05})
    >>> round(target.tail(1), 3)
    0.045

`one-hot`: every position is certain of its token. `span`: a student token on exactly the bytes of one teacher token
gets that token's distribution. `paper`: the published rule (PAPER section 4). `text`: candidates are texts, and each of
them counts for what the student would write for it (module `text`). Pure; of the teacher it needs only bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, Final, cast

import numpy as np

from potstill.alignment import KINDS, spans
from potstill.errors import UserError
from potstill.records import Chain, Kind, Target
from potstill.transfer.candidates import Distribution, by_identity, by_spans, by_warping
from potstill.transfer.continuations import Completions, completions
from potstill.transfer.places import encoded, touching
from potstill.transfer.text import by_text
from potstill.transfer.words import words_of
from potstill.vocabulary import Fast, Vocabulary, fast

__all__ = ["RULES", "VERSION", "Completions", "completions", "transfer"]

RULES: Final = ("one-hot", "span", "paper", "text")
VERSION: Final = 3  # of what the rules make; stored in the manifest of the stage that keeps targets


def transfer(
    chain: Chain,
    tokenizer: Any,
    rule: str = "text",
    completions: Completions | None = None,
    teacher: Any = None,
    certain: Sequence[tuple[int, int]] = (),
) -> Target:
    """The target of a chain in the vocabulary of a student.

    tokenizer    potstill's, a `tokenizers.Tokenizer`, or a fast tokenizer of transformers
    rule         one of RULES
    completions  what the run's chains say about how words go on, made with the same tokenizer; without it every
                 candidate that could still grow is tail. For `text` alone
    teacher      the teacher's tokenizer, where it is known: ways that it would have cut differently do not count, and
                 where it is the student's own every position keeps the teacher's distribution. For `text` alone
    certain      stretches of the content, in bytes, that the teacher did not write (`rewriting.marks`): hard

    Ids are those that the tokenizer gives the chain's text (names of special tokens in it are text; bytes that are not
    UTF-8 are U+FFFD), and its end token unless the chain stopped for length. Probabilities are exp of the chain's
    natural logarithms, those of candidates with the same token added up; what has no token of its own is the tail.
    Kinds: `hard` where the token is certain because nothing was transferred, `end` for the end token; else with `text`
    how its token lies to the teacher's (`same`, `merged`, `split`, `mixed`: see `alignment`), with the others `same`.
    Raises UserError for an unknown rule, a tokenizer without an end token, and a log-probability that is no number.
    """
    if rule not in RULES:
        raise UserError("unknown transfer rule", found=rule, do=f"choose one of: {', '.join(RULES)}")
    if rule != "text" and (completions is not None or teacher is not None):
        raise UserError(f"the rule `{rule}` reads neither completions nor the teacher's tokenizer", do="leave them out")
    coder = fast(tokenizer)
    vocabulary = coder.vocabulary
    ids, places = encoded(chain, coder)
    soft: dict[int, Distribution] = {}
    kinds: list[Kind] = ["hard"] * len(ids)
    if chain.candidates and rule == "span":
        soft = by_spans(chain, vocabulary, ids, places)
    elif chain.candidates and rule == "paper":
        soft = by_warping(chain, vocabulary, ids)
    elif chain.candidates and rule == "text":
        soft = _text(chain, coder, ids, places, completions, teacher)
    for position in touching(places, certain) if soft else ():
        soft.pop(position, None)
    around = _kinds(chain, places) if rule == "text" and soft else []
    for position in soft:
        if position < len(ids):
            kinds[position] = around[position] if around else "same"
    if chain.stop != "length":
        ids = [*ids, _end(vocabulary)]
        kinds.append("end")
    rows = [soft.get(position) or {token: 1.0} for position, token in enumerate(ids)]
    return Target(
        ids=tuple(ids),
        offsets=(0, *accumulate(map(len, rows))),
        candidate_ids=tuple(token for row in rows for token in row),
        probabilities=tuple(probability for row in rows for probability in row.values()),
        kinds=tuple(kinds),
    )


def _text(
    chain: Chain, coder: Fast, ids: Sequence[int], places: np.ndarray, run: Completions | None, teacher: Any
) -> dict[int, Distribution]:
    words = words_of(coder) if run is None else run.words
    if (words.coder.vocabulary.digest, words.coder.vocabulary.eos) != (coder.vocabulary.digest, coder.vocabulary.eos):
        do = "make them with completions(chains, tokenizer) and this tokenizer"
        raise UserError("these completions are another tokenizer's", do=do)
    theirs = None if teacher is None else fast(teacher)
    if theirs is not None and theirs.vocabulary.digest == coder.vocabulary.digest:
        same = by_identity(chain, coder.vocabulary, ids)
        if same is not None:
            return same
    found = by_text(chain, words, ids, places, run, None if theirs is None else words_of(theirs))
    return by_spans(chain, coder.vocabulary, ids, places) if found is None else found


def _kinds(chain: Chain, places: np.ndarray) -> list[Kind]:
    """How each student token lies to the teacher's."""
    chunks = spans(chain.spans, places)
    return [cast(Kind, KINDS[kind]) for kind in np.repeat(chunks.kinds, np.diff(chunks.student)).tolist()]


def _end(vocabulary: Vocabulary) -> int:
    if vocabulary.eos is None:
        do = "open it with potstill.tokenizers.open(folder, eos=...)"
        raise UserError("cannot tell which token of the student ends a text", do=do)
    return vocabulary.eos
