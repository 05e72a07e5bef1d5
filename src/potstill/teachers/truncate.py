"""Cutting a chain behind its answer sentence: text, tokens and candidates in step, as Fu et al. 2023 cut theirs.

    >>> chain = Chain.from_tokens(
    ...     "q1", 0, [b"The answer is", b" 4", b"\\n", b"Q"],
    ...     [[(b"The answer is", -0.1)], [(b" 4", -0.2)], [(b"\\n", -0.3), (END, -1.6), (b".", -3.0)], [(b"Q", -0.4)]])
    >>> done = truncate_at_answer(chain)
    >>> done.text, done.stop, len(done.tokens)
    ('The answer is 4', 'cut', 2)
    >>> [(what, round(value, 2)) for what, value in done.candidates[-1]]      # exp(-0.3) + exp(-1.6) = exp(-0.06)
    [(END, -0.06), (b'.', -3.0)]

The newline that ends the line is what END is to a student, so:
- if a token begins with it, that token's step becomes the last step. There END stands for every outcome that begins
  with a newline and for the model's own END, their probabilities added.
- if a token straddles it (".\\n"), the token keeps what stands before the newline, and so does each of its candidates:
  outcomes that are now the same are added. What the model would have said between the two parts nobody asked it: such
  a chain has no last step.
Steps before the answer's last keep their candidates as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from potstill import prompts
from potstill.alignment.rewrite import merge_candidates
from potstill.records import END, Candidate, Chain, End

DECIMALS: Final = 6  # of a log-probability, as the engine gives them


def truncate_at_answer(chain: Chain, after: int = 0) -> Chain:
    """The chain up to the end of the first line that holds "answer is"; the same chain if no newline follows it.

    after  byte at which the answer part begins: what a model thinks before it may say "the answer is" many times
    """
    # Read as Latin-1 a character is a byte, so the place found is a byte offset whatever the bytes are.
    end = prompts.find_answer_end(chain.content[after:].decode("latin-1"))
    if end is None or after + end == len(chain.content):
        return chain
    end += after
    # The token that holds the newline; a source may have left it out of its list.
    at = next((index for index, (_, stop) in enumerate(chain.spans) if stop > end), len(chain.tokens))
    start = chain.spans[at][0] if at < len(chain.tokens) else len(chain.content)
    tokens, spans, candidates = chain.tokens[:at], chain.spans[:at], chain.candidates[:at]
    step = chain.candidates[at] if at < len(chain.candidates) else ()
    if start < end:
        kept = chain.tokens[at][: end - start]
        tokens, spans = (*tokens, kept), (*spans, (start, end))
        if chain.candidates:
            candidates = (
                *candidates,
                merge_candidates([(_cut_outcome(what, kept), value) for what, value in step], DECIMALS),
            )
    elif start == end and step:
        candidates = (*candidates, merge_end_outcomes(step))
    return replace(chain, content=chain.content[:end], tokens=tokens, spans=spans, candidates=candidates, stop="cut")


def merge_end_outcomes(step: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """The last step of a chain: END stands for every outcome that begins with a newline, too."""
    return merge_candidates([(_newline_to_end(what), value) for what, value in step], DECIMALS)


def _cut_outcome(what: bytes | End, kept: bytes) -> bytes | End:
    """What an outcome says up to the newline; `kept` may itself hold earlier ones."""
    if what is END:
        return END
    newline = what.find(b"\n", len(kept) if what.startswith(kept) else 0)
    return what if newline < 0 else END if newline == 0 else what[:newline]


def _newline_to_end(what: bytes | End) -> bytes | End:
    return END if what is not END and what.startswith(b"\n") else what
