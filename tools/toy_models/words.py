"""Words of the toy problems: names, things, boxes, places.

    >>> len(set(NAMES)), len({plural for _, plural in THINGS}), article("apple"), article("cup")
    (40, 40, 'an apple', 'a cup')

Every family draws from these lists, but has its own verbs and sentences.
"""

from __future__ import annotations

from typing import Final


def words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def pairs(text: str) -> tuple[tuple[str, str], ...]:
    """Pairs of singular and plural, from words such as `apple/apples`."""
    return tuple((one, many) for one, _, many in (word.partition("/") for word in text.split()))


NAMES: Final = words("""
    Tom Ann Ben Eva Sam Lily Max Nora Leo Ruth Paul Ida Carl Rosa Jack Mia
    Omar Lena Hugo Vera Fred Alma Ivan Zoe Karl Emma Otto Sara Luis Dora Finn Gina
    Adam Ella Theo Clara Noah Iris Peter Maya
""")
THINGS: Final = pairs("""
    apple/apples pear/pears cookie/cookies marble/marbles sticker/stickers book/books pencil/pencils coin/coins
    shell/shells stamp/stamps card/cards egg/eggs cake/cakes rose/roses button/buttons stone/stones toy/toys ball/balls
    candle/candles hat/hats cup/cups plate/plates nut/nuts plum/plums lemon/lemons ribbon/ribbons kite/kites
    spoon/spoons bean/beans flower/flowers pen/pens bowl/bowls peach/peaches feather/feathers bell/bells key/keys
    map/maps glove/gloves doll/dolls leaf/leaves
""")
BOXES: Final = pairs("""
    box/boxes bag/bags jar/jars basket/baskets drawer/drawers shelf/shelves crate/crates pot/pots
""")
PLACES: Final = words("park school market beach garden shop house lake station harbour")
COLOURS: Final = words("red blue green yellow white black brown pink")
ANIMALS: Final = words("dog cat horse cow duck goat mouse owl fox sheep")


def article(noun: str) -> str:
    """The noun with `a` or `an` before it."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"
