"""Wordings of the in-distribution family that base students do not know, and irrelevant sentences.

    >>> len(FURTHER_WORDINGS[START]), FURTHER_WORDINGS[START][0], IRRELEVANT[0]
    (8, '{A} packed {x} {things} for the day.', 'At {z} years {C} is older than {B}.')

The slots are those of `wordings`; z is the irrelevant number. No out-of-distribution family has such a sentence.
"""

from __future__ import annotations

from typing import Final

from tools.toy_models.wordings import (
    ASK_CHANGE,
    ASK_ONE,
    ASK_SHARE,
    ASK_TOGETHER,
    FEWER,
    GAIN,
    GROUPS,
    HAS,
    LOSS,
    MORE,
    SHARE,
    START,
    lines,
)

IRRELEVANT: Final = lines("""
    At {z} years {C} is older than {B}.
    {B} was {z} years old last month.
    The {place} is {z} years old.
    The way to the {place} is {z} miles long.
    {A} and {B} walk to the {place} in {z} minutes.
    {C} comes back in {z} minutes.
    On that day it rained for {z} hours.
    The {place} is open for {z} hours today.
    The {box} is {z} meters long.
    The {box} weighs {z} pounds.
    Each {thing} costs {z} dollars.
    {C} paid {z} dollars at the {place}.
    {B} has {z} dollars left.
    {C} reads {z} pages by noon.
    {C} is at the {place} with {z} friends.
    {A} sees {z} birds at the {place}.
    {C} scored {z} points on Friday.
    It takes {z} days to get to the {place}.
""")
IRRELEVANT_THINGS: Final = lines("""
    {C} has {z} {others}.
    {A} also has {z} {others}.
    There are {z} {others} at the {place}.
    {B} found {z} {others} too.
    {A} keeps {z} {others} in another {box}.
    {C} gives {B} {z} {others}.
    {B} sells {z} {others} at the {place}.
    There are also {z} {others} in the {box}.
""")
# Of some kinds of sentence there are more, which base students never meet (`World.further`).
FURTHER_WORDINGS: Final[dict[tuple[str, ...], tuple[str, ...]]] = {
    START: lines("""
        {A} packed {x} {things} for the day.
        {A} has saved {x} {things}.
        {A} ordered {x} {things} last week.
        Inside the {box} of {A} are {x} {things}.
        To begin with, {A} has {x} {things}.
        {A} baked or bought {x} {things}.
        {A} owned {x} {things} yesterday.
        {A} wrapped {x} {things} for the party.
    """),
    GAIN: lines("""
        {B} handed {y} {things} over to {A}.
        Along with these {A} gets {y} {things}.
        On Saturday {y} {things} came back to {A}.
        The count rose by {y} {things}.
        {A} ordered {y} {things} more.
        {y} {things} from {B} were joined to these.
        {A} saved {y} {things} more than before.
        Plus, {A} makes {y} {things} by noon.
    """),
    LOSS: lines("""
        Somebody removed {y} of these {things}.
        By noon {y} {things} were damaged.
        {A} spends {y} {things} on lunch.
        {A} lent {y} {things} to {B}.
        Then {y} {things} went missing.
        {A} deleted or cut {y} {things}.
        The guests used up {y} {things}.
        {B} unwrapped {y} {things} and ate them.
        In the end {y} {things} flew away.
        {A} handed {y} {things} over to {B}.
        {A} poured {y} {things} out of the {box}.
        {A} paid {y} {things} to {B}.
    """),
    ASK_CHANGE: lines("""
        How many {things} remain with {A}?
        How many {things} are left over?
        What number of {things} stayed with {A}?
        How many {things} could {A} still count?
    """),
    HAS: lines("""
        {N} packed {x} {T}.
        {N} counted {x} {T}.
        {N} hid {x} {T} in the {place}.
        {N} ordered {x} {T}.
        With {N} there are {x} {T}.
        {N} wrapped {x} {T}.
    """),
    ASK_TOGETHER: lines("""
        How many {things} are there altogether?
        What is the sum of all these {things}?
        What number of {things} did they reach together?
    """),
    GROUPS: lines("""
        {N} has {x} rows of {y} {T} each.
        For {x} days {N} gets {y} {T} a day.
        Every one of the {x} {boxes} of {N} comes with {y} {T}.
        {N} needs {y} {T} for every one of {x} {boxes}.
        {N} fills {x} {boxes} with {y} {T} per {box}.
        {N} ordered {x} {boxes}, every {box} with {y} {T} in it.
    """),
    SHARE: lines("""
        {A} split them evenly between {z} sisters.
        They get divided into {z} equal rows.
        {A} split all of them into {z} groups.
        {z} friends receive them evenly.
        {A} cut them into {z} equal pieces.
    """),
    ASK_SHARE: lines("""
        How many {things} come out for each?
        What does each receive, how many {things}?
    """),
    MORE: lines("""
        {N} has {y} {things} more than {M}.
        The count of {N} is {y} higher than that of {M}.
        {N} outnumbers {M} by {y} {things}.
        {N} is {y} {things} further than {M}.
    """),
    FEWER: lines("""
        {N} ended up with {y} fewer than {M}.
        {N} is missing {y} {things} that {M} has.
        The row of {N} is {y} {things} shorter than that of {M}.
        {N} hid {y} fewer {things} than {M}.
    """),
    ASK_ONE: lines("""
        How many {things} did {N} end up with?
        What number of {things} has {N}?
    """),
}
