"""Reasoning: models that think aloud before they answer, in a field of its own or between tags.

    >>> parts = split_tags("<think>1 + 1 = 2</think>\\nThe answer is 2")
    >>> chain = Chain.from_text("q", 0, "<think>1 + 1 = 2</think>\\nThe answer is 2", source="teacher")
    >>> select_parts(chain, parts, "both")[0].text
    '1 + 1 = 2\\nThe answer is 2'

The chain is the reasoning, the answer, or both with a newline between; tokens within stay with their candidates.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Final, NamedTuple

from potstill.records import Chain

# Tags as models write them; gpt-oss writes channels, of which `final` is the answer.
_TAG: Final = re.compile(
    r"<(?P<a>/?)(?:think|thinking|thought|thoughts|reasoning|seed:think)>|\[(?P<b>/?)THINK\]|◁(?P<c>/?)think▷"
    r"|<\|(?P<d>begin|end)_of_thought\|>"
    r"|(?:<\|start\|>assistant)?<\|channel\|>(?P<e>\w+)[^<]*<\|message\|>|<\|(?P<f>end|return|call)\|>",
    re.IGNORECASE,
)


class TextPart(NamedTuple):
    """Bytes start to end of a text, and whether they are the answer; else they are a thought."""

    start: int
    end: int
    answer: bool


Parts = list[TextPart]


def split_tags(text: str) -> Parts:
    """The thoughts of a text and its answer, which stands behind the last of them; none where it has no tags.

    Some templates open the thought themselves, so a tag that closes needs none before it. A thought that is not closed
    has no answer.
    """
    if "<" not in text and "[" not in text and "◁" not in text:
        return []
    tags = [tag for tag in _TAG.finditer(text) if tag["f"] is None]
    if not tags:
        return []
    parts, at, thinking = [], 0, not _opens_thought(tags[0])
    for tag in tags:
        if thinking and not (_opens_thought(tag) and tag["e"] is None):
            parts.append((at, tag.start()))
        elif parts:
            parts.append((at, tag.start()))  # between two thoughts: one as well
        thinking, at = _opens_thought(tag), tag.end()
    end = next((tag.start() for tag in _TAG.finditer(text, at) if tag["f"]), len(text))
    answer = (len(text), len(text)) if thinking else (at, end)
    if thinking:
        parts.append((at, end))
    return [_strip_part(text, start, end, False) for start, end in parts] + [
        _strip_part(text, answer[0], answer[1], True)
    ]


def _opens_thought(tag: re.Match[str]) -> bool:
    if tag["e"] is not None:
        return tag["e"].lower() != "final"
    if tag["d"] is not None:
        return tag["d"].lower() == "begin"
    return not (tag["a"] or tag["b"] or tag["c"])


def _strip_part(text: str, start: int, end: int, answer: bool) -> TextPart:
    inner = _TAG.sub(lambda tag: " " * len(tag[0]), text[start:end])  # what a channel ends with is not its text
    start += len(inner) - len(inner.lstrip())
    end = start + len(inner.strip())
    before = len(text[:start].encode("utf-8", "replace"))
    return TextPart(before, before + len(text[start:end].encode("utf-8", "replace")), answer)


def join_fields(thought: str, answer: str) -> tuple[str, Parts]:
    """One text of a thought and an answer that came in fields of their own, with its parts."""
    text = f"{thought}\n{answer}"
    return text, [_strip_part(text, 0, len(thought), False), _strip_part(text, len(thought) + 1, len(text), True)]


def select_parts(chain: Chain, parts: Parts, learn: str) -> tuple[Chain, int]:
    """The chain of the parts that are learnt, a newline between them, and the byte at which its answer begins (its
    length if it has none). A token that lies in none of them is left out, and the last step with it if the end of the
    last part is not the end of the text."""
    chosen = [part for part in parts if learn == "both" or part.answer == (learn == "answer")]
    content, answers_at, tokens, spans, candidates = b"", -1, [], [], []
    steps = chain.candidates or ((),) * len(chain.tokens)
    for start, end, answer in [part for part in chosen if part.start < part.end]:
        content += b"\n" if content else b""
        answers_at = len(content) if answer and answers_at < 0 else answers_at
        moved = len(content) - start
        content += chain.content[start:end]
        for token, (first, last), step in zip(chain.tokens, chain.spans, steps, strict=False):
            if start <= first and last <= end:
                tokens.append(token)
                spans.append((first + moved, last + moved))
                candidates.append(step)
    if len(chain.candidates) > len(chain.tokens) and chosen and chosen[-1].end == len(chain.content):
        candidates.append(chain.candidates[-1])
    made = replace(
        chain,
        content=content,
        tokens=tuple(tokens),
        spans=tuple(spans),
        candidates=tuple(candidates) if chain.candidates else (),
    )
    return made, answers_at if answers_at >= 0 else len(content)
