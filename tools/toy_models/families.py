"""Three out-of-distribution families, in the spirit of MultiArith, ASDiv and SVAMP. No training text contains them.

    >>> problem = draw_family("diverse", random.Random("25"), World())
    >>> problem.text, problem.rationale, problem.answer
    ('What is the sum of 4 and 39?', 'The sum is 39 + 4 = 43.', '43')

`multi`: two operations, with its own scenes. `diverse`: one operation, many forms of question, some with the question
first. `varied`: one operation, with an irrelevant number, or told from the end. A frame is one line of fields separated by
` | `: the text, then for each step an expression and the sentence with its equation. In an expression, x y z are the drawn
numbers, and r and s the results of the first and the second step.
"""

from __future__ import annotations

import random
from typing import Final

from tools.toy_models.problem import Arithmetic, Problem, World, cast_names, fill_template, pick_weighted
from tools.toy_models.wordings import lines

MULTI: Final = lines("""
    A bus carries {x} boys along with {y} girls to the museum. On the way back {z} of these children ride with their parents. How many children ride back on the bus? | x + y | The bus carries {e} children. | r - z | Back ride {e} children.
    {A} baked {x} trays of muffins with {y} muffins on every tray. The guests ate {z} of these muffins. How many muffins remain? | x * y | The trays held {e} muffins. | r - z | There remain {e} muffins.
    At the fair {A} bought {x} tickets, then used up {y}. Each ride costs {z} tickets. On how many rides can {A} still go? | x - y | There remain {e} tickets. | r / z | {A} can go on {e} rides.
    A baker needs {x} eggs for one pie plus {y} eggs for the bread. How many eggs does the baker need to bake {z} pies as well as the bread? | x * z | The pies need {e} eggs. | r + y | The baker needs {e} eggs.
    {A} read {x} pages on Tuesday, then {y} pages on Friday. The story is {z} pages long. How many pages must {A} still read? | x + y | {A} read {e} pages. | z - r | {A} must read {e} pages.
    A team of {x} players was joined by {y} new players. The coach split everybody into groups of {z}. How many groups did the coach make? | x + y | The team has {e} players. | r / z | The coach made {e} groups.
    {A} earns {x} dollars for every lawn. After mowing {y} lawns {A} spends {z} dollars on lunch. How many dollars remain? | x * y | {A} earns {e} dollars. | r - z | There remain {e} dollars.
    The library had {x} comics. {y} were lent on Friday, yet {z} came back on Saturday. How many comics stood there on Saturday evening? | x - y | On Friday the library had {e} comics. | r + z | On Saturday there were {e} comics.
    A gardener plants {x} rows of {y} tulips, next to {z} bushes. How many plants grow there? | x * y | The rows are {e} tulips. | r + z | There grow {e} plants.
    The cook fried {x} eggs for lunch plus {y} eggs for dinner, all from full cartons of {z} eggs. How many cartons did the cook open? | x + y | The cook fried {e} eggs. | r / z | The cook opened {e} cartons.
    Of {x} photos {A} deleted {y}, while the rest fill pages with {z} photos per page. How many pages get filled? | x - y | The rest is {e} photos. | r / z | The photos fill {e} pages.
    A waiter had {x} tables, every table with {y} guests. Later {z} guests paid before going home. How many guests stayed? | x * y | There were {e} guests. | r - z | Later there were {e} guests.
    The toy store ordered {x} cartons, every carton with {y} {things} inside. When it opened, {z} {things} were damaged. How many {things} could the store sell? | x * y | The store ordered {e} {things}. | r - z | The store could sell {e} {things}.
    For a party {A} wrapped {x} {things} while {B} wrapped {y}. By noon the guests had unwrapped {z}. How many {things} were still wrapped? | x + y | Wrapped were {e} {things}. | r - z | Still wrapped were {e} {things}.
""")
DIVERSE: Final = lines("""
    What is the sum of {x} and {y}? | x + y | The sum is {e}.
    What is the difference between {x} and {y}? | x - y | The difference is {e}.
    What number comes out when {x} is multiplied by {y}? | x * y | The number is {e}.
    How many {things} are there altogether if one child counted {x} while another child counted {y}? | x + y | Altogether there are {e} {things}.
    How much older is {A}, whose age is {x} years, than {B}, whose age is {y} years? | x - y | {A} is older by {e} years.
    How far did {A} walk if every lap is {x} miles long while {A} walked {y} laps? | x * y | {A} walked {e} miles.
    A rope of {x} meters is cut into pieces of {y} meters. How many pieces come out? | x / y | There are {e} pieces.
    One {thing} costs {x} dollars. What must {A} pay for {y} of them? | x * y | {A} must pay {e} dollars.
    {A} needs {x} dollars for a {thing} but saved only {y} dollars. How many dollars are missing? | x - y | There are {e} dollars missing.
    If {x} children sit in {y} equal rows, how many children sit in a row? | x / y | In a row there are {e} children.
    The train left with {x} people, then {y} people climbed aboard at the first stop. With how many people did it go on? | x + y | The train went on with {e} people.
    The wall is {x} meters long, the fence is {y} meters shorter. What is the length of the fence? | x - y | The fence is {e} meters long.
    Yesterday it rained for {x} hours, today for {y} hours. For how long did it rain on both days? | x + y | It rained for {e} hours.
    A farm keeps {x} cows but only {y} horses. By how many do the cows outnumber the horses? | x - y | The cows outnumber the horses by {e}.
    Every robot has {x} wheels. What number of wheels do {y} robots need? | x * y | The robots need {e} wheels.
    From a barrel of {x} cups {A} poured out {y} cups. What amount stays inside? | x - y | Inside stay {e} cups.
    What does each of {y} sisters receive when {x} {things} get split evenly? | x / y | Each sister will receive {e} {things}.
    Adding {x} drops to {y} drops, what number of drops do we reach? | x + y | We reach {e} drops.
    How many days does {A} need to paint {x} doors, painting {y} doors a day? | x / y | {A} does need {e} days.
    Between them {A} with {x} points plus {B} with {y} points scored what number of points? | x + y | They scored {e} points.
""")
VARIED: Final = lines("""
    {A} packed {x} {things} for the trip, {B} packed {y} {things}. There were also {z} {others} lying on the floor. How many {things} did they pack? | x + y | They packed {e} {things}.
    On the table stood {x} {things}, under it {z} {others}. Somebody removed {y} {things}. How many {things} stayed on the table? | x - y | On the table stayed {e} {things}.
    After {A} lent {y} {things} to {B}, there were {x} left over. What was the number of {things} at the beginning? | x + y | At the beginning there were {e} {things}.
    {A} owned some {things}. When {B} handed over {y} {things}, the count rose to {x}. How many {things} did {A} own before that? | x - y | Before that there were {e} {things}.
    {A} did {x} jumps on a day of {z} hours. {B} did {y} jumps more than that. How many jumps did {B} do? | x + y | {B} did {e} jumps.
    A zoo bought {y} bags of food for its {z} animals. A bag weighs {x} pounds. How many pounds does the food weigh? | x * y | The food weighs {e} pounds.
    There are {z} students in the class. The teacher divided {x} {things} evenly between {y} of the students. How many {things} did one student receive? | x / y | One student did receive {e} {things}.
    {A} is {z} years old. {A} saved {x} dollars last month but spent {y} dollars on {things}. How many dollars were saved in the end? | x - y | There were {e} dollars saved.
    Last week {z} birds sat in the tree. Today {x} birds sat there until {y} birds flew away. How many birds were left today? | x - y | Today there were {e} birds left.
    Before lunch {A} solved {x} puzzles, by dinner the count was {y} higher. A puzzle takes {z} minutes. How many puzzles were solved by dinner? | x + y | By dinner there were {e} puzzles solved.
    With {x} {things} to begin with, {A} ended up with only {y}. There were {z} {others} too. How many {things} went missing? | x - y | There went missing {e} {things}.
    A song of {z} minutes is played {x} times a day. How many times is it played in {y} days? | x * y | It is played {e} times.
    {A} ran {x} miles, which is {y} miles further than {B} ran in {z} minutes. How many miles did {B} run? | x - y | {B} ran {e} miles.
    {A} hid {x} {things} in the attic. {B} hid {y} fewer there, but {z} in the cellar. How many {things} did {B} hide in the attic? | x - y | {B} hid {e} {things}.
""")
FAMILIES: Final = {"multi": MULTI, "diverse": DIVERSE, "varied": VARIED}


def draw_family(family: str, rng: random.Random, world: World) -> Problem:
    """One problem of an out-of-distribution family. Raises OutOfRange where its numbers leave the world.

    All wordings are in use in every world: a small in-distribution world does not make these families smaller.
    """
    text, *rest = pick_weighted(rng, World(), FAMILIES[family]).split(" | ")
    sums, words = Arithmetic(rng, world.largest), cast_names(rng, World())
    values = {name: sums.draw() for name in "xyz"}
    if "x / y" in rest or "x * y" in rest:
        values["y"] = sums.draw(high=9)
    if "r / z" in rest or "x * z" in rest:
        values["z"] = sums.draw(high=9)
    said = []
    drawn = dict(values)
    for result, (formula, sentence) in zip("rs", zip(rest[::2], rest[1::2], strict=True), strict=False):
        left, sign, right = formula.split()
        values[result], equation = sums.solve(values[left], sign, values[right])
        said.append(fill_template(sentence, {**words, "e": equation}))
    answer = values["s"] if "s" in values else values["r"]
    return Problem(fill_template(text, {**words, **drawn}), str(answer), " ".join(said))
