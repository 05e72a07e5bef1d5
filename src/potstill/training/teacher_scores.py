"""A model's next-token distributions at every position of texts that another model wrote, as training targets.

    >>> from potstill.models import Shape, random_student
    >>> from potstill import demo, tokenization
    >>> tokenizer = tokenization.load_tokenizer(demo.DATA / "models" / "student")
    >>> student = random_student(Shape("t5", 8, 1, 2, 16, 4, tokenizer.size), tokenizer, seed=1)
    >>> [row] = teacher_forced_scores(student, [hard_example((5, 6), (7, 8), tokenizer.eos)], 2)
    >>> row.target.ids, row.target.kinds, [len(row.target.distribution(p)) in (2, 3) for p in range(3)]
    ((7, 8, 1), ('same', 'same', 'end'), [True, True, True])

`teacher_forced_scores` is for a scorer with the student's tokenizer. `rescore_across_tokenizers` is for another one: it
scores the texts as a teacher scores existing chains, and the rule `text` transfers the scores to the student's
vocabulary. Such a row holds the text as the student's tokenizer encodes it, which may differ from the tokens that the
student drew.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Final

import numpy as np
import torch

from potstill import prompts
from potstill.alignment import cross_tokenizer, text_rule_completions
from potstill.alignment.exact_rules import encode_chain_text
from potstill.errors import UserError
from potstill.inference import ScoringEngine
from potstill.models import Example, Student
from potstill.records import END, Chain, Prompt, StopReason, Target, TargetKind
from potstill.teachers import local_model
from potstill.tokenization import Tokenizer
from potstill.tokenization.encoder import Encoder, get_encoder

CHUNK_POSITIONS: Final = 1024  # whose logits exist at a time
MIN_PROBABILITY: Final = 1e-9  # lower ones are raised to it, so that a divergence from them stays finite


def hard_example(
    prompt: tuple[int, ...], ids: tuple[int, ...], end: int | None, question: str = "", format: str = ""
) -> Example:
    """A text as hard targets. end: its end token; None if a token limit ended it."""
    tokens = ids if end is None else (*ids, end)
    kinds: list[TargetKind] = ["same"] * len(ids)
    if end is not None:
        kinds.append("end")
    target = Target(tokens, range(len(tokens) + 1), tokens, [1.0] * len(tokens), tuple(kinds))
    return Example(prompt, target, 1.0, question, format)


def teacher_forced_scores(scorer: Student, rows: Sequence[Example], top_k: int) -> list[Example]:
    """The same rows with the scorer's distributions as targets: at each position its `top_k` most likely tokens and the
    row's own token. One forward pass without dropout and without gradients.

    Raises UserError if the logits are NaN.
    """
    size, was_training = scorer.tokenizer.size, scorer.training
    scorer.eval()
    distributions: list[tuple[list[int], list[float]]] = []
    with torch.no_grad():
        batch = scorer.batch(rows).to(scorer.device)
        written = torch.tensor([token for row in rows for token in row.target.ids], device=scorer.device)[:, None]
        for states, tokens in zip(
            scorer.hidden(batch).split(CHUNK_POSITIONS), written.split(CHUNK_POSITIONS), strict=True
        ):
            log_q = scorer.head.logits(states).float().log_softmax(-1)[:, :size]
            if log_q.isnan().any():
                raise UserError(
                    "the scorer's logits are not numbers",
                    code="E-on-policy-scorer-not-finite",
                    where="on_policy.scorer",
                    found="NaN",
                )
            values, ids = log_q.topk(min(top_k, size), dim=-1)
            values, ids = torch.cat([values, log_q.gather(-1, tokens)], 1), torch.cat([ids, tokens], 1)
            is_new = torch.ones_like(ids, dtype=torch.bool)
            is_new[:, -1] = (ids[:, :-1] != tokens).all(1)  # the row's own token may be one of the most likely
            distributions += [
                (row[keep].tolist(), p[keep].tolist())
                for row, p, keep in zip(ids, values.exp().clamp_min(MIN_PROBABILITY), is_new, strict=True)
            ]
    scorer.train(was_training)
    result, start = [], 0
    for row in rows:
        positions = distributions[start : start + len(row.target)]
        start += len(row.target)
        offsets = [0, *accumulate(len(ids) for ids, _ in positions)]
        candidate_ids = [token for ids, _ in positions for token in ids]
        probabilities = [value for _, values in positions for value in values]
        target = Target(row.target.ids, offsets, candidate_ids, probabilities, row.target.kinds)
        result.append(replace(row, target=target))
    return result


def rescore_across_tokenizers(
    scorer: ScoringEngine,
    scorer_tokenizer: Tokenizer,
    student_tokenizer: Tokenizer,
    prompt_of: Callable[[str], Prompt],
    rows: Sequence[Example],
    *,
    top_k: int,
    budget: int,
) -> list[Example]:
    """The same rows with the scorer's distributions as targets; the scorer reads prompts in its own template.

    prompt_of  the question id of a row -> its prompt
    top_k      the scorer's most likely tokens at each of its positions, beside the written one
    budget     tokens in a batch of the scorer

    Raises UserError if a text does not fit the scorer's context, or if its logits are NaN.
    """
    stops: list[StopReason] = ["end" if row.target.kinds[-1] == "end" else "length" for row in rows]
    texts = [student_tokenizer.decode(row.target.ids) for row in rows]
    if b"\n" not in student_tokenizer.decode_bytes(student_tokenizer.encode("a\nb").ids):
        # The student's tokenizer drops the line break before the answer that the scorer expects.
        texts = [prompts.restore_answer_line(text) for text in texts]
    chains = [
        Chain.from_text(row.question, index, text, source=row.format, stop=stop)
        for index, (row, text, stop) in enumerate(zip(rows, texts, stops, strict=True))
    ]
    pairs = [(prompt_of(chain.question), chain) for chain in chains]
    scored = local_model.score_chains(scorer, pairs, top_logprobs=top_k, batch_tokens=budget)
    completions = text_rule_completions.completions(scored, student_tokenizer)
    encoder = get_encoder(student_tokenizer)
    result = []
    for row, chain in zip(rows, scored, strict=True):
        transferred = cross_tokenizer.transfer(chain, student_tokenizer, "text", completions, scorer_tokenizer)
        if len(transferred):
            target = self_written_target(transferred, chain, encoder)
        else:  # the tokens have no text (special ones, cut by the token limit): the row stays, without scores
            target = _target_with_rows(row.target, [{}] * len(row.target))
        result.append(replace(row, target=target))
    return result


def self_written_target(target: Target, chain: Chain, encoder: Encoder) -> Target:
    """A transferred target for a student that wrote the text itself.

    A chain's hard positions teach that the teacher wrote this token; here the student wrote it, so hard positions lose
    their distribution. And the written token enters every distribution, however unlikely: as part of the tail it would
    cost the student next to nothing.
    """
    _, offsets = encode_chain_text(chain, encoder)
    starts = np.array([start for start, _ in chain.spans])
    pairs = zip(chain.tokens, chain.candidates, strict=False)
    log_probabilities = np.array([dict(step)[token] for token, step in pairs])
    end = dict(chain.candidates[-1]).get(END, -math.inf)
    rows = []
    for position, (token, kind) in enumerate(zip(target.ids, target.kinds, strict=True)):
        row = target.distribution(position)
        if kind == "hard" or (kind == "end" and row == {token: 1.0}):
            row = {}
        elif token not in row:
            value = end
            if kind != "end":  # the product of the probabilities of the scorer's tokens that start inside this token
                inside = (starts >= offsets[position, 0]) & (starts < offsets[position, 1])
                value = float(log_probabilities[inside].sum())
            row[token] = max(MIN_PROBABILITY, math.exp(value))
        rows.append(row)
    return _target_with_rows(target, rows)


def _target_with_rows(target: Target, rows: Sequence[Mapping[int, float]]) -> Target:
    """The target with other distributions. A position with an empty one is all tail, which costs nothing."""
    filled = [row or {token: 0.0} for token, row in zip(target.ids, rows, strict=True)]
    return Target(
        target.ids,
        [0, *accumulate(map(len, filled))],
        [token for row in filled for token in row],
        [value for row in filled for value in row.values()],
        target.kinds,
    )
