"""Units: whether one quantity is said in two units ("2 hours and 30 minutes"), which no single number of it is.

>>> bool(compound("2 hours and 30 minutes", 1)), bool(compound("5 miles in 2 hours", 1)), bool(compound("2h30", 1))
(True, False, True)
"""

from __future__ import annotations

import re
from typing import Final

from potstill.answers import spelled

_FAMILIES: Final = (
    r"hours?|hrs?|h|minutes?|mins?|m|seconds?|secs?|s|days?|d|weeks?|wks?|months?|mos?|years?|yrs?|decades?|centur(?:y|ies)",
    r"feet|foot|ft|inch(?:es)?|in|yards?|yds?|miles?|mi|met(?:er|re)s?|m|centimet(?:er|re)s?|cm|kilomet(?:er|re)s?|km"
    r"|millimet(?:er|re)s?|mm",
    r"pounds?|lbs?|ounces?|oz|kilograms?|kilos?|kg|grams?|g|tons?|tonnes?|stones?|milligrams?|mg",
    r"dollars?|bucks?|cents?|euros?|pounds?|pence|p|quarters?|dimes?|nickels?|penn(?:y|ies)|rupees?|paise|pesos?|centavos?",
    r"gallons?|gal|quarts?|qts?|pints?|pts?|cups?|lit(?:er|re)s?|l|millilit(?:er|re)s?|ml|tablespoons?|tbsp|teaspoons?"
    r"|tsp|fluid\sounces?|fl\.?\soz",
    r"degrees?|\u00b0|minutes?|seconds?",
    r"dozens?|gross|scores?",
)
_JOIN: Final = r"\.?(?:\s?,\s?(?:and\s)?|\s(?:and|&|plus)\s|\s?)"
_COMPOUNDS: Final = [
    re.compile(
        rf"\s?-?(?P<first>{family})\b{_JOIN}(?P<number>[$]?[0-9]+(?:\.[0-9]+)?|(?:{spelled.WORD})(?:-(?:{spelled.WORD}))?)"
        rf"(?:\s?-?(?P<second>{family})\b|[\s.!*$)\\]*$)",
        re.IGNORECASE,
    )
    for family in _FAMILIES
]
_JOINED: Final = re.compile(r"\s?h\s?[0-5]?[0-9]\b")  # 2h30
_NOTHING = re.compile(r"[$]?0+(?:\.0+)?|zero", re.IGNORECASE)


def compound(text: str, at: int) -> re.Match[str] | None:
    """A second quantity of the same kind right behind the number that ends at `at`; none if it is zero."""
    if _JOINED.match(text, at):
        return _JOINED.match(text, at)
    for pattern in _COMPOUNDS:
        match = pattern.match(text, at)
        if match is None:
            continue
        first, second = match["first"].lower().rstrip("s"), (match["second"] or "").lower().rstrip("s")
        if first != second and not _NOTHING.fullmatch(match["number"]):
            return match
    return None
