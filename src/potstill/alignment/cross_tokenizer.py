"""Makes the `Target` of a chain: the teacher's distributions in the student's vocabulary, by one of four rules.

>>> from tokenizers import Tokenizer, models
>>> student = Tokenizer(models.BPE({"a": 0, "b": 1, "c": 2, "</s>": 3}, []))  # one token a letter
>>> _ = student.add_special_tokens(["</s>"])
>>> step = [(b"b", -0.1), (b"c", -3.0), (b"cb", -4.0)]
>>> chain = Chain.from_tokens("q", 0, [b"a", b"b"], [[(b"a", 0.0)], step])
>>> target = transfer(chain, student, "span")
>>> target.ids, target.kinds, {token: round(p, 3) for token, p in target.distribution(1).items()}
((0, 1, 3), ('same', 'same', 'end'), {1: 0.905, 2: 0.05})
>>> round(target.tail(1), 3)
0.045
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, Final, cast

import numpy as np

from potstill.alignment.char_spans import CHUNK_KINDS
from potstill.alignment.exact_rules import (
    Distribution,
    align_chain,
    apply_dtw_rule,
    apply_same_tokenizer_rule,
    apply_span_rule,
    check_chain,
    encode_chain_text,
    tokens_in_spans,
)
from potstill.alignment.pre_tokens import get_pre_tokens
from potstill.alignment.text_rule import apply_text_rule
from potstill.alignment.text_rule_completions import Completions
from potstill.errors import UserError
from potstill.records import Chain, Target, TargetKind
from potstill.tokenization.encoder import Encoder, get_encoder

RULES: Final = ("one-hot", "span", "paper", "text")
VERSION: Final = 4  # of the targets that the rules make; stored in the manifests of the stages that store targets


def transfer(
    chain: Chain,
    tokenizer: Any,
    rule: str = "text",
    completions: Completions | None = None,
    teacher: Any = None,
    certain: Sequence[tuple[int, int]] = (),
) -> Target:
    """The target of a chain: the teacher's distributions in the vocabulary of a student.

    Arguments:
      chain        its `candidates` have natural log-probabilities; without candidates every position is hard
      tokenizer    the student's: potstill's, a `tokenizers.Tokenizer`, or a fast tokenizer of transformers
      rule         one-hot  every target has probability 1 for the chain's own token
                   span     a student token on exactly the bytes of one teacher token gets that token's distribution
                   paper    the published rule: dynamic time warping of token strings (Fu et al. 2023, section 4)
                   text     each candidate is a text, and counts for the tokens that the student would write for it
      completions  for `text`: how pre-tokens continue in the run's chains, from `completions(chains, tokenizer)` with
                   the same tokenizer; without it, every candidate whose text may go on is tail
      teacher      for `text`: the teacher's tokenizer, if it is known. Texts that it would tokenize differently do not
                   count. If it is also the student's tokenizer, every position keeps the teacher's distribution
      certain      spans of the content, in bytes, that the teacher did not write (calculator annotations); their
                   positions are hard

    Returns a Target of n positions:
      ids            [n] the student's tokens of the chain's text, then the end token, unless chain.stop is "length".
                     Names of special tokens in the text are text; bytes that are not UTF-8 become U+FFFD
      distribution   of a position: token id to probability (not logarithm). The probabilities of candidates with the
                     same token are added; the tail is 1 minus the sum
      kinds          [n] `hard` if the token has probability 1 because nothing was transferred; `end` for the end token;
                     otherwise `same` with the rules `span` and `paper`, and with `text` the kind of the token's chunk
                     (`same`, `merged`, `split`, `mixed`, as in `spans`)
      tensors(k)     ids [n, k] int64 and probabilities [n, k] float32, the inputs of `losses.sparse_kl`

    Raises UserError for an unknown rule, a tokenizer without an end token, completions of another tokenizer, and a
    value that is not a log-probability. The same arguments give the same target.
    """
    _check(chain, rule, completions, teacher)
    encoder = get_encoder(tokenizer)
    vocabulary = encoder.vocabulary
    ids, offsets = encode_chain_text(chain, encoder)
    soft: dict[int, Distribution] = {}
    if chain.candidates and rule == "span":
        soft = apply_span_rule(chain, vocabulary, ids, offsets)
    elif chain.candidates and rule == "paper":
        soft = apply_dtw_rule(chain, vocabulary, ids)
    elif chain.candidates and rule == "text":
        soft = _text_distributions(chain, encoder, ids, offsets, completions, teacher)
    for position in tokens_in_spans(offsets, certain) if soft else ():
        soft.pop(position, None)
    kinds: list[TargetKind] = ["same"] * len(ids)
    if rule == "text" and soft:
        chunks = align_chain(chain, offsets)
        by_token = np.repeat(chunks.kinds, np.diff(chunks.student)).tolist()
        kinds = [cast(TargetKind, CHUNK_KINDS[kind]) for kind in by_token]
    kinds = [kind if position in soft else "hard" for position, kind in enumerate(kinds)]
    if chain.stop != "length":
        if vocabulary.eos is None:
            raise UserError(
                "the student's tokenizer has no end token",
                code="E-tokenizer-no-eos",
                hint="load it with potstill.load_tokenizer(folder, eos=...)",
            )
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


def _check(chain: Chain, rule: str, completions: Completions | None, teacher: Any) -> None:
    check_chain(chain)
    if rule not in RULES:
        raise UserError(
            "unknown transfer rule", code="E-align-unknown-rule", found=rule, hint=f"choose one of: {', '.join(RULES)}"
        )
    if rule != "text" and (completions is not None or teacher is not None):
        raise UserError(
            f"the rule `{rule}` uses neither completions nor the teacher's tokenizer",
            code="E-align-unused-argument",
            hint="leave these arguments out, or use the rule `text`",
        )
    if completions is not None and not isinstance(completions, Completions):
        raise UserError(
            "the argument `completions` has the wrong type",
            code="E-align-not-completions",
            found=type(completions).__name__,
            hint="make them with completions(chains, tokenizer)",
        )


def _text_distributions(
    chain: Chain, encoder: Encoder, ids: Sequence[int], offsets: np.ndarray, run: Completions | None, teacher: Any
) -> dict[int, Distribution]:
    student = get_pre_tokens(encoder) if run is None else run.pre_tokens
    vocabulary, other = encoder.vocabulary, student.encoder.vocabulary
    if (other.digest, other.eos) != (vocabulary.digest, vocabulary.eos):
        raise UserError(
            "the completions were made with another tokenizer",
            code="E-align-other-tokenizer",
            hint="call completions(chains, tokenizer) with the student's tokenizer",
        )
    teacher_encoder = None if teacher is None else get_encoder(teacher)
    if teacher_encoder is not None and teacher_encoder.vocabulary.digest == vocabulary.digest:
        own = apply_same_tokenizer_rule(chain, vocabulary, ids)
        if own is not None:
            return own
    teacher_pre_tokens = None if teacher_encoder is None else get_pre_tokens(teacher_encoder)
    soft = apply_text_rule(chain, student, ids, offsets, run, teacher_pre_tokens)
    # If the tokens of the text differ from the tokens of its pre-tokens, only tokens on the same bytes keep a distribution.
    return apply_span_rule(chain, vocabulary, ids, offsets) if soft is None else soft
