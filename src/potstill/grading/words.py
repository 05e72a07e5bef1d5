"""The answer types in words.

`boolean` (yes or no, true or false, valid or invalid), `choice` (the letter of an option), `text` (a name or phrase),
`exact` (exact text), `list` (words in order) and `brackets`.

>>> extract_marked_boolean(" not valid.", "valid"), extract_unmarked_boolean("I have no idea.", "no")
('invalid', None)
>>> extract_marked_choice(" most likely B, at home.", "A"), extract_marked_choice(" either C or B.", "B")
('B', 'C or B')
>>> is_same_text(parse_gold_text("The men's track team"), extract_marked_text(" Men's track team.", ()))
True
>>> extract_marked_list(" 1. ant, 2. bee.", ()), extract_marked_brackets(" `] }`.", "")
(('ant', 'bee'), ']}')

`answer_types.AnswerType` explains the five functions of a type.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from potstill.grading import normalize

# Boolean

_PAIRS: Final = (("yes", "no"), ("true", "false"), ("valid", "invalid"))
_OPPOSITE: Final = {a: b for pair in _PAIRS for a, b in (pair, pair[::-1])}
_DENIAL: Final = (
    rf"(?:(?:\b(?:not|never|hardly)|n't|\b(?:cannot|can\snot)(?=\sbe\b)|\b{normalize.ALL_BUT})\s+(?:be\s+)?"
    r"(?:[a-z]+ly\s+)?(?:an?\s+)?[*_\"'`(]{0,4}\s?)"
)
# "cannot be called valid", "I would not say that it is true": words may follow the denial, but no new clause.
_DENIAL_OF_ADJECTIVE: Final = (
    r"(?:(?:\b(?:not|never|hardly|scarcely|nor|cannot|fails?\sto|unable\sto|by\sno\smeans|in\sno\sway|under\sno"
    rf"\scircumstances|(?:wrong|incorrect)\sto)[*_]{{0,3}}|n't|\b{normalize.ALL_BUT})"
    r"(?:\s+(?!(?:only|just|merely|doubt|deny|denied|question|dispute|disputed|reason|so|because|but|and|since|as|if|when"
    r"|whether|therefore|thus|hence|then|which|who|true|false|valid|invalid|not|no)\b)[a-z]+){0,5}"
    r"|\bno(?:\s+[a-z]+ly)?)\s+[*_\"'`(]{0,4}\s?"
)
_UNSURE: Final = r"(?:neither|either|whether|both|possibly|perhaps|maybe|sometimes|might\sbe|may\sbe|could\sbe)"
_BOOLEAN: Final = {
    word: re.compile(
        rf"(?P<before>\b{_UNSURE}\s+(?:is\s+)?)?(?P<denied>{denial})?"
        rf"(?<![\w-])(?P<word>{pair[0]}|{pair[1]})\b(?!-)"
        rf"(?P<other>(?:\s+(?:or|and|nor)\s+|\s?/\s?)(?P<second>not|{pair[0]}|{pair[1]})\b"
        rf"|,\s(?:or|and)\s(?P<third>{pair[0]}|{pair[1]})\b)?",
        re.IGNORECASE,
    )
    for pair, denial in zip(_PAIRS, (_DENIAL, _DENIAL_OF_ADJECTIVE, _DENIAL_OF_ADJECTIVE), strict=True)
    for word in pair
}
# "no" is an answer only on its own, not in "no evidence", "no one" and "no longer".
_BOOLEAN_ALONE = re.compile(
    r"[\s*_\"'`)\]}$]*(?:[.,;:!?\u2014=(/-]|$|\n|(?:because|since|as|for|it|its|he|she|they|we|you|i|this|that|these|those|the"
    r"|an?|there|not|and|but|or|nor|so|if|unless|while|although|though|in|on|at|by|due|when|given|based|is|was|to|with|would"
    r"|does|do|did|can|cannot|will|yes|no|q|question|thus|therefore|hence|answer|after)\b)",
    re.IGNORECASE,
)
# After yes or no: "yes, but only if", "no, unless".
_CONDITION = re.compile(
    r"[\"'*`]{0,2},?\s(?:but\s)?(?:only\s)?(?:if|unless|depending|in\s(?:some|certain)\scases|sometimes)\b",
    re.IGNORECASE,
)


def parse_gold_boolean(gold: str) -> str | None:
    word = gold.strip().rstrip(".").lower()
    return word if word in _OPPOSITE else None


def extract_marked_boolean(text: str, gold: str) -> str | None:
    sentence = normalize.read_answer_sentence(text).rpartition("=")[2]  # "(True and False) = False"
    return next((_boolean_of(match, sentence) for match in _find_booleans(sentence, gold)), None)


def extract_unmarked_boolean(text: str, gold: str) -> str | None:
    """The boolean at the beginning of the text; otherwise the last boolean of the text."""
    text = text.strip(normalize.STRIP_CHARS)
    answer = None
    for match in _find_booleans(text, gold):
        answer = _boolean_of(match, text)
        if match.start() == 0 and not match["other"]:  # but not "Yes or no? Yes"
            break
    return answer


def _find_booleans(text: str, gold: str) -> Iterator[re.Match[str]]:
    """The matches of the gold answer's pair of words ("yes" and "no") that may be an answer."""
    for match in _BOOLEAN[gold].finditer(text):
        if match["word"].lower() != "no" or _BOOLEAN_ALONE.match(text, match.end("word")):
            yield match


def _boolean_of(match: re.Match[str], text: str) -> str:
    """The word that the text asserts; for a hedge, the text of the hedge."""
    word = match["word"].lower()
    condition = _CONDITION.match(text, match.end()) if word in ("yes", "no") else None
    has_other = match["other"] and (match["second"] or match["third"]).lower() != word
    if match["before"] or condition is not None or has_other:
        end = match.end() if condition is None else condition.end()
        return " ".join(text[match.start() : end].lower().split())
    denied = bool(match["denied"]) != (normalize.REJECTION.match(text, match.end()) is not None)
    return _OPPOSITE[word] if denied else word


_CHOICE_GOLD = re.compile(r"\(?([A-Z])\)?\.?")
_OPTION_NOUN: Final = r"(?:(?:the )?(?:option|choice|letter|answer)s? )"
# Words that may precede a letter without brackets after a marker. They say how certain the answer is.
_CONFIDENCE_WORDS: Final = (
    r"(?:(?:most|very|more|quite|almost|probably|likely|possibly|perhaps|maybe|presumably|certainly|definitely|clearly"
    r"|obviously|surely|undoubtedly|apparently|evidently|simply|just|only|indeed|actually|therefore|thus|then|hence|so|again"
    r"|still|also|really|best|closest to|close to|nearest to|either|both|between|i think|i believe|of course|in fact"
    r"|is|be|to be"
    r"|should be|would be|must be|could be|might be|can be|going to be|that of|given by|represented by|it is|it's|that"
    r"|in my opinion|without a doubt|logically|correctly|necessarily)[\s:,]+){0,5}"
)
_END: Final = (
    r"(?=[).:,;!?\]}*\"'`/&+]|\s*$|\n|\s+(?:because|since|as|which|that|is|or|and|but|not|due|for|\(|-|\u2014|=)(?!\w))"
)
# At the beginning of an answer: "(B)", "option B", "most likely B", "b.".
_LEADING = re.compile(
    rf"(?:{_CONFIDENCE_WORDS})(?:{_OPTION_NOUN}?[(\[](?P<bracket>[A-Za-z])[)\]]"
    rf"|(?!I')(?:option |choice |letter )?(?P<bare>[A-Z]){_END}"
    r"|(?:option |choice |letter )?(?P<plain>[B-HJ-Z])\b(?!['-]\w)"  # A and I are words too
    r"|(?P<small>[a-z])(?=[).]|\s*$))",
)
_IN_BRACKETS = re.compile(r"\(([A-Za-z])\)")
# After a letter: "or (C)", ", C", "and/or option C".
_OTHER_CHOICE = re.compile(
    r"[).*\s\"'`]{0,3}(?:\s\([^()\n]{2,40}\))?(?:\s?,\s?(?:or\s|and\s)?|\s?[/&+;|]\s?"
    r"|\s\(?(?:or|and|and/or|as well as|nor)(?:,\s[a-z ]{1,20},)?\s)"
    r"(?:(?:the )?(?:option|choice) )?(?:\((?P<bracket>[A-Z])\)(?!\s(?:is|are|was|does|do|has|would|can|cannot|isn't"
    r"|doesn't|fails?|seems|looks|too)\b)|[*_\"'`]{0,3}(?P<bare>[A-Z])(?=[)\]}*\"'`\s]*(?:$|[.,;&/+!?]|\(|\b(?:and|or)\b))(?!\)\s\w))"
)
# "D) attic or E) cupboard": another letter after the words of the first option.
_AFTER_WORDS = re.compile(
    r"[).:]?\s(?:(?!\b(?:because|since|as|not|but|while|whereas|so)\b)[^.;()\n]){1,60}?\s(?:or|and)\s(?:option )?"
    r"[\"'`*]{0,2}(?:\(([A-Z])\)|([A-Z])\))(?!\s(?:is|are|was|does|do|has|would|can|cannot|isn't|doesn't|fails?|seems|looks)\b)"
)
# "(A) (C)" and "A C".
_ADJOINING = re.compile(r"\s?\(([A-Z])\)()(?=\s?(?:$|[.,;(]))|()\s([B-HJ-Z])(?=[.)]?\s*$)")
# "B, possibly D", "A, though C could be right too"
_LETTER: Final = r"(?:option\s|choice\s)?(?:\(([A-Z])\)|\b([A-HJ-Z])\b(?!')(?:\s\([^()\n]{1,40}\))?)"
_ALSO: Final = r"(?:right|correct|possible|plausible|true|acceptable|the\s|an?\s)"
_SECOND_THOUGHT: Final = (
    re.compile(
        rf"\b(?:{normalize.HEDGE_WORDS}|alternatively,?|or\s(?:else|even|rather)|if\snot|(?:could|might|may)\s(?:also\s|well\s"
        rf"|even\s)?be)\s(?!A\s[a-z]){_LETTER}"
    ),
    re.compile(
        rf"{_LETTER}\s(?:(?:(?:could|might|may)\s(?:also\s|well\s)?|would\salso\s)(?:be\s(?:also\s)?{_ALSO}|work|fit|apply)"
        rf"|is\salso\s{_ALSO})"
    ),
)
_CALLED_RIGHT = re.compile(r"\(?\b([A-Z])\)?\s(?:is|must be)\s(?:the\s)?(?:correct|right)\b")
_CLOSING = re.compile(r"\b([B-HJ-Z])[.)*]{0,3}\s*$")
# Before a letter: "not", "rule out", "unlike".
_CALLED_WRONG = re.compile(
    r"\b(?:not|n't|neither|nor|cannot be|can't be|never|rule out|exclude|eliminate|discard|unlike|than"
    rf"|{normalize.ALL_BUT})\s(?:option |choice )?$",
    re.IGNORECASE,
)
# After a letter: "does not fit", "is too small", "makes no sense".
_DISMISSED = re.compile(
    r"\s(?:(?:and|or|nor|,)\s\([A-Z]\)\s)?(?:does\snot|doesn't|do\snot|don't|did\snot|didn't|fails?\b|is\snot|isn't|are\snot"
    r"|aren't|cannot|can't|(?:is|are|seems?|looks?|would\sbe)\s(?:clearly\s|also\s)?(?:wrong|incorrect|false|out\b|too\b"
    r"|impossible|unlikely|implausible|irrelevant|nonsense|invalid|ruled)|has\sno|makes?\sno)",
)
# The letter alone, as the first line or sentence of an answer; reasons may follow.
_LETTER_ALONE = re.compile(
    r"[\s*_#\"'`$>]{0,12}(?:(?:option|choice|answer):?\s)?(?:\(([A-Za-z])\)|([A-Z]))[*_\"'`$]{0,4}"
    r"(?:[.:)]?[*_\"'`$]{0,4}[ \t]*(?:\n|$)|\.[*_\"'`]{0,4}\s)",
    re.IGNORECASE,
)
_CONCLUSION = re.compile(
    r"\b(?:so|thus|therefore|hence|in conclusion|overall|finally)\b[^.\n()]{0,60}\(([A-Za-z])\)", re.IGNORECASE
)


def parse_gold_choice(gold: str) -> str | None:
    match = _CHOICE_GOLD.fullmatch(gold.strip())
    return None if match is None else match[1]


def extract_marked_choice(text: str, gold: str) -> str | None:
    """The letter in the first sentence; if the sentence names several options, their letters joined by "or"."""
    sentence = normalize.read_answer_sentence(text)
    match = _LEADING.match(sentence[:1].lower() + sentence[1:] if sentence[1:2].islower() else sentence)
    if match is not None:
        letter, end = match["bracket"] or match["bare"] or match["plain"] or match["small"], match.end()
    else:
        offered = next(_find_offered_letters(sentence), None)
        if offered is None:
            return None
        letter, end = offered[1], offered.end()
    if _is_rejected(sentence, end):
        return None
    others: list[str] = []
    while len(others) < 26 and (other := _OTHER_CHOICE.match(sentence, end)):
        others.append(other["bracket"] or other["bare"])
        end = other.end()
    further = None if others else _ADJOINING.match(sentence, end) or _AFTER_WORDS.match(sentence, end)
    further = further or next(filter(None, (pattern.search(sentence, end) for pattern in _SECOND_THOUGHT)), None)
    others += [next(filter(None, further.groups()))] if further else []
    return " or ".join(dict.fromkeys([letter.upper(), *others]))


def extract_unmarked_choice(text: str, gold: str) -> str | None:
    """The first of these: a letter alone at the beginning, a letter called right, the last letter not dismissed."""
    start = text.strip()
    if not start:
        return None
    alone = _LETTER_ALONE.match(start)
    if alone is not None and not _CONCLUSION.search(start, alone.end()):
        return (alone[1] or alone[2]).upper()
    if _NONE_OF_THESE.search(start, max(0, len(start) - 100)):
        return None
    leading = extract_marked_choice(start, gold) if len(start) < 400 and "\n" not in start else None
    if leading is not None and len(_IN_BRACKETS.findall(text)) <= 1:
        return leading
    called_right = _CALLED_RIGHT.findall(text)
    if called_right:
        return called_right[-1]
    offered = list(_find_offered_letters(text))
    remaining = [match for match in offered if not _DISMISSED.match(text, match.end())] or offered[-1:]
    if len(remaining) > 1 and _JOINED_LETTERS.fullmatch(text, remaining[-2].end(), remaining[-1].start()):
        return " or ".join(match[1].upper() for match in remaining[-2:])
    if remaining:
        return remaining[-1][1].upper()
    last = _CLOSING.search(text, max(0, len(text) - 20))
    if leading is not None or last is None:
        return leading
    return None if _HEDGED_LETTER.search(text, max(0, last.start() - 20), last.start()) else last[1]


_NONE_OF_THESE = re.compile(
    r"(?:^|[.!?]\s+|\n)(?:[a-z]+,?\s)?none of (?:these|them|the(?! other))\b[^.\n]*[.\s]*$", re.IGNORECASE
)
_JOINED_LETTERS = re.compile(r"\s?(?:[,/&]|,?\s?\b(?:or|and))\s?")  # "(A) or (B)"
_HEDGED_LETTER = re.compile(r"\b(?:either|or|nor|neither|not|and)\s(?:option )?\(?$", re.IGNORECASE)
_AND_ANOTHER = re.compile(r"(?:(?:,\s\([A-Z]\)){0,4},?\s(?:and|or)\s\([A-Z]\))?")  # "(A) and (B) are wrong"


def _is_rejected(text: str, end: int) -> bool:
    another = _AND_ANOTHER.match(text, end)
    return normalize.REJECTION.match(text, end if another is None else another.end()) is not None


def _find_offered_letters(text: str) -> Iterator[re.Match[str]]:
    """The letters in brackets that the text does not deny."""
    for match in _IN_BRACKETS.finditer(text):
        denied = _CALLED_WRONG.search(text, max(0, match.start() - 24), match.start())
        if denied is None and not _is_rejected(text, match.end()):
            yield match


def format_choice(letter: str) -> str:
    return f"({letter})" if len(letter) == 1 else letter


# Text

_TOKEN = re.compile(r"[^\W_]+(?:[.':&/-][^\W_]+)*|[^\w\s]", re.UNICODE)
_TOKEN_END = re.compile(r"'s$")
_ARTICLES: Final = {"a", "an", "the"}
_OPENINGS: Final = {"that", "it", "he", "she", "they", "is", "was", "are", "were", "on", "in", "at"}


def parse_gold_text(text: str) -> tuple[str, ...] | None:
    """The words without articles, possessive 's and an opening such as "it is"; all words if no word would remain."""
    tokens = [_TOKEN_END.sub("", match[0].casefold()) for match in _TOKEN.finditer(text[:2000])]
    tokens = [token if any(map(str.isdigit, token)) else token.replace(".", "") for token in tokens]
    words = [token for token in tokens if token not in _ARTICLES and (token.isalnum() or len(token) > 1)]
    start = 0
    while start < len(words) and words[start] in _OPENINGS:
        start += 1
    return tuple(words[start:] or words or tokens) or None


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
    """The words of a sentence, with "and" after the gold answer if another answer follows it, "not" if it is denied."""
    words = parse_gold_text(sentence)
    if words is None or words[: len(gold)] != gold or len(words) == len(gold):
        return words
    for match in _TOKEN.finditer(sentence[:2000]):
        if parse_gold_text(sentence[: match.end()]) == gold:
            if normalize.REJECTION.match(sentence, match.end()):
                return ("not", *gold)
            return (*gold, "and", *words[len(gold) :]) if _FURTHER_ANSWER.match(sentence, match.end()) else words
        if match.end() > 400:
            break
    return words


def is_same_text(gold: tuple[str, ...], words: tuple[str, ...]) -> bool:
    """Whether the words begin with the gold answer: "Purple beads" is the same as "Purple", "Purple or red" is not."""
    return words[: len(gold)] == gold and (len(words) == len(gold) or words[len(gold)] not in ("or", "and"))


def format_words(words: tuple[str, ...]) -> str:
    return " ".join(words)[:200]


# Exact text


def parse_gold_exact(gold: str) -> str | None:
    return " ".join(gold.split()) or None


def extract_exact(text: str, gold: str) -> str | None:
    answer = " ".join(text[:2000].split())
    # The gold answer may end in a period, or a period may follow it. In both cases the answer ends with the gold answer.
    if answer in (gold, gold + ".") or answer.startswith(gold + ". "):
        return gold
    return answer.split(". ")[0] or None


# Label

_BEFORE_LABEL = re.compile(r"(?:the\s)?(?:label|category|class)\b(?:\sis\b)?[\s:=*]*")
_AFTER_LABEL = re.compile(r"[\s.!*_\"'`$]*(?:$|[,;:.]?\s(?:because|since|as)\b|,?\s\()")


def parse_gold_label(gold: str) -> str | None:
    """The label in lower case, with single spaces."""
    return " ".join(gold[:2000].split()).casefold() or None


def extract_marked_label(text: str, gold: str) -> str | None:
    """The gold label, if the text is this label, alone or with a reason; otherwise the words of the first sentence."""
    line = parse_gold_label(text.strip()[:2000].split("\n", 1)[0]) or ""
    bare = line.lstrip(normalize.STRIP_CHARS + ".")
    named = _BEFORE_LABEL.match(bare)
    for start in (line, bare, bare[named.end() :] if named else bare):
        if start.startswith(gold) and _AFTER_LABEL.match(start, len(gold)):
            return gold
    sentence = parse_gold_label(normalize.read_answer_sentence(text[:2000])) or ""
    named = _BEFORE_LABEL.match(sentence)
    sentence = sentence[named.end() :] if named and named.end() < len(sentence) else sentence
    reason = re.search(r"[,;:]?\s(?:because|since)\b|,?\s\(", sentence)
    return (sentence if reason is None else sentence[: reason.start()])[:200] or None


def extract_unmarked_label(text: str, gold: str) -> str | None:
    return extract_marked_label(normalize.read_last_line(text), gold)


# List

_ITEM_NUMBER = re.compile(r"(?:^|(?<=\s))(?:\(?[0-9]{1,3}[.)]|[-*\u2022])\s|(?m:^)\(?[a-z][.)]\s")
_LIST_END = re.compile(r"\.(?:\s|$)|\n\s*\n")


def parse_gold_list(text: str) -> tuple[str, ...] | None:
    parts = re.split(r"(?:[\s,;<>]|->|=>|[\u2190-\u21ff\u2794-\u27be])+", _ITEM_NUMBER.sub(" ", text))
    words = (part.strip("\"'`*[]().").lower() for part in parts)
    return tuple(word for word in words if word) or None


def extract_marked_list(text: str, gold: tuple[str, ...]) -> tuple[str, ...] | None:
    """The words of the first paragraph if they equal the gold answer; otherwise those of its first line, without "and"."""
    text = _ITEM_NUMBER.sub(" ", text.strip(" \t\n:=*_`"))
    match = _LIST_END.search(text)
    paragraph = text if match is None else text[: match.start()]
    words = parse_gold_list(paragraph)
    if words == gold or words is None:
        return words
    words = parse_gold_list(paragraph.split("\n")[0]) or words
    return words if "and" in gold else tuple(word for word in words if word not in ("and", "&")) or words


_BULLETED_LINE = re.compile(rf"\s*{normalize.BULLET_PATTERN}\s+\S")


def extract_unmarked_list(text: str, gold: tuple[str, ...]) -> tuple[str, ...] | None:
    if len(text) < 2000 and extract_marked_list(text, gold) == gold:
        return gold
    last = _read_last_list(text)[:2000]
    return extract_marked_list(last.rpartition(":")[2], gold) or parse_gold_list(last)  # "The sorted list is: ant, bee"


def _read_last_list(text: str) -> str:
    """The lines of the list at the end of a text (numbered, with bullets, or one word per line); else the last line."""
    lines = [line for line in text[-4000:].strip().split("\n") if line.strip()]
    for is_item in (lambda line: _BULLETED_LINE.match(line) is not None, lambda line: len(line.split()) == 1):
        count = 0
        while count < len(lines) and is_item(lines[-1 - count]):
            count += 1
        if count > 1:
            return "\n".join(lines[-count:])
    return lines[-1] if lines else ""


# Brackets

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
