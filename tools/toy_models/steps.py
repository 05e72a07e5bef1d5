"""The in-distribution family: word problems of one to three steps, in four kinds.

    >>> problem = draw_steps(random.Random("a3"), World())
    >>> print(problem.text, problem.rationale, problem.answer, sep="\\n")
    Adam puts 4 stickers into each of 8 pots. How many stickers is that?
    Adam has 8 * 4 = 32 stickers in pots.
    32

Kinds: `change` (one person's number goes up and down), `together` (sums of several people), `groups` (so many in each,
or shared equally), `compare` (so many more or fewer). Wherever sub-sums do not depend on each other the rationale does
them in an order picked at random: more than one first step is right, so a model of this text has real entropy there.
In some worlds a share of the problems hold a sentence, with a number, that does not matter (`World.beside`).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final

from tools.toy_models import further_wordings, wordings
from tools.toy_models.problem import Arithmetic, Problem, World, cast_names, fill_template, pick_weighted

Draft = tuple[list[str], list[str], int]  # sentences of the text, sentences of the rationale, answer


class Scene:
    """One problem under way: its draws, its words, and how to say things with them."""

    def __init__(self, rng: random.Random, world: World) -> None:
        self.rng, self.world, self.sums, self.words = rng, world, Arithmetic(rng, world.largest), cast_names(rng, world)

    def say(self, wordings: tuple[str, ...], **more: object) -> str:
        if self.world.further:
            wordings += further_wordings.FURTHER_WORDINGS.get(wordings, ())
        return fill_template(
            pick_weighted(self.rng, self.world, wordings), {"T": self.words["things"], **self.words, **more}
        )

    def shuffled(self, items: list) -> list:
        return self.rng.sample(items, len(items))


def change(scene: Scene, steps: int) -> Draft:
    rng, sums = scene.rng, scene.sums
    value = sums.draw(high=scene.world.largest - 2)
    text, said = [scene.say(wordings.START, x=value)], []
    events = [(rng.choice("+-"), sums.draw()) for _ in range(steps)]
    text += [scene.say(wordings.GAIN if sign == "+" else wordings.LOSS, y=amount) for sign, amount in events]
    for sign, amount in scene.shuffled(events):
        value, equation = sums.solve(value, sign, amount)
        said.append(scene.say(wordings.SAY_CHANGE, e=equation))
    return [*text, scene.say(wordings.ASK_CHANGE)], said, value


def together(scene: Scene, steps: int) -> Draft:
    sums, names = scene.sums, scene.shuffled(["A", "B", "C"])
    if steps < 3:
        amounts = [sums.draw() for _ in range(steps + 1)]
        text = [
            scene.say(wordings.HAS, x=amount, N=scene.words[name], T=scene.words["things"])
            for name, amount in zip(names, amounts, strict=False)
        ]
        said, (value, *rest) = [], scene.shuffled(amounts)
        for amount in rest:
            value, equation = sums.solve(value, "+", amount)
            said.append(scene.say(wordings.SAY_TOGETHER, e=equation))
        return [*text, scene.say(wordings.ASK_TOGETHER)], said, value
    pairs = [(scene.words[name], sums.draw(), sums.draw()) for name in names[:2]]
    text = [scene.say(wordings.HAS_TWO, N=name, x=x, y=y) for name, x, y in pairs]
    values, said = [], []
    for name, x, y in scene.shuffled(pairs):
        value, equation = sums.solve(x, "+", y)
        values.append(value)
        said.append(scene.say(wordings.SAY_ONE, N=name, e=equation, things="things"))
    value, equation = sums.solve(values[0], "+", values[1])
    said.append(scene.say(wordings.SAY_TOGETHER, e=equation, things="things"))
    return [*text, scene.say(wordings.ASK_TOGETHER, things="things")], said, value


def groups(scene: Scene, steps: int) -> Draft:
    rng, sums, words = scene.rng, scene.sums, scene.words
    if steps < 3 and rng.random() < 0.4:
        return _share(scene, steps)
    makers = [words["A"], words["B"]][: 2 if steps == 3 else 1]
    lots = [(maker, sums.draw(high=9), sums.draw(high=9)) for maker in makers]
    text = [scene.say(wordings.GROUPS, N=maker, x=x, y=y) for maker, x, y in lots]
    values, said = [], []
    for maker, x, y in scene.shuffled(lots):
        value, equation = sums.solve(x, "*", y)
        values.append(value)
        said.append(scene.say(wordings.SAY_GROUPS, N=maker, e=equation))
    if steps == 1:
        return [*text, scene.say(wordings.ASK_GROUPS)], said, values[0]
    if steps == 3:
        value, equation = sums.solve(values[0], "+", values[1])
        return [*text, scene.say(wordings.ASK_GROUPS)], [*said, scene.say(wordings.SAY_TOGETHER, e=equation)], value
    sign, amount = rng.choice("+-"), sums.draw()
    text.append(scene.say(wordings.GAIN if sign == "+" else wordings.LOSS, y=amount))
    value, equation = sums.solve(values[0], sign, amount)
    return [*text, scene.say(wordings.ASK_CHANGE)], [*said, scene.say(wordings.SAY_CHANGE, e=equation)], value


def _share(scene: Scene, steps: int) -> Draft:
    sums = scene.sums
    share, friends = sums.draw(high=9), sums.draw(high=9)
    whole, _ = sums.solve(share, "*", friends)  # only what can be shared exactly
    text, said = [scene.say(wordings.START, x=whole)], []
    if steps == 2:
        sign, amount = scene.rng.choice("+-"), sums.draw()
        text.append(scene.say(wordings.GAIN if sign == "+" else wordings.LOSS, y=amount))
        whole, equation = sums.solve(whole, sign, amount)
        said.append(scene.say(wordings.SAY_CHANGE, e=equation))
    value, equation = sums.solve(whole, "/", friends)
    said.append(scene.say(wordings.SAY_SHARE, e=equation))
    return [*text, scene.say(wordings.SHARE, z=friends), scene.say(wordings.ASK_SHARE)], said, value


def compare(scene: Scene, steps: int) -> Draft:
    rng, sums = scene.rng, scene.sums
    first, second, third = (scene.words[name] for name in scene.shuffled(["A", "B", "C"]))
    known = {first: sums.draw(high=scene.world.largest - 2)}
    relations = [(second, first)]
    if steps == 3:
        relations.append((third, first))
    elif steps == 2 and rng.random() < 0.5:
        relations.append((third, second))  # a chain: only one first step is right
    signs = {pair: (rng.choice("+-"), sums.draw()) for pair in relations}
    text = [scene.say(wordings.HAS, N=first, x=known[first])]
    text += [
        scene.say(wordings.MORE if sign == "+" else wordings.FEWER, N=n, M=m, y=y)
        for (n, m), (sign, y) in signs.items()
    ]
    said = []
    for n, m in scene.shuffled(relations) if steps == 3 else relations:
        sign, amount = signs[n, m]
        known[n], equation = sums.solve(known[m], sign, amount)
        said.append(scene.say(wordings.SAY_ONE, N=n, e=equation))
    if len(relations) == steps:
        last = relations[-1][0]
        return [*text, scene.say(wordings.ASK_ONE, N=last)], said, known[last]
    n, m = (second, first) if steps == 2 else (second, third)
    value, equation = sums.solve(known[n], "+", known[m])
    return [*text, scene.say(wordings.ASK_BOTH, N=n, M=m)], [*said, scene.say(wordings.SAY_TOGETHER, e=equation)], value


KINDS: Final[tuple[Callable[[Scene, int], Draft], ...]] = (change, together, groups, compare)


def draw_steps(rng: random.Random, world: World) -> Problem:
    """One problem. Raises OutOfRange where its numbers leave the world; a stream then draws again."""
    steps = rng.choices(range(1, len(world.shares) + 1), world.shares)[0]
    kind, scene = rng.choice(KINDS), Scene(rng, world)
    text, rationale, answer = kind(scene, steps)
    if world.beside and rng.random() < world.beside:  # drawn last: without it the same draw is the same problem
        text.insert(rng.randrange(len(text) - 1), add_irrelevant(scene, kind))
    return Problem(" ".join(text), str(answer), " ".join(rationale))


def add_irrelevant(scene: Scene, kind: Callable[[Scene, int], Draft]) -> str:
    """A sentence that does not matter. It counts other things only where no sum or share could mean them too."""
    wordings = (
        further_wordings.IRRELEVANT
        if kind in (together, groups)
        else further_wordings.IRRELEVANT + further_wordings.IRRELEVANT_THINGS
    )
    return scene.say(wordings, z=scene.sums.draw())
