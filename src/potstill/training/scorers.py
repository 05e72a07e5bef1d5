"""Scorers: models that give their distributions at the tokens of texts that the student wrote.

    >>> from potstill.models import Shape, random_student
    >>> from potstill import demo, tokenization
    >>> tokenizer = tokenization.load_tokenizer(demo.DATA / "models" / "student")
    >>> student = random_student(Shape("t5", 8, 1, 2, 16, 4, tokenizer.size), tokenizer, seed=1)
    >>> [row] = teacher_forced_scores(student, [hard_example((5, 6), (7, 8), tokenizer.eos)], 2)
    >>> row.target.ids, row.target.kinds, [len(row.target.distribution(p)) in (2, 3) for p in range(3)]
    ((7, 8, 1), ('same', 'same', 'end'), [True, True, True])

`teacher_forced_scores` is for a scorer with the student's tokenizer. `transfer_scores` is for a scorer with another
tokenizer, in this process or on a server. It scores the texts as a teacher scores existing chains, and the rule `text`
transfers the scores to the student's vocabulary. Its rows have the text as the student's tokenizer encodes it, which may
differ from the tokens that the student generated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Final, NamedTuple

import numpy as np

from potstill import prompts, thoughts
from potstill.alignment import cross_tokenizer, text_rule_completions
from potstill.alignment.exact_rules import encode_chain_text
from potstill.errors import UserError
from potstill.inference.transformers import hard_example, score_targets
from potstill.models import Example, Student
from potstill.records import END, Chain, Prompt, StopReason, Target, TargetKind
from potstill.tokenization import Tokenizer
from potstill.tokenization.encoder import Encoder, get_encoder

MIN_PROBABILITY: Final = 1e-9  # lower probabilities are raised to it, so that divergences stay finite
# Function from pairs of the scorer's prompt and a chain to the chains with the scorer's tokens and log-probabilities, as
# `teachers.local_model.score_chains`.
ScoreChains = Callable[[Sequence[tuple[Prompt, Chain]]], list[Chain]]


def teacher_forced_scores(scorer: Student, rows: Sequence[Example], top_k: int) -> list[Example]:
    """The same rows with the scorer's distributions as targets, from one forward pass without dropout and gradients.

    A position gets the probabilities of the scorer's `top_k` most likely tokens and of the row's own token. Raises
    UserError if a logit is NaN.
    """
    ids, log_q = score_targets(scorer, rows, top_k, vocabulary=scorer.tokenizer.size)
    if log_q.isnan().any():
        what = "the logits of the scorer are NaN"
        raise UserError(what, code="E-on-policy-scorer-not-finite", where="the scorer of on-policy texts", found="NaN")
    probabilities = log_q.exp().clamp_min(MIN_PROBABILITY)
    # A row's own token comes last. If it is also one of the most likely tokens, the dict keeps it at that earlier place.
    pairs = zip(ids.tolist(), probabilities.tolist(), strict=True)
    distributions = (dict(zip(tokens, values, strict=True)) for tokens, values in pairs)
    return [
        replace(row, target=_with_rows(row.target, [next(distributions) for _ in range(len(row.target))]))
        for row in rows
    ]


def transfer_scores(
    score: ScoreChains,
    scorer_tokenizer: Tokenizer | None,
    student_tokenizer: Tokenizer,
    prompt_of: Callable[[str], Prompt],
    rows: Sequence[Example],
    *,
    only_answer: bool = False,
) -> list[Example]:
    """The same rows with the distributions of a scorer with another tokenizer as targets.

    score             scores chains; it reads the prompts in its own chat template
    scorer_tokenizer  its tokenizer; None if it is unknown, as for a server
    prompt_of         function from the question id of a row to the scorer's prompt
    only_answer       of a text with thoughts between special tokens, score only the answer: the thoughts keep the
                      student's tokens, without distributions

    The scorer reads special tokens that are tags of thoughts as text. They keep the student's tokens, without distributions,
    because a scorer may have tags of its own.

    Raises UserError if a text does not fit into the scorer's context, if a logit is NaN, and if a server does not score.
    """
    borders = [_answer_border(row, student_tokenizer) if only_answer else 0 for row in rows]
    # The scorer expects a line break before the answer, but some tokenizers of students drop line breaks.
    drops_lines = b"\n" not in student_tokenizer.decode_bytes(student_tokenizer.encode("a\nb").ids)
    restore = prompts.restore_answer_line if drops_lines else str
    spelled = [_spell_text(row, student_tokenizer, border, restore) for row, border in zip(rows, borders, strict=True)]
    stops: list[StopReason] = ["end" if _ends(row) else "length" for row in rows]
    chains = [
        Chain.from_text(row.question, index, text, source=row.format, stop=stop)
        for index, (row, (text, _), stop) in enumerate(zip(rows, spelled, stops, strict=True))
    ]
    scored = score([(prompt_of(chain.question), chain) for chain in chains])
    parts = [[_slice(chain, run) for run in runs] for chain, (_, runs) in zip(scored, spelled, strict=True)]
    completions = text_rule_completions.completions([part for row in parts for part in row], student_tokenizer)
    encoder = get_encoder(student_tokenizer)

    def transfer(part: Chain) -> Target:
        target = cross_tokenizer.transfer(part, student_tokenizer, "text", completions, scorer_tokenizer)
        if not len(target) or not part.candidates:
            return without_scores(target)
        return self_written_target(target, part, encoder)

    return [
        replace(row, target=_join(row.target, runs, [transfer(part) for part in parts_of_row]))
        for row, (_, runs), parts_of_row in zip(rows, spelled, parts, strict=True)
    ]


class _Run(NamedTuple):
    """Tokens of a row, without tags, that are scored.

    first, last  position of the first token, and the position after the last
    start, end   bytes of their text in the text that the scorer reads
    is_last      whether the end of the row's text follows
    """

    first: int
    last: int
    start: int
    end: int
    is_last: bool


def _spell_text(
    row: Example, tokenizer: Tokenizer, border: int, restore: Callable[[str], str]
) -> tuple[str, list[_Run]]:
    """The text of a row with the names of its tags, as a scorer reads it, and the runs of tokens that are scored.

    border   number of tokens at the start that are not scored
    restore  changes the text after the last tag
    """
    ids, names = row.target.ids[: len(row.target) - _ends(row)], tokenizer.vocabulary.thought_tags
    text = b"".join(tokenizer.spell(ids[:border])).decode("utf-8", "replace")
    tags = [position for position in range(border, len(ids)) if ids[position] in names]
    runs, first = [], border
    for last in (*tags, len(ids)):
        start, part = len(text.encode()), tokenizer.decode(ids[first:last])
        part = restore(part) if last == len(ids) else part
        runs.append(_Run(first, last, start, start + len(part.encode()), last == len(ids)))
        text += part + ("" if last == len(ids) else names[ids[last]].decode())
        first = last + 1
    return text, runs


def _ends(row: Example) -> bool:
    """Whether the last position of a row is the end of its text."""
    return row.target.kinds[-1] == "end"


def _slice(chain: Chain, run: _Run) -> Chain:
    """The part of a scored chain that is the text of a run. Tokens across its borders are left out."""
    if run.start == 0 and run.is_last:
        return chain
    inside = [at for at, (start, end) in enumerate(chain.spans) if run.start <= start and end <= run.end]
    has_end = run.is_last and len(chain.candidates) > len(chain.tokens)
    return replace(
        chain,
        content=chain.content[run.start : run.end],
        tokens=tuple(chain.tokens[at] for at in inside),
        spans=tuple((chain.spans[at][0] - run.start, chain.spans[at][1] - run.start) for at in inside),
        candidates=tuple(chain.candidates[at] for at in (*inside, *([-1] if has_end else []))),
        stop=chain.stop if run.is_last else "length",
    )


def _join(target: Target, runs: Sequence[_Run], scored: Sequence[Target]) -> Target:
    """A row's target with the scored targets of its runs. All other positions, and runs without text, keep their tokens,
    without distributions."""
    ids: list[int] = []
    kinds: list[TargetKind] = []
    rows: list[Mapping[int, float]] = []
    position = 0
    for run, found in zip(runs, scored, strict=True):
        # Tokens without text (special tokens up to the token limit) get no scores.
        until = run.first if len(found) else (len(target) if run.is_last else run.last)
        ids += target.ids[position:until]
        kinds += target.kinds[position:until]
        rows += [{}] * (until - position)
        ids += found.ids
        kinds += found.kinds
        rows += map(found.distribution, range(len(found)))
        position = len(target) if run.is_last else run.last
    return _build_target(tuple(ids), tuple(kinds), rows)


def self_written_target(target: Target, chain: Chain, encoder: Encoder) -> Target:
    """Change a transferred target for a text that the student wrote.

    A hard position teaches a token that the teacher wrote. Here the student wrote it, so hard positions lose their
    distribution. The other distributions get the written token, even if it is very unlikely: as part of the tail it
    would hardly cost the student anything.
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
            if kind != "end":  # multiply the probabilities of the scorer's tokens that start inside this token
                inside = (starts >= offsets[position, 0]) & (starts < offsets[position, 1])
                value = float(log_probabilities[inside].sum())
            row[token] = max(MIN_PROBABILITY, math.exp(value))
        rows.append(row)
    return _with_rows(target, rows)


def without_scores(target: Target) -> Target:
    """The target without distributions: no position adds a divergence."""
    return _with_rows(target, [{}] * len(target))


def only_answer_scores(row: Example, tokenizer: Tokenizer) -> Example:
    """The row without distributions inside its thoughts, which stand between tags (`potstill.thoughts`); the tags may be
    special tokens. The end of the text belongs to the answer. A text without thoughts does not change."""
    first = _answer_start(row, tokenizer)
    if first is None:
        return row
    ends = accumulate(map(len, tokenizer.spell(row.target.ids)))
    rows = [row.target.distribution(position) if end > first else {} for position, end in enumerate(ends)]
    return replace(row, target=_with_rows(row.target, rows))


def _answer_start(row: Example, tokenizer: Tokenizer) -> int | None:
    """The byte of a row's text, with its tags, at which the answer begins; the length of the text if it ends in a thought,
    which the prompt may have opened. None if the text has no thoughts."""
    # An invalid byte becomes one character, and is one byte again in the positions of `split_tags`.
    content, prompt = (b"".join(tokenizer.spell(ids)) for ids in (row.target.ids, row.prompt))
    parts = [part for part in thoughts.split_tags(content.decode("utf-8", "surrogateescape")) if part.is_answer]
    if parts:
        return parts[-1].start
    opened = thoughts.ends_in_thought(prompt.decode("utf-8", "surrogateescape"))
    return len(content) if opened else None


def _answer_border(row: Example, tokenizer: Tokenizer) -> int:
    """The number of tokens up to the last tag before the answer that is a special token; 0 without such a tag. All tokens
    of text if the text ends in a thought."""
    first, names = _answer_start(row, tokenizer), tokenizer.vocabulary.thought_tags
    if first is None or not names.keys() & {*row.target.ids, *row.prompt}:
        return 0
    ends = list(accumulate(map(len, tokenizer.spell(row.target.ids))))
    if first == ends[-1]:
        return len(row.target) - _ends(row)
    tags = (at for at, token in enumerate(row.target.ids) if token in names and ends[at] <= first)
    return 1 + max(tags, default=-1)


def _with_rows(target: Target, rows: Sequence[Mapping[int, float]]) -> Target:
    """The target with other distributions."""
    return _build_target(target.ids, target.kinds, rows)


def _build_target(ids: Sequence[int], kinds: Sequence[TargetKind], rows: Sequence[Mapping[int, float]]) -> Target:
    """The target with these distributions. A position with an empty distribution is all tail, and adds no loss."""
    filled = [row or {token: 0.0} for token, row in zip(ids, rows, strict=True)]
    return Target(
        ids,
        [0, *accumulate(map(len, filled))],
        [token for row in filled for token in row],
        [value for row in filled for value in row.values()],
        kinds,
    )


__all__ = [
    "ScoreChains",
    "hard_example",
    "only_answer_scores",
    "self_written_target",
    "teacher_forced_scores",
    "transfer_scores",
    "without_scores",
]
