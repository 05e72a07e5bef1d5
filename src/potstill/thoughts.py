"""The thoughts of reasoning models: text between tags, before an answer.

>>> text = "<think>1 + 1 = 2</think>\\nThe answer is 2"
>>> [text[part.start : part.end] for part in split_tags(text)]
['1 + 1 = 2', 'The answer is 2']
>>> ends_in_thought("<think>1 + 1 is"), ends_in_thought(text), ends_in_thought("1 + 1 is", opened=True)
(True, False, True)
>>> text = "<|START_THINKING|>1 + 1 = 2<|END_THINKING|><|START_RESPONSE|>It is 2.<|END_RESPONSE|>"       # Cohere
>>> [text[part.start : part.end] for part in split_tags(text)]
['1 + 1 = 2', 'It is 2.']
>>> counts = {"cut_in_thought": {"zero-shot-rationale.greedy": [61, 100]}, "thinking_switch": "enable_thinking"}
>>> print(describe_cut_thoughts(counts, is_base=True))      # doctest: +NORMALIZE_WHITESPACE
Warning: 61 of 100 answers of the base (zero-shot-rationale, greedy) were cut inside a thought. It did not get to
its answer, so the gain looks larger than it is. Set student.chat_template_kwargs: {enable_thinking: false}, or
raise evaluate.max_tokens.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from potstill.records import StopReason

READING_VERSION: Final = 2  # of the tags, and of what is read from a thought that was cut; stored only where it matters

# Opening and closing tags, as regular expressions, of models that write other tags than <think> or [THINK].
TAG_PAIRS: Final = (
    (r"<\|START_THINKING\|>", r"<\|END_THINKING\|>"),  # Cohere
    (r"<\|inner_prefix\|>", r"<\|inner_suffix\|>"),  # Apertus
    (r"<\|channel>(?:thought\b)?", r"<channel\|>"),  # Gemma 4; its thoughts begin with the name of the channel
    (r"<\|think:start\|>", r"<\|think:end\|>"),  # Solar Open 2
    (r"<\|plamo:begin_think:plamo\|>", r"<\|plamo:end_think:plamo\|>"),  # PLaMo 3
    (r"<\|begin_of_thought\|>", r"<\|end_of_thought\|>"),  # Sky-T1
    (r"\u25c1think\u25b7", r"\u25c1/think\u25b7"),  # Kimi
)
# Names of tags like <think>: among others of Seed, MiniMax M3 and LongCat.
TAG_NAMES: Final = "think|thinking|thought|thoughts|reasoning|seed:think|mm:think|longcat_think"

# Tags of thoughts, as models write them. gpt-oss writes channels; the channel `final` is the answer. The answers of Cohere's
# models stand between tags, too.
_TAG: Final = re.compile(
    rf"<(?P<xml_end>/?)(?:{TAG_NAMES})>|\[(?P<bracket_end>/?)THINK\]"
    rf"|(?P<pair_start>{'|'.join(start for start, _ in TAG_PAIRS)})"
    rf"|(?P<pair_end>(?:{'|'.join(end for _, end in TAG_PAIRS)})(?:\s*<\|START_(?:RESPONSE|TEXT)\|>)?"
    r"|<\|START_(?:RESPONSE|TEXT)\|>)"
    r"|(?:<\|start\|>assistant)?<\|channel\|>(?P<channel>\w+)[^<]*<\|message\|>"
    r"|<\|(?P<answer_end>end|return|call|END_RESPONSE|END_TEXT)\|>",
    re.IGNORECASE,
)

# Special tokens that are a part of a tag. A tag may also be one special token, as in Magistral and Phi-4-reasoning.
_TAG_PARTS: Final = ("<|start|>", "<|channel|>", "<|message|>")

# Keys in the manifest of an evaluated checkpoint: the answers that were cut inside a thought, by FORMAT.DECODING, and the
# argument of the chat template that turns thoughts off.
CUT_KEY: Final = "cut_in_thought"
SWITCH_KEY: Final = "thinking_switch"


class TextPart(NamedTuple):
    """A part of a text: the bytes from `start` to `end`, which are an answer or a thought."""

    start: int
    end: int
    is_answer: bool


TextParts = list[TextPart]


def split_tags(text: str, *, opened: bool = False) -> TextParts:
    """The thoughts of a text, and the answer after the last thought; empty for a text without tags.

    opened  whether the text begins inside a thought. A text without tags is then one thought

    A closing tag needs no opening tag, because some chat templates write the opening tag into the prompt. If the last
    thought is not closed, the answer is empty.
    """
    if "<" not in text and "[" not in text and "◁" not in text and not opened:
        return []
    tags = [tag for tag in _TAG.finditer(text) if tag["answer_end"] is None]
    if not tags:
        return [strip_part(text, 0, len(text), False), strip_part(text, len(text), len(text), True)] if opened else []
    thoughts, position, thinking = [], 0, opened or not _opens_thought(tags[0])
    for tag in tags:
        if thoughts or opened or (thinking and (tag["channel"] is not None or not _opens_thought(tag))):
            thoughts.append((position, tag.start()))  # text between two thoughts is also a thought
        thinking, position = _opens_thought(tag), tag.end()
    end = next((tag.start() for tag in _TAG.finditer(text, position) if tag["answer_end"]), len(text))
    answer = (position, end)
    if thinking:
        thoughts.append((position, end))
        answer = (len(text), len(text))
    parts = [strip_part(text, start, end, False) for start, end in thoughts]
    return [*parts, strip_part(text, answer[0], answer[1], True)]


def is_tag_token(name: str) -> bool:
    """Whether a special token is a tag or a part of a tag.

    >>> [is_tag_token(name) for name in ("<think>", "[/THINK]", "<|channel|>", "<|END_THINKING|>", "</s>")]
    [True, True, True, True, False]
    """
    return name in _TAG_PARTS or _TAG.fullmatch(name) is not None


def ends_in_thought(text: str, *, opened: bool = False) -> bool:
    """Whether a text ends inside a thought. opened: whether the prompt opened a thought in which the text begins."""
    tags = list(_TAG.finditer(text))
    return _opens_thought(tags[-1]) if tags else opened


def is_cut_in_thought(text: str, stop: StopReason, *, opened: bool = False) -> bool:
    """Whether a text was cut inside a thought, so that it has no answer.

    opened  whether the prompt opened a thought. A text without tags that was stopped after its answer does not count,
            because some students answer at once in an opened thought

    >>> [is_cut_in_thought("The answer is 2. But", stop, opened=True) for stop in ("length", "cut", "end")]
    [True, False, False]
    """
    return stop != "end" and ends_in_thought(text, opened=opened and stop in ("length", "repeat"))


def has_tags(text: str) -> bool:
    """Whether a text, such as a chat template, contains tags of thoughts."""
    return _TAG.search(text) is not None


def _opens_thought(tag: re.Match[str]) -> bool:
    if tag["answer_end"] is not None or tag["pair_end"] is not None:
        return False
    if tag["channel"] is not None:
        return tag["channel"].lower() != "final"
    return not (tag["xml_end"] or tag["bracket_end"])


def strip_part(text: str, start: int, end: int, is_answer: bool) -> TextPart:
    """The part of a text from `start` to `end` (in characters), without surrounding white space and tags."""
    inner = _TAG.sub(lambda tag: " " * len(tag[0]), text[start:end])  # the end tag of a channel is not part of its text
    start += len(inner) - len(inner.lstrip())
    end = start + len(inner.strip())
    first_byte = len(text[:start].encode("utf-8", "replace"))
    return TextPart(first_byte, first_byte + len(text[start:end].encode("utf-8", "replace")), is_answer)


def describe_cut_thoughts(counts: Mapping[str, Any], *, is_base: bool) -> str | None:
    """A warning for the page and the terminal; None if no answer was cut inside a thought."""
    if not counts.get(CUT_KEY):
        return None
    parts = [
        f"{cut} of {total} answers of the {'base' if is_base else 'student'} ({name.replace('.', ', ', 1)})"
        for name, (cut, total) in counts[CUT_KEY].items()
    ]
    effect = "so the gain looks larger than it is" if is_base else "so its score is lower than it could be"
    cut = f"Warning: {' and '.join(parts)} were cut inside a thought."
    return f"{cut} It did not get to its answer, {effect}. {advise(counts.get(SWITCH_KEY))}."


def advise(switch: str | None) -> str:
    """The advice in a warning, without a period. switch: the argument of the template that turns thoughts off, if any."""
    off = f"Set student.chat_template_kwargs: {{{switch}: false}}, or raise" if switch else "Raise"
    return f"{off} evaluate.max_tokens"
