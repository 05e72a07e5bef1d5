"""Truncating a chain at the end of its answer sentence, as in Fu et al. 2023: text, tokens and candidates together.

    >>> chain = Chain.from_tokens(
    ...     "q1", 0, [b"The answer is", b" 4", b"\\n", b"Q"],
    ...     [[(b"The answer is", -0.1)], [(b" 4", -0.2)], [(b"\\n", -0.3), (END, -1.6), (b".", -3.0)], [(b"Q", -0.4)]])
    >>> truncated = truncate_at_answer(chain)
    >>> truncated.text, truncated.stop, len(truncated.tokens)
    ('The answer is 4', 'cut', 2)
    >>> [(piece, round(logprob, 2)) for piece, logprob in truncated.candidates[-1]]    # exp(-0.3) + exp(-1.6) = exp(-0.06)
    [(END, -0.06), (b'.', -3.0)]

The newline that ends the answer line corresponds to END for a student:
- If a token begins with the newline, its position becomes the last one of the chain. END there stands for every
  candidate that begins with a newline and for the model's own END; their probabilities are added.
- If a token contains text before the newline (".\\n"), the token and its candidates keep only that text. Candidates that
  become equal are merged. The model was not asked for its next token after that text, so such a chain has no last
  position.
All earlier positions keep their candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from potstill import prompts
from potstill.alignment.rewrite import merge_candidates
from potstill.records import END, Candidate, Chain, End

DECIMALS: Final = 6  # of a log-probability, as engines give them


def truncate_at_answer(chain: Chain, answer_start: int = 0) -> Chain:
    """The chain up to the end of the first line that contains "answer is"; unchanged if no newline follows that line.

    answer_start  the byte at which the answer begins: a thought before it may contain "the answer is" many times
    """
    # In Latin-1 every byte is one character, so the character position is a byte position.
    end = prompts.find_answer_end(chain.content[answer_start:].decode("latin-1"))
    if end is None or answer_start + end == len(chain.content):
        return chain
    end += answer_start
    # The token that contains the newline; a server may have omitted it from its list.
    index = next((index for index, (_, stop) in enumerate(chain.spans) if stop > end), len(chain.tokens))
    start = chain.spans[index][0] if index < len(chain.tokens) else len(chain.content)
    tokens, spans, candidates = chain.tokens[:index], chain.spans[:index], chain.candidates[:index]
    step = chain.candidates[index] if index < len(chain.candidates) else ()
    if start < end:
        kept = chain.tokens[index][: end - start]
        tokens, spans = (*tokens, kept), (*spans, (start, end))
        if chain.candidates:
            shortened = [(_cut_outcome(piece, kept), logprob) for piece, logprob in step]
            candidates = (*candidates, merge_candidates(shortened, DECIMALS))
    elif start == end and step:
        candidates = (*candidates, merge_end_outcomes(step))
    return replace(chain, content=chain.content[:end], tokens=tokens, spans=spans, candidates=candidates, stop="cut")


def merge_end_outcomes(step: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """The candidates of a last position, with END for every candidate that begins with a newline."""
    outcomes = [(END if piece is not END and piece.startswith(b"\n") else piece, logprob) for piece, logprob in step]
    return merge_candidates(outcomes, DECIMALS)


def _cut_outcome(piece: bytes | End, kept: bytes) -> bytes | End:
    """A candidate up to its newline. `kept`, the text of the token before its newline, may contain earlier ones."""
    if piece is END:
        return END
    newline = piece.find(b"\n", len(kept) if piece.startswith(kept) else 0)
    return piece if newline < 0 else END if newline == 0 else piece[:newline]
