"""Thoughts: what a reasoning model writes for itself, which is not its answer.

>>> spoken("<think>20?</think> It is 18.", False), spoken("[THINK]20[/THINK]18", False)
(' It is 18.', '18')
>>> spoken("<think>The answer is 18. But wait", True) is None
True
"""

from __future__ import annotations

import re
from typing import Final

_NAMES: Final = r"(?:seed:)?(?:think(?:ing)?|thoughts?|reason(?:ing)?|reflection|scratchpad|analysis|inner_monologue)"
_TAG = re.compile(
    rf"(?P<open><{_NAMES}>|\[THINK(?:ING)?\]|\u25c1think\u25b7|<\|(?:START_THINKING|begin_of_thought|inner_prefix)\|>)"
    rf"|</{_NAMES}>|\[/THINK(?:ING)?\]|\u25c1/think\u25b7|<\|(?:END_THINKING|end_of_thought|inner_suffix)\|>",
    re.IGNORECASE,
)
# gpt-oss writes channels: analysis and commentary are thoughts, final is the answer. Where a server drops the special
# tokens, their names run into the text: "analysisThe user asks ...assistantfinal18".
_CHANNEL = re.compile(r"<\|channel\|>\s?(analysis|commentary|final)\b[^<\n]{0,80}<\|message\|>")
_BARE_CHANNEL = re.compile(r"\s?analysis(?=[A-Z0-9\"'])")
_BARE_FINAL: Final = "assistantfinal"


def spoken(text: str, cut: bool) -> str | None:
    """The text without thoughts; the text itself where nothing else stands in it.

    cut  the text was cut off. Then a thought without an answer behind it is nothing: None.
    A closing tag without an opening one ends a thought that began in the prompt.
    """
    bare = text[:12].lstrip().startswith("analysis")
    if not bare and "<" not in text and "[" not in text and "\u25c1" not in text:
        return text
    if "<|channel|>" in text or bare:
        channels = _final_channel(text)
        if channels is not None:
            return channels if channels.strip() or not cut else None
        if _CHANNEL.search(text) or _BARE_CHANNEL.match(text):
            return None if cut else text
    kept: list[str] = []
    at, opened = 0, -1
    seen = False
    for tag in _TAG.finditer(text):
        seen = True
        if tag["open"]:
            if opened < 0:
                kept.append(text[at : tag.start()])
                opened = tag.start()
            continue
        if opened < 0:
            kept.clear()  # it began before the text, or before what seemed to be its end
        at, opened = tag.end(), -1
    if not seen:
        return text
    if opened < 0:
        kept.append(text[at:])
    outside = "".join(kept)
    if opened >= 0 and not cut:
        return text
    if outside.strip():
        return outside
    return None if cut else text


def _final_channel(text: str) -> str | None:
    """What stands in the last final channel, None where there is none."""
    last = None
    for match in _CHANNEL.finditer(text):
        last = match if match[1] == "final" else last
    if last is not None:
        return text[last.end() :]
    at = text.rfind(_BARE_FINAL) if _BARE_CHANNEL.match(text) else -1
    return None if at < 0 else text[at + len(_BARE_FINAL) :]
