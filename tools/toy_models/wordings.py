"""Wordings of the in-distribution family, one on each line.

    >>> len(START), START[0]
    (12, '{A} has {x} {things}.')

Slots: A B C are people, N M the persons of a sentence, x y z numbers, e an equation, T a plural, and the words of the scene
(things others box boxes place). A test checks that the out-of-distribution families share none of these sentences.
"""

from __future__ import annotations

from typing import Final


def lines(text: str) -> tuple[str, ...]:
    """The lines of a block, without those that are empty."""
    return tuple(line.strip() for line in text.splitlines() if line.strip())


START: Final = lines("""
    {A} has {x} {things}.
    At first {A} has {x} {things}.
    {A} starts with {x} {things}.
    {A} owns {x} {things}.
    In the morning {A} has {x} {things}.
    {A} keeps {x} {things} in a {box}.
    {A} comes to the {place} with {x} {things}.
    {A} takes {x} {things} out of a {box}.
    On Monday {A} has {x} {things}.
    There are {x} {things} in the {box} of {A}.
    This week {A} has {x} {things}.
    {A} opens a {box} and sees {x} {things}.
""")
GAIN: Final = lines("""
    {A} finds {y} more {things}.
    {B} gives {A} {y} {things}.
    {A} buys {y} {things}.
    {A} gets {y} {things} from {B}.
    Then {A} makes {y} {things}.
    {A} wins {y} {things}.
    {B} brings {A} {y} more {things}.
    {A} picks up {y} {things}.
    At the {place} {A} collects {y} {things}.
    {A} puts {y} more {things} there.
    A friend gives {A} {y} {things}.
    {A} takes {y} more {things} home.
""")
LOSS: Final = lines("""
    {A} loses {y} {things}.
    {A} gives {y} {things} to {B}.
    {A} sells {y} {things}.
    {B} takes {y} of the {things}.
    {A} uses {y} {things}.
    {A} throws away {y} {things}.
    Then {y} {things} break.
    {A} leaves {y} {things} at the {place}.
    {A} drops {y} {things} in the {place}.
    {A} sends {y} {things} to {B}.
    {A} forgets {y} {things} at the {place}.
    {A} breaks {y} {things}.
""")
ASK_CHANGE: Final = lines("""
    How many {things} does {A} have now?
    How many {things} does {A} have in the end?
    Now {A} has how many {things}?
    How many {things} does that make for {A}?
    Count the {things} of {A} now.
    How many {things} are with {A} at the end?
""")
SAY_CHANGE: Final = lines("""
    {A} has {e} {things}.
    Now {A} has {e} {things}.
    That makes {e} {things}.
    Then there are {e} {things}.
""")
HAS: Final = lines("""
    {N} has {x} {T}.
    {N} holds {x} {T}.
    {N} found {x} {T}.
    {N} carries {x} {T}.
    {N} got {x} {T}.
    {N} brings {x} {T} to the {place}.
    There are {x} {T} in the {box} of {N}.
    {N} made {x} {T}.
    The {box} of {N} holds {x} {T}.
""")
HAS_TWO: Final = lines("""
    {N} has {x} {things} and {y} {others}.
    {N} holds {x} {things} and {y} {others}.
    {N} found {x} {things} and also {y} {others}.
    {N} has a {box} with {x} {things} and {y} {others}.
    {N} made {x} {things} and {y} {others}.
    {N} got {x} {things} and then {y} {others}.
""")
ASK_TOGETHER: Final = lines("""
    How many {things} do they have together?
    How many {things} do they have in all?
    Together they have how many {things}?
    How many {things} is that in total?
    How many {things} do all of them have?
    Count all the {things}.
""")
SAY_TOGETHER: Final = lines("""
    Together that is {e} {things}.
    They have {e} {things}.
    That makes {e} {things}.
    In all there are {e} {things}.
""")
GROUPS: Final = lines("""
    {N} has {x} {boxes} with {y} {T} in each.
    {N} fills {x} {boxes} with {y} {T} each.
    There are {x} {boxes} of {N} with {y} {T} in each.
    {N} carries {x} {boxes}, and each holds {y} {T}.
    In each of {x} {boxes} {N} has {y} {T}.
    {N} gets {x} {boxes} with {y} {T} each.
    {N} puts {y} {T} into each of {x} {boxes}.
    Each of the {x} {boxes} of {N} holds {y} {T}.
    {N} buys {x} {boxes} of {y} {T} each.
""")
ASK_GROUPS: Final = lines("""
    How many {things} are there in all?
    How many {things} is that?
    How many {things} are there?
    Find the number of {things}.
    What is the number of {things}?
    How many {things} does that make?
    Count the {things}.
""")
SAY_GROUPS: Final = lines("""
    The {boxes} hold {e} {T}.
    In the {boxes} of {N} there are {e} {T}.
    That is {e} {T}.
    {N} has {e} {T} in {boxes}.
""")
SHARE: Final = lines("""
    {A} shares them equally among {z} friends.
    {z} friends share them equally.
    {A} puts the same number into {z} {boxes}.
    {A} divides them among {z} {boxes}.
    All go into {z} {boxes}, the same number in each.
    {A} gives the same number to {z} friends.
""")
ASK_SHARE: Final = lines("""
    How many {things} are in one share?
    How many {things} is each share?
    How many {things} make one share?
""")
SAY_SHARE: Final = lines("""
    One share is {e} {things}.
    Each share has {e} {things}.
    Each gets {e} {things}.
""")
MORE: Final = lines("""
    {N} has {y} more than {M}.
    {N} has {y} more {things} than {M}.
    {N} holds {y} more {things} than {M}.
    {N} got {y} more than {M}.
    {N} has as many as {M} and {y} more.
    {N} found {y} more {things} than {M}.
    {N} made {y} more {things} than {M}.
""")
FEWER: Final = lines("""
    {N} has {y} fewer than {M}.
    {N} has {y} fewer {things} than {M}.
    {N} holds {y} fewer {things} than {M}.
    {N} got {y} fewer than {M}.
    {N} would need {y} more to have as many as {M}.
    {N} found {y} fewer {things} than {M}.
    {N} made {y} fewer {things} than {M}.
""")
ASK_ONE: Final = lines("""
    How many {things} does {N} have?
    How many {things} are with {N}?
    Count the {things} of {N}.
    {N} has how many {things}?
""")
ASK_BOTH: Final = lines("""
    How many {things} do {N} and {M} have together?
    How many {things} do {N} and {M} have in all?
    {N} and {M} have how many {things}?
    How many {things} do both {N} and {M} have in total?
""")
SAY_ONE: Final = lines("""
    {N} has {e} {things}.
    So {N} has {e} {things}.
    For {N} that is {e} {things}.
    With {N} there are {e} {things}.
""")
