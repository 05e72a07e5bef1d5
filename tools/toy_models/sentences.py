"""Plain text of the world: sentences that ask nothing, in which every word of every family occurs.

    >>> list(plain_sentences("demo", 2))
    ['Otto likes ribbons, and Omar likes lemons.', 'The sheep of Otto is yellow.']

A base model reads it so that no word of an out-of-distribution family is new to it, although no sentence of such a
family ever is shown. Nothing here can be solved.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Final

from tools.toy_models.problem import World, cast_names, fill_template
from tools.toy_models.wordings import lines
from tools.toy_models.words import ANIMALS, COLOURS, article

# Tellings: the verbs and scenes of all families in other sentences. A line without slots is a sentence all the same.
STORY_TEMPLATES: Final = lines("""
    {A} likes {things}, and {B} likes {others}.
    The {animal} of {A} is {colour}.
    In the {place} one sees {a_thing} or {a_animal} now and then.
    A {colour} {thing} lies in the {box}.
    {A}, {B} and {C} walk to the {place} together.
    A {box} may hold {things}, but never {a_animal}.
    {A} was at the {place} with {B} from {x} to {y}.
    Page {x} comes before page {y} in that book.
    The bus to the museum carries boys along with girls, who ride with their parents and come back on Sunday.
    These trays were for muffins; the guests ate what every tray held, and none remain when one remains.
    {A} baked bread on Friday, then a pie on Saturday evening.
    At the fair people bought tickets, used up all of them, and can still go home.
    What a ride costs at the fair is written on the tickets for the rides.
    The baker needs eggs to bake bread as well as pies, plus one more tray.
    A story was read on Tuesday, page by page, by noon or later, as pages are read.
    One must read while others still sleep.
    A team has a coach; the new players joined by the gate were split into groups.
    Everybody on the team was made a player, and a group of players could play.
    Who earns dollars by mowing a lawn spends a dollar on lunch after mowing the lawns.
    The library lent comics, yet on Saturday they came back and stood there.
    A gardener plants tulips in a row, next to the bushes that grow with the plants, and rows grow.
    The cook fried eggs for lunch plus dinner from full cartons and opened one carton to open the day.
    Photos were deleted while the rest fill an album, and photos get filled in per year.
    The waiter sets the tables, and at every table guests stayed, paid, and were going home before.
    The toy store ordered cartons, inside damaged when opened, and could sell the toys.
    For the party {A} wrapped {a_thing}, and {B} had unwrapped it when it was still wrapped.
    The sum of it is the difference; what number comes out is multiplied or altogether another.
    One child counted the days while the children sit in equal rows or in a row.
    {A} is older than {B}, whose age in years is not much.
    They walked laps to make a mile, far or not.
    How far one can walk in a lap of miles, how long the length in meters, if it is long or shorter.
    A rope is cut into pieces, and pieces come out of the rope.
    {A} must pay for {things} but saved only some, so dollars are missing.
    The train left, people climbed aboard at the first stop, and on it went.
    The wall and the fence by the farm are long; the farm keeps cows, horses, one by one.
    Cows outnumber the horses, and a horse does outnumber nothing.
    Yesterday it rained for hours, today it did rain on both days.
    Every robot has wheels, and robots need wheels.
    From a barrel {A} poured the cups out; what amount stays inside will stay.
    What sisters receive they split evenly, and each sister does receive much.
    Adding drops to drops we reach the brim, as does the rain.
    Between them they scored points, and one point is a point.
    {A} does paint doors in days, painting a door a day.
    {A} packed for the trip; also {B} packed what was lying on the floor, as they pack.
    Somebody stood under the table and removed {a_thing} on which it stayed.
    After the beginning there were some left over that {A} lent.
    {A} owned what {B} handed over before that, and the count rose when they did own it.
    Jumps on a day of many hours: {A} did jump, and the jumps do help.
    The zoo bought bags of food for its animals; a bag weighs pounds, and food does weigh a pound.
    The teacher divided the class between the students, and one student of the students did receive more.
    An old {animal} is years old; last month {A} spent what was saved in the end.
    Last week the birds sat in a tree until they flew away, and today birds sat there again.
    {A} solved puzzles by dinner, higher than a puzzle that takes minutes.
    To begin with, {A} ended up with only {a_thing}; too much went missing from the things.
    The song is played many times, every time as it is played in days of minutes.
    {A} ran further than {B} ran, which many did run.
    {A} hid {a_thing} in the attic and fewer in the cellar, as one must hide it.
    Sort words by the alphabet, take letters in turn, turn around and return to the start.
    True is not false, and false or true is what it is.
    The way out is as long as the way back, and the steps are equal or different.
    One word begins with a letter and ends in the last letter.
    {C} asks what the number of the page is, and {A} counts.
    The friends of {A} share all of it equally among them.
    {A} gives away {a_thing}, and {B} gets {another}.
""")


def plain_sentences(seed: str, n: int) -> Iterator[str]:
    """n sentences: every telling in turn, its slots filled anew each time."""
    for number in range(n):
        rng = random.Random(f"plain/{seed}/{number}")
        words = cast_names(rng, World())
        more = {
            "animal": rng.choice(ANIMALS),
            "colour": rng.choice(COLOURS),
            "a_thing": article(words["thing"]),
            "another": article(words["other"]),
            "x": rng.randint(2, 99),
            "y": rng.randint(2, 99),
        }
        more["a_animal"] = article(str(more["animal"]))
        yield fill_template(STORY_TEMPLATES[number % len(STORY_TEMPLATES)], {**words, **more})
