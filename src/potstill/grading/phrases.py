"""Words: a name or phrase, an exact text, a list of words in order, a row of brackets.

>>> is_same_text(parse_gold_text("The men's track team"), extract_marked_text(" Men's track team.", ()))
True
>>> extract_marked_list(" 1. ant, 2. bee.", ()), extract_marked_brackets(" `] }`.", "")
(('ant', 'bee'), ']}')
"""

from __future__ import annotations

import re
from typing import Final

from potstill.grading import normalize

# words: text, exact text, lists

_TOKEN = re.compile(r"[^\W_]+(?:[.':&/-][^\W_]+)*|[^\w\s]", re.UNICODE)
_TOKEN_END = re.compile(r"'s$")
_ARTICLES: Final = {"a", "an", "the"}
_OPENINGS: Final = {"that", "it", "he", "she", "they", "is", "was", "are", "were", "on", "in", "at"}


def _content_words(text: str) -> tuple[str, ...] | None:
    """The words that say something: no articles, no opening such as "it is", no possessive 's; all if none remains."""
    found = [_TOKEN_END.sub("", match[0].casefold()) for match in _TOKEN.finditer(text[:2000])]
    found = [word if any(map(str.isdigit, word)) else word.replace(".", "") for word in found]
    words = [word for word in found if word not in _ARTICLES and (word.isalnum() or len(word) > 1)]
    start = 0
    while start < len(words) and words[start] in _OPENINGS:
        start += 1
    return tuple(words[start:] or words or found) or None


def parse_gold_text(gold: str) -> tuple[str, ...] | None:
    return _content_words(gold)


def extract_marked_text(text: str, target: tuple[str, ...]) -> tuple[str, ...] | None:
    return _mark_further_answers(normalize.read_answer_sentence(text), target)


def extract_unmarked_text(text: str, target: tuple[str, ...]) -> tuple[str, ...] | None:
    return _mark_further_answers(normalize.read_answer_sentence(normalize.read_last_line(text)), target)


# "apples, pears" and "Tom & Ann" are two; "Tom, who is 5" and "Tom, not Ann" are one and a remark.
_FURTHER_ANSWER = re.compile(
    r"\s*(?:[&+/;]|,(?!\s*(?:who|which|that|the|an?|because|since|as|not|with|so|but|while|whose|where|when|it|he|she"
    r"|they|is|was|if|by|for|in|at|on|of|to)\b))\s*\(?[^\W_]+(?:\s[^\W_]+){0,2}[\s.!\"'*)]*$|\s*[&+/]\s*\w",
    re.IGNORECASE,
)


def _mark_further_answers(sentence: str, target: tuple[str, ...]) -> tuple[str, ...] | None:
    """The words of a sentence, with "and" where the answer is followed by another one."""
    words = _content_words(sentence)
    if words is None or words[: len(target)] != target or len(words) == len(target):
        return words
    for match in _TOKEN.finditer(sentence[:2000]):
        start = sentence[: match.end()]
        if len(_content_words(start) or ()) == len(target) and _content_words(start) == target:
            if normalize.REJECTION.match(sentence, match.end()):
                return ("not", *target)
            return (*target, "and", *words[len(target) :]) if _FURTHER_ANSWER.match(sentence, match.end()) else words
        if match.end() > 400:
            break
    return words


def is_same_text(gold: tuple[str, ...], found: tuple[str, ...]) -> bool:
    return found[: len(gold)] == gold and (len(found) == len(gold) or found[len(gold)] not in ("or", "and"))


def format_words(words: tuple[str, ...]) -> str:
    return " ".join(words)[:200]


def parse_gold_exact(gold: str) -> str | None:
    return " ".join(gold.split()) or None


def extract_exact(text: str, target: str) -> str | None:
    own = " ".join(text[:2000].split())
    # A gold answer may itself end in a period or be followed by one: what remains decides.
    return target if own in (target, target + ".") or own.startswith(target + ". ") else (own.split(". ")[0] or None)


def format_exact(text: str) -> str:
    return text[:200]


_ITEM_NUMBER = re.compile(r"(?:^|(?<=\s))(?:\(?[0-9]{1,3}[.)]|[-*\u2022])\s|(?m:^)\(?[a-z][.)]\s")
_LIST_END = re.compile(r"\.(?:\s|$)|\n\s*\n")


def parse_gold_list(gold: str) -> tuple[str, ...] | None:
    return _split_list(gold)


def _split_list(text: str) -> tuple[str, ...] | None:
    words = re.split(r"(?:[\s,;<>]|->|=>|[\u2190-\u21ff\u2794-\u27be])+", _ITEM_NUMBER.sub(" ", text))
    return tuple(word for word in (w.strip("\"'`*[]().").lower() for w in words) if word) or None


def extract_marked_list(text: str, target: tuple[str, ...]) -> tuple[str, ...] | None:
    text = _ITEM_NUMBER.sub(" ", text.strip(" \t\n:=*_`"))
    match = _LIST_END.search(text)
    paragraph = text if match is None else text[: match.start()]
    whole = _split_list(paragraph)
    if whole == target or whole is None:
        return whole
    found = _split_list(paragraph.split("\n")[0]) or whole
    return found if "and" in target else tuple(word for word in found if word not in ("and", "&")) or found


_BULLETED_LINE = re.compile(rf"\s*{normalize.BULLET_PATTERN}\s+\S")


def extract_unmarked_list(text: str, target: tuple[str, ...]) -> tuple[str, ...] | None:
    whole = extract_marked_list(text, target) if len(text) < 2000 else None
    if whole == target:
        return whole
    last = _read_last_list(text)[:2000]
    return extract_marked_list(last.rpartition(":")[2], target) or _split_list(last)  # "The sorted list is: ant, bee"


def _read_last_list(text: str) -> str:
    """The lines of the list with which a text ends: numbered, with bullets, or of one word each; else its last line."""
    lines = [line for line in text[-4000:].strip().split("\n") if line.strip()]
    for belongs in (lambda line: _BULLETED_LINE.match(line) is not None, lambda line: len(line.split()) == 1):
        count = 0
        while count < len(lines) and belongs(lines[-1 - count]):
            count += 1
        if count > 1:
            return "\n".join(lines[-count:])
    return lines[-1] if lines else ""


# brackets

_BRACKETS = re.compile(r"[\[\](){}<>][\[\](){}<>\s,\"'`\\]*")


def parse_gold_brackets(gold: str) -> str | None:
    text = "".join(gold.split())
    return text if text and set(text) <= set("[](){}<>") else None


def extract_marked_brackets(text: str, target: str) -> str | None:
    match = _BRACKETS.search(text.split("\n", 1)[0] if text.split("\n", 1)[0].strip() else text)
    return None if match is None else "".join(c for c in match[0] if c in "[](){}<>")


def extract_unmarked_brackets(text: str, target: str) -> str | None:
    return extract_marked_brackets(normalize.read_last_line(text), target)
