"""Clauses: how words change a number. A base student sees them in exercises, never in a word problem.

    >>> describe_clause(random.Random("2"), World(largest=50))
    ('4 ; on every one of 9 trays ; before Fred handed over 13 ;', '4 * 9 = 36 . 36 - 13 = 23 .')

A pretrained model knows that a person who lends something has less afterwards; a base student learns it only from these
exercises. A clause is a part of a sentence, set off by semicolons, with people and things. No family of problems has
such a sentence, but the clauses have the verbs of all families. Some clauses contain a number that changes nothing.
"""

from __future__ import annotations

import random
from typing import Final

from tools.toy_models.problem import SMALLEST, Arithmetic, OutOfRange, World, cast_names, fill_template
from tools.toy_models.wordings import lines

# Operation on the value -> clauses. `from` subtracts the value from the number; `.` changes nothing. The slots are those
# of `wordings`, and n is the number.
CLAUSES: Final[dict[str, tuple[str, ...]]] = {
    "+": lines("""
        plus {n}
        plus {n} {things} for {B}
        adding {n}
        adding {n} {things}
        {n} more {things}
        {n} more
        and {n} {others}, altogether
        altogether with {n}
        the sum with {n}
        {n} at dinner, what number in all
        next to {n} {others}
        along with {n} {things} of {B}
        {B} with {n}, both
        {B} {n}, between them
        joined by {n} new {things}
        {n} came back
        {n} climbed aboard
        {B} handed over {n}
        then {A} baked {n}
        {A} bought {n} {things}
        {A} earns {n} more
        {A} saved {n} more
        {A} wrapped {n} too
        {A} solved {n} too
        {A} read {n} on Friday
        {n} on another day
        today {n}, on both days
        the count was {n} higher
        {B} did {n} more than that
        older by {n} years
        before {A} lent {n} of them
        {n} went missing, how many at the beginning
        the count rose by {n}
    """),
    "-": lines("""
        {A} lent {n}
        {n} were lent
        {A} gives {n} to {B}
        {A} ate {n} of them
        the guests ate {n}
        {A} used up {n}
        {n} {things} were used
        somebody removed {n}
        {A} removed {n} {things}
        {A} spends {n}
        {A} spent {n} on lunch
        {A} paid {n}
        {n} paid before going home
        {A} deleted {n}, the rest
        {n} were damaged
        {n} {things} were damaged, the others sell
        {A} had unwrapped {n}
        {n} {things} were opened, still wrapped
        {A} poured out {n}
        {n} flew away
        {n} {things} went home
        {n} went missing
        {A} cut {n} of it
        {n} of these ride with the parents
        {n} fewer
        {B} hid {n} fewer there
        {n} {things} shorter
        the difference with {n}
        the difference between it and {n} {things}
        how many more than {n}
        how much older than {n}
        saved only {n}, how many are missing
        by how many does it outnumber {n}
        {A} ended up with {n}, how many went missing
        before {B} handed over {n}
        the count rose by {n}, how many before that
        {n} further than {B}, how far did {B} go
        {n} wrapped, how many remain
    """),
    "from": lines("""
        the story is {n} pages long, how many are still to read
        to reach {n}
        {A} needs {n}, how many are missing
        of {n}, how many remain
        {n} is the count of all, the rest
    """),
    "*": lines("""
        on every one of {n} trays
        in every one of {n} {boxes}
        inside every one of {n} {boxes}
        {n} {boxes} of it
        at every one of {n} tables
        one row, {n} rows
        {n} rows of them
        {n} times
        {n} times a day
        in {n} days
        {n} laps of it
        one costs that, what must {A} pay for {n}
        for every lawn, {n} lawns
        for one pie, {n} pies
        every robot, {n} robots
        {n} {things} at that many a {thing}
        a bag weighs that, {n} bags
        multiplied by {n}
        multiplied by {n} {things}
    """),
    "/": lines("""
        split into groups of {n}
        the coach made groups of {n}
        split evenly between {n} sisters
        divided evenly between {n} students
        what does each of {n} receive
        in {n} equal rows, how many in a row
        cut into pieces of {n}
        how many full cartons of {n}
        {n} photos per page, how many pages
        with {n} {things} per {box}
        each ride costs {n}, how many rides
        one {thing} costs {n}, how many {things}
        {n} a day, how many days
        {n} for everybody, how many people
    """),
    ".": lines("""
        in {n} minutes
        {A} is {n} years old
        on a day of {n} hours
        one takes {n} minutes
        there are also {n} {others}
        {n} {others} too
        {n} {others} on the floor
        under it {n} {others}
        last week {n} birds
        there are {n} students
        a song of {n} minutes
        but {n} in the cellar
        the {place} has {n} animals
    """),
}
BEGIN: Final = ("{n}", "{n} {things}", "{A} has {n}", "{A} {n} {things}")
SHARES: Final = {"+": 0.26, "-": 0.32, "from": 0.06, "*": 0.18, "/": 0.18}
NO_CHANGE: Final = 0.3  # how often an exercise has a clause that does nothing


def describe_clause(rng: random.Random, world: World) -> tuple[str, str]:
    """Clauses and the equations that follow from them: a value, one to three clauses that change it, and at most one
    that does not. Raises OutOfRange if no number in the range fits a clause.
    """
    sums, words = Arithmetic(rng, world.largest), cast_names(rng, world)
    signs = rng.choices(list(SHARES), list(SHARES.values()), k=rng.choice((1, 1, 2, 2, 3)))
    value = sums.draw(high=9 if signs[0] == "*" else world.largest - 2)
    clauses, equations = [fill_template(rng.choice(BEGIN), {**words, "n": value})], []
    for sign in signs:
        fitting = [n for n in range(SMALLEST, world.largest + 1) if _fits(value, sign, n, world.largest)]
        if not fitting:
            raise OutOfRange(f"{value} {sign}")
        amount = rng.choice(fitting)
        clauses.append(fill_template(rng.choice(CLAUSES[sign]), {**words, "n": amount}))
        left, middle, right = (amount, "-", value) if sign == "from" else (value, sign, amount)
        value, equation = sums.solve(left, middle, right, turned=False)
        equations.append(f"{equation} .")
    if rng.random() < NO_CHANGE:
        clauses.insert(
            rng.randint(1, len(clauses)), fill_template(rng.choice(CLAUSES["."]), {**words, "n": sums.draw()})
        )
    return " ; ".join(clauses) + " ;", " ".join(equations)


def _fits(value: int, sign: str, amount: int, largest: int) -> bool:
    if sign in "*/" and amount > 9:
        return False
    whole, rest = divmod(value, amount)
    result = {"+": value + amount, "-": value - amount, "from": amount - value, "*": value * amount, "/": whole}[sign]
    return SMALLEST <= result <= largest and not (sign == "/" and rest)
