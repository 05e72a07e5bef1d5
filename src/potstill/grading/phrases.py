"""The answer types text (a name or phrase), exact text, list (words in order) and brackets.

>>> is_same_text(parse_gold_text("The men's track team"), extract_marked_text(" Men's track team.", ()))
True
>>> extract_marked_list(" 1. ant, 2. bee.", ()), extract_marked_brackets(" `] }`.", "")
(('ant', 'bee'), ']}')

`answer_types.AnswerType` explains the five functions of a type.
"""

from __future__ import annotations

import re
from typing import Final

from potstill.grading import normalize

# text

_TOKEN = re.compile(r"[^\W_]+(?:[.':&/-][^\W_]+)*|[^\w\s]", re.UNICODE)
_TOKEN_END = re.compile(r"'s$")
_ARTICLES: Final = {"a", "an", "the"}
_OPENINGS: Final = {"that", "it", "he", "she", "they", "is", "was", "are", "were", "on", "in", "at"}


def _content_words(text: str) -> tuple[str, ...] | None:
    """The words without articles, possessive 's and an opening such as "it is"; all words if none remains."""
    tokens = [_TOKEN_END.sub("", match[0].casefold()) for match in _TOKEN.finditer(text[:2000])]
    tokens = [token if any(map(str.isdigit, token)) else token.replace(".", "") for token in tokens]
    words = [token for token in tokens if token not in _ARTICLES and (token.isalnum() or len(token) > 1)]
    start = 0
    while start < len(words) and words[start] in _OPENINGS:
        start += 1
    return tuple(words[start:] or words or tokens) or None


def parse_gold_text(gold: str) -> tuple[str, ...] | None:
    return _content_words(gold)


def extract_marked_text(text: str, gold: tuple[str, ...]) -> tuple[str, ...] | None:
    return _mark_further_answers(normalize.read_answer_sentence(text), gold)


def extract_unmarked_text(text: str, gold: tuple[str, ...]) -> tuple[str, ...] | None:
    return extract_marked_text(normalize.read_last_line(text), gold)


# "apples, pears" and "Tom & Ann" are two answers; "Tom, who is 5" and "Tom, not Ann" are one answer and a remark.
_FURTHER_ANSWER = re.compile(
    r"\s*(?:[&+/;]|,(?!\s*(?:who|which|that|the|an?|because|since|as|not|with|so|but|while|whose|where|when|it|he|she"
    r"|they|is|was|if|by|for|in|at|on|of|to)\b))\s*\(?[^\W_]+(?:\s[^\W_]+){0,2}[\s.!\"'*)]*$|\s*[&+/]\s*\w",
    re.IGNORECASE,
)


def _mark_further_answers(sentence: str, gold: tuple[str, ...]) -> tuple[str, ...] | None:
    """The words of a sentence, with "and" behind the gold answer if another answer follows, "not" if it is denied."""
    words = _content_words(sentence)
    if words is None or words[: len(gold)] != gold or len(words) == len(gold):
        return words
    for match in _TOKEN.finditer(sentence[:2000]):
        if _content_words(sentence[: match.end()]) == gold:
            if normalize.REJECTION.match(sentence, match.end()):
                return ("not", *gold)
            return (*gold, "and", *words[len(gold) :]) if _FURTHER_ANSWER.match(sentence, match.end()) else words
        if match.end() > 400:
            break
    return words


def is_same_text(gold: tuple[str, ...], words: tuple[str, ...]) -> bool:
    """Whether the words begin with the gold answer: "Purple beads" is Purple, "Purple or red" is not."""
    return words[: len(gold)] == gold and (len(words) == len(gold) or words[len(gold)] not in ("or", "and"))


def format_words(words: tuple[str, ...]) -> str:
    return " ".join(words)[:200]


# exact text


def parse_gold_exact(gold: str) -> str | None:
    return " ".join(gold.split()) or None


def extract_exact(text: str, gold: str) -> str | None:
    answer = " ".join(text[:2000].split())
    # A gold answer may itself end in a period, or one may follow it: then the gold answer decides where the text ends.
    if answer in (gold, gold + ".") or answer.startswith(gold + ". "):
        return gold
    return answer.split(". ")[0] or None


def format_exact(text: str) -> str:
    return text[:200]


# list

_ITEM_NUMBER = re.compile(r"(?:^|(?<=\s))(?:\(?[0-9]{1,3}[.)]|[-*\u2022])\s|(?m:^)\(?[a-z][.)]\s")
_LIST_END = re.compile(r"\.(?:\s|$)|\n\s*\n")


def parse_gold_list(gold: str) -> tuple[str, ...] | None:
    return _split_list(gold)


def _split_list(text: str) -> tuple[str, ...] | None:
    parts = re.split(r"(?:[\s,;<>]|->|=>|[\u2190-\u21ff\u2794-\u27be])+", _ITEM_NUMBER.sub(" ", text))
    words = (part.strip("\"'`*[]().").lower() for part in parts)
    return tuple(word for word in words if word) or None


def extract_marked_list(text: str, gold: tuple[str, ...]) -> tuple[str, ...] | None:
    """The words of the first paragraph if they equal the gold answer, else those of its first line without "and"."""
    text = _ITEM_NUMBER.sub(" ", text.strip(" \t\n:=*_`"))
    match = _LIST_END.search(text)
    paragraph = text if match is None else text[: match.start()]
    words = _split_list(paragraph)
    if words == gold or words is None:
        return words
    words = _split_list(paragraph.split("\n")[0]) or words
    return words if "and" in gold else tuple(word for word in words if word not in ("and", "&")) or words


_BULLETED_LINE = re.compile(rf"\s*{normalize.BULLET_PATTERN}\s+\S")


def extract_unmarked_list(text: str, gold: tuple[str, ...]) -> tuple[str, ...] | None:
    if len(text) < 2000 and extract_marked_list(text, gold) == gold:
        return gold
    last = _read_last_list(text)[:2000]
    return extract_marked_list(last.rpartition(":")[2], gold) or _split_list(last)  # "The sorted list is: ant, bee"


def _read_last_list(text: str) -> str:
    """The lines of the list that ends a text (numbered, with bullets, or one word each); else the last line."""
    lines = [line for line in text[-4000:].strip().split("\n") if line.strip()]
    for is_item in (lambda line: _BULLETED_LINE.match(line) is not None, lambda line: len(line.split()) == 1):
        count = 0
        while count < len(lines) and is_item(lines[-1 - count]):
            count += 1
        if count > 1:
            return "\n".join(lines[-count:])
    return lines[-1] if lines else ""


# brackets

_BRACKETS = re.compile(r"[\[\](){}<>][\[\](){}<>\s,\"'`\\]*")


def parse_gold_brackets(gold: str) -> str | None:
    text = "".join(gold.split())
    return text if text and set(text) <= set("[](){}<>") else None


def extract_marked_brackets(text: str, gold: str) -> str | None:
    first_line = text.split("\n", 1)[0]
    match = _BRACKETS.search(first_line if first_line.strip() else text)
    return None if match is None else "".join(character for character in match[0] if character in "[](){}<>")


def extract_unmarked_brackets(text: str, gold: str) -> str | None:
    return extract_marked_brackets(normalize.read_last_line(text), gold)
