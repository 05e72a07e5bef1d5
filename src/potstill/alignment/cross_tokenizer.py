"""A teacher's distributions in a student's vocabulary: from a chain to a `Target`, under a named rule.

    >>> class Letters:  # stands in for a tokenizer: one token a letter, 3 ends the text
    ...     def encode(self, text, add_special_tokens):
    ...         self.ids, self.offsets = ["abc".index(a) for a in text], [(i, i + 1) for i in range(len(text))]
    ...         return self
    >>> student = Encoder(Vocabulary((b"a", b"b", b"c", None), {"</s>": 3}, 3, None, None, False, ""), Letters())
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

from potstill.alignment import CHUNK_KINDS, spans
from potstill.alignment.exact_rules import (
    Distribution,
    apply_dtw_rule,
    apply_same_tokenizer_rule,
    apply_span_rule,
    encode_chain_text,
    tokens_in_spans,
)
from potstill.alignment.pre_tokens import get_pre_tokens
from potstill.alignment.text_rule import apply_text_rule
from potstill.alignment.text_rule_completions import Completions, completions
from potstill.errors import UserError
from potstill.records import Chain, Target, TargetKind
from potstill.tokenization.encoder import Encoder, get_encoder
from potstill.tokenization.vocabulary import Vocabulary

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
        raise UserError("unknown transfer rule", found=rule, hint=f"choose one of: {', '.join(RULES)}")
    if rule != "text" and (completions is not None or teacher is not None):
        raise UserError(
            f"the rule `{rule}` reads neither completions nor the teacher's tokenizer", hint="leave them out"
        )
    coder = get_encoder(tokenizer)
    vocabulary = coder.vocabulary
    ids, places = encode_chain_text(chain, coder)
    soft: dict[int, Distribution] = {}
    kinds: list[TargetKind] = ["hard"] * len(ids)
    if chain.candidates and rule == "span":
        soft = apply_span_rule(chain, vocabulary, ids, places)
    elif chain.candidates and rule == "paper":
        soft = apply_dtw_rule(chain, vocabulary, ids)
    elif chain.candidates and rule == "text":
        soft = _text_rule_distributions(chain, coder, ids, places, completions, teacher)
    for position in tokens_in_spans(places, certain) if soft else ():
        soft.pop(position, None)
    around = _position_kinds(chain, places) if rule == "text" and soft else []
    for position in soft:
        if position < len(ids):
            kinds[position] = around[position] if around else "same"
    if chain.stop != "length":
        ids = [*ids, _require_eos(vocabulary)]
        kinds.append("end")
    rows = [soft.get(position) or {token: 1.0} for position, token in enumerate(ids)]
    return Target(
        ids=tuple(ids),
        offsets=(0, *accumulate(map(len, rows))),
        candidate_ids=tuple(token for row in rows for token in row),
        probabilities=tuple(probability for row in rows for probability in row.values()),
        kinds=tuple(kinds),
    )


def _text_rule_distributions(
    chain: Chain, coder: Encoder, ids: Sequence[int], places: np.ndarray, run: Completions | None, teacher: Any
) -> dict[int, Distribution]:
    words = get_pre_tokens(coder) if run is None else run.words
    if (words.coder.vocabulary.digest, words.coder.vocabulary.eos) != (coder.vocabulary.digest, coder.vocabulary.eos):
        hint = "make them with completions(chains, tokenizer) and this tokenizer"
        raise UserError("these completions are another tokenizer's", hint=hint)
    theirs = None if teacher is None else get_encoder(teacher)
    if theirs is not None and theirs.vocabulary.digest == coder.vocabulary.digest:
        same = apply_same_tokenizer_rule(chain, coder.vocabulary, ids)
        if same is not None:
            return same
    found = apply_text_rule(chain, words, ids, places, run, None if theirs is None else get_pre_tokens(theirs))
    return apply_span_rule(chain, coder.vocabulary, ids, places) if found is None else found


def _position_kinds(chain: Chain, places: np.ndarray) -> list[TargetKind]:
    """How each student token lies to the teacher's."""
    chunks = spans(chain.spans, places)
    return [cast(TargetKind, CHUNK_KINDS[kind]) for kind in np.repeat(chunks.kinds, np.diff(chunks.student)).tolist()]


def _require_eos(vocabulary: Vocabulary) -> int:
    if vocabulary.eos is None:
        hint = "open it with potstill.tokenization.load_tokenizer(folder, eos=...)"
        raise UserError("cannot tell which token of the student ends a text", hint=hint)
    return vocabulary.eos
