"""Reasoning: models that think aloud before they answer, in a field of its own or between <think> and </think>.

    >>> choice = Choice(text="<think>1 + 1 = 2</think>\\nThe answer is 2", finish_reason="stop")
    >>> text, parts = whole(choice, "both")
    >>> narrowed(Chain.from_text("q", 0, text, source="teacher"), parts).text
    '1 + 1 = 2\\nThe answer is 2'

The chain is the reasoning, the answer, or both with a newline between; tokens within stay with their candidates.
"""

from __future__ import annotations

from dataclasses import replace

from potstill.records import Chain
from potstill.teachers.openai.body import Choice

OPEN, CLOSE = "<think>", "</think>"
Parts = list[tuple[int, int]]


def whole(choice: Choice, learn: str) -> tuple[str, Parts]:
    """The text that the entries of a choice speak of, and the byte ranges of it that are learnt; none: all of it."""
    if choice.message is None:
        return _inline(choice.text or "", learn)
    thought = choice.message.reasoning or choice.message.reasoning_content or ""
    answer = choice.message.content or ""
    if not thought:
        return _inline(answer, learn)
    said = _said(choice)
    if thought in said and said.rfind(answer) >= said.find(thought) + len(thought):  # the entries speak of both
        text, first, second = said, said.find(thought), said.rfind(answer)
    else:
        text, first, second = f"{thought}\n{answer}", 0, len(thought) + 1
    return text, _parts(text, (first, first + len(thought)), (second, second + len(answer)), learn)


def _inline(text: str, learn: str) -> tuple[str, Parts]:
    closed = text.find(CLOSE)
    begun = text.find(OPEN)
    if closed < 0 and begun < 0:
        return text, []
    opened = begun >= 0 and (begun < closed or closed < 0)  # some templates open it themselves
    start = begun + len(OPEN) if opened else 0
    if closed < 0:  # it never came to answer
        return text, _parts(text, (start, len(text)), (len(text), len(text)), learn)
    return text, _parts(text, (start, closed), (closed + len(CLOSE), len(text)), learn)


def _parts(text: str, thought: tuple[int, int], answer: tuple[int, int], learn: str) -> Parts:
    chosen = {"both": (thought, answer), "reasoning": (thought,), "answer": (answer,)}[learn]
    ranges = []
    for start, end in chosen:
        inner = text[start:end]
        start += len(inner) - len(inner.lstrip())
        end = start + len(inner.strip())
        before = len(text[:start].encode("utf-8", "replace"))
        ranges.append((before, before + len(text[start:end].encode("utf-8", "replace"))))
    return ranges


def _said(choice: Choice) -> str:
    """The strings of the entries, one after the other."""
    listing = choice.logprobs
    if listing is None:
        return ""
    tokens = [e.token for e in listing.content] if listing.content is not None else listing.tokens or []
    return "".join(token or "" for token in tokens)


def narrowed(chain: Chain, parts: Parts) -> Chain:
    """The chain of some ranges of its bytes, a newline between them. A token that lies in none of them is left out, and
    the last step with it if the end of the last range is not the end of the text."""
    content, tokens, spans, candidates = b"", [], [], []
    steps = chain.candidates or ((),) * len(chain.tokens)
    for start, end in [part for part in parts if part[0] < part[1]]:
        content += b"\n" if content else b""
        moved = len(content) - start
        content += chain.content[start:end]
        for token, (first, last), step in zip(chain.tokens, chain.spans, steps, strict=False):
            if start <= first and last <= end:
                tokens.append(token)
                spans.append((first + moved, last + moved))
                candidates.append(step)
    if len(chain.candidates) > len(chain.tokens) and parts and parts[-1][1] == len(chain.content):
        candidates.append(chain.candidates[-1])
    return replace(
        chain,
        content=content,
        tokens=tuple(tokens),
        spans=tuple(spans),
        candidates=tuple(candidates) if chain.candidates else (),
    )
