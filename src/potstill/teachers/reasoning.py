"""Reasoning models: the thought and the answer of a text, in separate fields or between tags.

    >>> parts = split_tags("<think>1 + 1 = 2</think>\\nThe answer is 2")
    >>> chain = Chain.from_text("q", 0, "<think>1 + 1 = 2</think>\\nThe answer is 2", source="teacher")
    >>> select_parts(chain, parts, "both")[0].text
    '1 + 1 = 2\\nThe answer is 2'

The chain is the thought, the answer, or both with a newline between. The tokens inside them keep their candidates.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Final, NamedTuple

from potstill.records import Chain

# Tags as models write them; gpt-oss writes channels, of which `final` is the answer.
_TAG: Final = re.compile(
    r"<(?P<xml_end>/?)(?:think|thinking|thought|thoughts|reasoning|seed:think)>|\[(?P<bracket_end>/?)THINK\]"
    r"|◁(?P<triangle_end>/?)think▷|<\|(?P<begin_or_end>begin|end)_of_thought\|>"
    r"|(?:<\|start\|>assistant)?<\|channel\|>(?P<channel>\w+)[^<]*<\|message\|>|<\|(?P<channel_end>end|return|call)\|>",
    re.IGNORECASE,
)


class TextPart(NamedTuple):
    """The bytes from start to end of a text, which are the answer or else a thought."""

    start: int
    end: int
    answer: bool


TextParts = list[TextPart]


def split_tags(text: str) -> TextParts:
    """The thoughts of a text, and its answer, which follows the last of them; empty for a text without tags.

    Some templates open the thought themselves, so a closing tag needs no opening one. After a thought that is not
    closed the answer is empty.
    """
    if "<" not in text and "[" not in text and "◁" not in text:
        return []
    tags = [tag for tag in _TAG.finditer(text) if tag["channel_end"] is None]
    if not tags:
        return []
    thoughts, position, thinking = [], 0, not _opens_thought(tags[0])
    for tag in tags:
        if thinking and not (_opens_thought(tag) and tag["channel"] is None):
            thoughts.append((position, tag.start()))
        elif thoughts:
            thoughts.append((position, tag.start()))  # text between two thoughts is a thought as well
        thinking, position = _opens_thought(tag), tag.end()
    end = next((tag.start() for tag in _TAG.finditer(text, position) if tag["channel_end"]), len(text))
    answer = (len(text), len(text)) if thinking else (position, end)
    if thinking:
        thoughts.append((position, end))
    return [_strip_part(text, start, end, False) for start, end in thoughts] + [
        _strip_part(text, answer[0], answer[1], True)
    ]


def _opens_thought(tag: re.Match[str]) -> bool:
    if tag["channel"] is not None:
        return tag["channel"].lower() != "final"
    if tag["begin_or_end"] is not None:
        return tag["begin_or_end"].lower() == "begin"
    return not (tag["xml_end"] or tag["bracket_end"] or tag["triangle_end"])


def _strip_part(text: str, start: int, end: int, answer: bool) -> TextPart:
    inner = _TAG.sub(lambda tag: " " * len(tag[0]), text[start:end])  # the end tag of a channel is not part of its text
    start += len(inner) - len(inner.lstrip())
    end = start + len(inner.strip())
    first_byte = len(text[:start].encode("utf-8", "replace"))
    return TextPart(first_byte, first_byte + len(text[start:end].encode("utf-8", "replace")), answer)


def join_fields(thought: str, answer: str) -> tuple[str, TextParts]:
    """One text of a thought and an answer from separate fields, and its parts."""
    text = f"{thought}\n{answer}"
    return text, [_strip_part(text, 0, len(thought), False), _strip_part(text, len(thought) + 1, len(text), True)]


def select_parts(chain: Chain, parts: TextParts, learnt: str) -> tuple[Chain, int]:
    """The chain of the learnt parts (both, reasoning, or answer), with a newline between them, and the byte at which
    its answer begins (its length if it has none).

    A token outside all parts is dropped. The last position is kept only if the last part ends where the text ends.
    """
    chosen = [part for part in parts if learnt == "both" or part.answer == (learnt == "answer")]
    content, answer_start, tokens, spans, candidates = b"", -1, [], [], []
    steps = chain.candidates or ((),) * len(chain.tokens)
    for start, end, answer in [part for part in chosen if part.start < part.end]:
        content += b"\n" if content else b""
        answer_start = len(content) if answer and answer_start < 0 else answer_start
        offset = len(content) - start
        content += chain.content[start:end]
        for token, (first, last), step in zip(chain.tokens, chain.spans, steps, strict=False):
            if start <= first and last <= end:
                tokens.append(token)
                spans.append((first + offset, last + offset))
                candidates.append(step)
    if len(chain.candidates) > len(chain.tokens) and chosen and chosen[-1].end == len(chain.content):
        candidates.append(chain.candidates[-1])
    selected = replace(
        chain,
        content=content,
        tokens=tuple(tokens),
        spans=tuple(spans),
        candidates=tuple(candidates) if chain.candidates else (),
    )
    return selected, answer_start if answer_start >= 0 else len(content)
