"""Selection of the part of a model's text that becomes a chain: the thought, the answer or both, truncated at the answer.

A reasoning model writes its thought between tags or into a separate field:

    >>> from potstill.thoughts import split_tags
    >>> text = "<think>1 + 1 = 2</think>\\nThe answer is 2"
    >>> chain = Chain.from_text("q", 0, text, source="teacher")
    >>> select_parts(chain, split_tags(text), "both")[0].text
    '1 + 1 = 2\\nThe answer is 2'

A thought may give its answer and then check it again and again. A shortened thought ends where it first gives the
answer that follows the thought (the "first correct solution" of Chen et al. 2024, arXiv 2412.21187):

    >>> text = "<think>1 + 1 = 2. So the answer is 2. Wait, is it? Yes.</think>\\nThe answer is 2"
    >>> chain = Chain.from_text("q", 0, text, source="teacher")
    >>> select_parts(chain, split_tags(text), "shortened")[0].text
    '1 + 1 = 2. So the answer is 2.\\nThe answer is 2'

A chain ends after its answer sentence, as in Fu et al. 2023:

    >>> chain = Chain.from_tokens(
    ...     "q1", 0, [b"The answer is", b" 4", b"\\n", b"Q"],
    ...     [[(b"The answer is", -0.1)], [(b" 4", -0.2)], [(b"\\n", -0.3), (END, -1.6), (b".", -3.0)], [(b"Q", -0.4)]])
    >>> truncated = truncate_at_answer(chain)
    >>> truncated.text, truncated.stop, len(truncated.tokens)
    ('The answer is 4', 'cut', 2)
    >>> [(piece, round(logprob, 2)) for piece, logprob in truncated.candidates[-1]]    # exp(-0.3) + exp(-1.6) = exp(-0.06)
    [(END, -0.06), (b'.', -3.0)]

The newline that ends the answer line corresponds to END for a student:
- If a token begins with the newline, its position becomes the last position of the chain. The candidates there that
  begin with a newline and the model's own END become one candidate, END, with the sum of their probabilities.
- If a token contains text before the newline (".\\n"), the token and its candidates keep only that text. Candidates that
  become equal are merged. The model did not predict a token after that text, so the chain has no last position.
All earlier positions keep their candidates.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Final

from potstill import grading, prompts
from potstill.alignment.rewrite import merge_candidates
from potstill.records import END, Candidate, Chain, End, StopReason
from potstill.thoughts import TextPart, TextParts, strip_part

DECIMALS: Final = 6  # decimals of a log-probability, the same as the engines' results have


def join_fields(thought: str, answer: str) -> tuple[str, TextParts]:
    """A thought and an answer from separate fields, joined to one text; and the parts of that text."""
    text = f"{thought}\n{answer}"
    return text, [strip_part(text, 0, len(thought), False), strip_part(text, len(thought) + 1, len(text), True)]


def lacks_answer(parts: TextParts, stop: StopReason) -> bool:
    """Whether a text of a thought and an answer was cut before the answer began. parts: empty for a text without thoughts."""
    return bool(parts) and stop != "end" and parts[-1].start == parts[-1].end


def is_learnt(part: TextPart, learnt: str) -> bool:
    return learnt in ("both", "shortened") or part.is_answer == (learnt == "answer")


def select_parts(chain: Chain, parts: TextParts, learnt: str) -> tuple[Chain, int]:
    """The chain of the learnt parts, joined by newlines; and the byte at which its answer begins.

    learnt  "both", "reasoning", "answer" or "shortened"
    Without an answer, the second value is the length of the chain in bytes. Tokens outside the parts are dropped. The
    last position (the end) is kept only if the last part ends at the end of the text.
    """
    chosen = [part for part in parts if is_learnt(part, learnt)]
    slices = [(_slice(chain, part), part) for part in chosen if part.start < part.end]
    selected, answer_start = join_parts(chain, slices)
    if len(chain.candidates) > len(chain.tokens) and chosen and chosen[-1].end == len(chain.content):
        selected = replace(selected, candidates=(*selected.candidates, chain.candidates[-1]))
    return shorten_thought(selected, answer_start) if learnt == "shortened" else (selected, answer_start)


def shorten_thought(chain: Chain, answer_start: int) -> tuple[Chain, int]:
    """A chain of a thought and an answer without the part of the thought after its first sentence that gives the same
    answer as the last such sentence of the answer; and the byte at which the answer begins.

    Unchanged if the answer has no such sentence, or the thought never gives this answer. Answers are compared by the
    grader, so 18 is the same as $18.00.
    """
    thought, answer = (
        part.decode("utf-8", "replace") for part in (chain.content[:answer_start], chain.content[answer_start:])
    )
    final = [stated for _, stated in _stated_answers(answer)][-1:]
    ends = (end for end, stated in _stated_answers(thought) if final and _is_same_answer(stated, final[0]))
    end = next(ends, None)
    if end is None:
        return chain, answer_start
    cut = len(thought[:end].encode("utf-8", "replace"))
    # A token that begins before the cut stays whole.
    cut = next((stop for start, stop in chain.spans if start < cut < stop <= answer_start), cut)
    pieces = TextPart(0, cut, False), TextPart(answer_start, len(chain.content), True)
    shortened, start = join_parts(chain, [(_slice(chain, piece), piece) for piece in pieces])
    if len(chain.candidates) > len(chain.tokens):
        shortened = replace(shortened, candidates=(*shortened.candidates, chain.candidates[-1]))
    return shortened, start


def _stated_answers(text: str) -> Iterator[tuple[int, str]]:
    """The end of each complete sentence with "answer is", and the answer that it gives."""
    for match in prompts.ANSWER_SENTENCE.finditer(f"{text}\n"):
        yield match.end(), match[0][len("answer is") :].strip(" \t:*$.!?\"')]")


def _is_same_answer(stated: str, final: str) -> bool:
    if not stated or not final:
        return False
    return stated == final or grading.grade(f"The answer is {stated}", final).grade == "right"


def _slice(chain: Chain, part: TextPart) -> Chain:
    rows = [row for row, (first, last) in enumerate(chain.spans) if part.start <= first and last <= part.end]
    return replace(
        chain,
        content=chain.content[part.start : part.end],
        tokens=tuple(chain.tokens[row] for row in rows),
        spans=tuple((chain.spans[row][0] - part.start, chain.spans[row][1] - part.start) for row in rows),
        candidates=tuple(chain.candidates[row] for row in rows) if chain.candidates else (),
    )


def join_parts(base: Chain, parts: Iterable[tuple[Chain, TextPart]]) -> tuple[Chain, int]:
    """The chains of some parts as one chain, joined by newlines; and the byte at which its answer begins.

    base  the chain that provides all other fields
    Without an answer, the second value is the length of the chain in bytes.
    """
    content, answer_start = b"", -1
    tokens, spans, candidates = [], [], []
    for chain, part in parts:
        content += b"\n" if content else b""
        answer_start = len(content) if part.is_answer and answer_start < 0 else answer_start
        tokens += chain.tokens
        spans += [(first + len(content), last + len(content)) for first, last in chain.spans]
        candidates += chain.candidates
        content += chain.content
    joined = replace(base, content=content, tokens=tuple(tokens), spans=tuple(spans), candidates=tuple(candidates))
    return joined, answer_start if answer_start >= 0 else len(content)


def find_truncation(content: bytes, answer_start: int = 0) -> int | None:
    """The byte at which `truncate_at_answer` ends a text; None if it leaves the text unchanged."""
    # In Latin-1 every byte is one character, so the character position is a byte position.
    end = prompts.find_answer_end(content[answer_start:].decode("latin-1"))
    return None if end is None or answer_start + end == len(content) else answer_start + end


def truncate_at_answer(chain: Chain, answer_start: int = 0) -> Chain:
    """The chain up to the end of the first line that contains "answer is"; unchanged if no newline follows that line.

    answer_start  the byte at which the search begins, because a thought may contain "the answer is" many times
    """
    if (end := find_truncation(chain.content, answer_start)) is None:
        return chain
    # The token that contains the newline. The list of a server may lack it.
    index = next((index for index, (_, stop) in enumerate(chain.spans) if stop > end), len(chain.tokens))
    start = chain.spans[index][0] if index < len(chain.tokens) else len(chain.content)
    tokens, spans, candidates = chain.tokens[:index], chain.spans[:index], chain.candidates[:index]
    step = chain.candidates[index] if index < len(chain.candidates) else ()
    if start < end:
        kept = chain.tokens[index][: end - start]
        tokens, spans = (*tokens, kept), (*spans, (start, end))
        if chain.candidates:
            shortened = [(_shorten(piece, kept), logprob) for piece, logprob in step]
            candidates = (*candidates, merge_candidates(shortened, DECIMALS))
    elif start == end and step:
        candidates = (*candidates, merge_end_outcomes(step))
    return replace(chain, content=chain.content[:end], tokens=tokens, spans=spans, candidates=candidates, stop="cut")


def merge_end_outcomes(step: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """The candidates of a last position; those that begin with a newline are merged into END."""
    outcomes = [(END if piece is not END and piece.startswith(b"\n") else piece, logprob) for piece, logprob in step]
    return merge_candidates(outcomes, DECIMALS)


def _shorten(piece: bytes | End, kept: bytes) -> bytes | End:
    """The candidate up to its newline. kept: the token's text before its newline, which may contain earlier newlines."""
    if piece is END:
        return END
    newline = piece.find(b"\n", len(kept) if piece.startswith(kept) else 0)
    return piece if newline < 0 else END if newline == 0 else piece[:newline]
