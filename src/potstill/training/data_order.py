"""Position is data: which questions, formats, chains and demonstrations belong to a step is a function of (seed, step).

    >>> from potstill.prompts import FORMATS
    >>> quotas = {FORMATS["zero-shot-rationale"]: 2, FORMATS["zero-shot-answer"]: 1}
    >>> plan = DataOrder(seed=1, groups_per_step=3, quotas=quotas, questions=(("a", 2), ("b", 1), ("c", 3)))
    >>> [(group.question, group.format.name, group.chains) for group in draw_groups(plan, 1)]
    [('c', 'zero-shot-rationale', (2,)), ('a', 'zero-shot-answer', ()), ('a', 'zero-shot-rationale', (1,))]
    >>> split_into_micro_batches([(10, 5), (40, 5), (12, 5), (11, 4)], budget=60)
    ((1,), (2, 3, 0))
    >>> micro_batches_of_rank(((1,), (2, 3, 0)), rank=0, world=2), micro_batches_of_rank(((1,), (2, 3, 0), (4,)), rank=1, world=2)
    ([(1,)], [(2, 3, 0), None])

A *group* is one question in one format with its chains, which share one prompt; a step is a fixed number of groups.
Chains are drawn uniformly over the questions, so that each question is asked equally often, or over the chains, so that
each chain is seen equally often and a question with 40 chains counts forty times as much as a question with one.
Resume is the call with a later step; the number of processes is known to `share` alone. Draws are hashes of what they
are for, never a generator's state. Pure: no torch, no clock, no shared state (permutations are remembered, not
advanced).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from itertools import accumulate
from math import gcd
from typing import Any, Final, Generic, Literal, Protocol, TypeVar, runtime_checkable

from potstill.errors import UserError

VERSION: Final = 2  # of the order that this module makes; stored in the manifests of the stages that use it


@runtime_checkable
class FormatLike(Protocol):
    """What order needs to know of a prompt format (`prompts.Format` is one): its name, and whether chains are its
    targets."""

    @property
    def name(self) -> str: ...

    @property
    def rationale(self) -> bool: ...


F = TypeVar("F", bound=FormatLike)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class PromptGroup(Generic[F]):
    """One question in one format: one prompt, and the targets under it.

    chains  places in the question's list of chains; empty in an answer-only format, whose one target is the bare answer
    epoch   how often this format has gone through all its data before
    turn    how often this format has asked this question before; chooses the demonstrations
    """

    question: str
    format: F
    chains: tuple[int, ...]
    epoch: int
    turn: int

    @property
    def targets(self) -> int:
        return len(self.chains) or 1


@dataclass(frozen=True, slots=True, eq=False)
class DataOrder(Generic[F]):
    """What the order of a training run depends on.

    quotas             of every sum(quotas) groups so many have this format, spread smoothly
    questions          (id, number of chains), in any order; those without a chain are asked in answer-only formats only
    chains_per_prompt  m: chains of a question that one group has, fewer where the question has fewer
    uniform_over       questions: in an epoch each question is asked once in a format, with the next m of its chains.
                       chains: in an epoch each chain is seen once in a format; a question with n chains is asked in
                       ceil(n / m) groups, the last of which has what is left. Answer-only formats have one target a
                       question, so an epoch asks each question once in either case

    Raises UserError for quotas that name nothing, and for a format that has no question.
    """

    seed: int
    groups_per_step: int
    quotas: Mapping[F, int]
    questions: Sequence[tuple[str, int]]
    chains_per_prompt: int = 1
    uniform_over: Literal["questions", "chains"] = "questions"

    def __post_init__(self) -> None:
        assert self.groups_per_step > 0 and self.chains_per_prompt > 0, "a step has groups, and a group has chains"
        if any(quota < 0 for quota in self.quotas.values()) or not sum(self.quotas.values()):
            found = {format.name: quota for format, quota in self.quotas.items()}
            raise UserError("quotas are whole numbers, and at least one is above 0", where="train.formats", found=found)
        ids = [question for question, _ in self.questions]
        assert len(set(ids)) == len(ids), "a question stands twice in the plan"
        for format, quota in self.quotas.items():
            if quota and not any(chains or not format.rationale for _, chains in self.questions):
                raise UserError(
                    f"there is no question to train on in the format {format.name}",
                    where="train.formats",
                    found=f"{len(ids)} questions, none with a chain",
                    hint="look at what the filter kept, or leave this format out",
                )


def draw_groups(recipe: DataOrder[F], step: int) -> tuple[PromptGroup[F], ...]:
    """The groups of a step (counted from 1). Costs O(groups), and a sort of the questions once per format and epoch."""
    assert step >= 1, f"steps are counted from 1, not {step}"
    cycle = _format_cycle(recipe)
    first = (step - 1) * recipe.groups_per_step
    found = []
    for number in range(first, first + recipe.groups_per_step):
        turn, place = divmod(number, len(cycle))
        format, before = cycle[place]
        stream = turn * recipe.quotas[format] + before
        epoch, at = divmod(stream, len(_epoch_prompts(recipe, format.rationale)))
        found.append(_prompt_group(recipe, format, epoch, _permutation(recipe, format, epoch)[at]))
    return tuple(found)


def min_groups_per_step(recipe: DataOrder[F]) -> dict[F, int]:
    """How many groups of each format the step has that has the fewest of them."""
    cycle = _format_cycle(recipe)
    size, length = recipe.groups_per_step, len(cycle)
    found = {}
    for format in dict.fromkeys(format for format, _ in cycle):
        before = [0, *accumulate(int(other == format) for other, _ in cycle)]  # in the first n places of the cycle
        starts = range(0, length, gcd(size, length))  # every place in the cycle at which a step can begin
        whole, rest = divmod(size, length)
        counts = (before[min(i + rest, length)] - before[i] + before[max(i + rest - length, 0)] for i in starts)
        found[format] = whole * before[-1] + min(counts)
    return found


def draw_demonstrations(
    seed: int, turn: int, question: str, format: FormatLike, pool: Sequence[str], count: int
) -> tuple[str, ...]:
    """`count` different ids of the pool, never the question itself. Costs O(count), whatever the size of the pool.

    Raises UserError where the pool has too few others.
    """
    key = f"{(seed, 'demonstrations', format.name, turn, question)}"
    moved: dict[int, int] = {}  # a shuffle of which only the first places are made
    found: list[str] = []
    for place in range(len(pool)):
        if len(found) == count:
            break
        other = place + _hash(f"{key}{place}") % (len(pool) - place)
        drawn = pool[moved.get(other, other)]
        moved[other] = moved.get(place, place)
        if drawn != question and drawn not in found:
            found.append(drawn)
    if len(found) < count:
        raise UserError(
            "too few questions to show as demonstrations",
            where=question,
            found=f"{len(found)} others in the pool, {count} asked for",
            hint="lower train.demonstrations, or give more training questions",
        )
    return tuple(found)


def split_into_micro_batches(
    lengths: Sequence[tuple[int, int]], budget: int, *, padded: bool = True
) -> tuple[tuple[int, ...], ...]:
    """Cut a step into micro-batches: tuples of places in `lengths`, each of at most `budget` tokens.

    lengths  (prompt, target) of each example or group, in tokens
    budget   tokens of a micro-batch, as the student computes them: rows * (longest prompt + longest target) where it
             pads, their sum where it does not. One example alone above it is a micro-batch alone: it has to be trained
             in some way, and whether it fits is for the memory to say
    padded   whether the student pads

    The longest come first, so that a step too large fails at once. Where the student pads, of a few orders by length
    the one with the least padding is cut.
    """
    assert budget > 0, f"a budget of {budget} tokens"
    places = range(len(lengths))
    if not padded:
        return _fill([sum(own) for own in lengths], budget)
    orders = (
        sorted(places, key=lambda i: (*lengths[i], i), reverse=True),
        sorted(places, key=lambda i: (*lengths[i][::-1], i), reverse=True),
        sorted(places, key=lambda i: (sum(lengths[i]), i), reverse=True),
    )
    return min((_cut(lengths, order, budget) for order in orders), key=lambda found: found[0])[1]  # the first of equals


def micro_batches_of_rank(micro_batches: Sequence[T], rank: int, world: int) -> list[T | None]:
    """What process `rank` of `world` computes: micro-batches rank, rank + world, ...; None where it only keeps the
    others company, so that all of them have equally many."""
    assert 0 <= rank < world, f"process {rank} of {world}"
    own: list[T | None] = list(micro_batches[rank::world])
    return own + [None] * (-(-len(micro_batches) // world) - len(own))


@lru_cache(maxsize=8)
def _format_cycle(recipe: DataOrder[Any]) -> tuple[tuple[Any, int], ...]:
    """Smooth weighted round robin: at each place the format that is furthest behind its share, with how often it came
    before."""
    total = sum(recipe.quotas.values())
    formats = sorted((format for format, quota in recipe.quotas.items() if quota), key=lambda format: format.name)
    credit = dict.fromkeys(formats, 0)
    count = dict.fromkeys(formats, 0)
    cycle = []
    for _ in range(total):
        for format in formats:
            credit[format] += recipe.quotas[format]
        chosen = max(formats, key=lambda format: credit[format])
        credit[chosen] -= total
        cycle.append((chosen, count[chosen]))
        count[chosen] += 1
    return tuple(cycle)


@lru_cache(maxsize=8)
def _epoch_prompts(recipe: DataOrder[F], rationale: bool) -> tuple[tuple[str, int, int], ...]:
    """What an epoch asks: a question, the number of its chains, and which part of them."""
    asked = [(question, chains) for question, chains in recipe.questions if chains or not rationale]
    by_chains = rationale and recipe.uniform_over == "chains"
    parts = [-(-chains // recipe.chains_per_prompt) if by_chains else 1 for _, chains in asked]
    return tuple((*one, part) for one, count in zip(asked, parts, strict=True) for part in range(count))


@lru_cache(maxsize=8)
def _permutation(recipe: DataOrder[F], format: F, epoch: int) -> tuple[tuple[str, int, int], ...]:
    key = f"{(recipe.seed, 'questions', format.name, epoch)}"

    def place(prompt: tuple[str, int, int]) -> tuple[int, str, int]:
        question, _, part = prompt
        return _hash(f"{key}{question}" + (f"/{part}" if part else "")), question, part

    return tuple(sorted(_epoch_prompts(recipe, format.rationale), key=place))


def _prompt_group(recipe: DataOrder[F], format: F, epoch: int, prompt: tuple[str, int, int]) -> PromptGroup[F]:
    """A question with the chains whose turn it is: of a hashed order of them the next m, around and around, or, where
    each chain comes once in an epoch, the m of this part."""
    question, chains, part = prompt
    if not format.rationale:
        return PromptGroup(question, format, (), epoch, epoch)
    key = f"{(recipe.seed, 'chains', format.name, question)}"
    m = recipe.chains_per_prompt
    if recipe.uniform_over == "chains":  # in each epoch other chains share a prompt
        order = sorted(range(chains), key=lambda chain: _hash(f"{key}{epoch}/{chain}"))
        return PromptGroup(
            question, format, tuple(order[part * m : part * m + m]), epoch, epoch * -(-chains // m) + part
        )
    order = sorted(range(chains), key=lambda chain: _hash(f"{key}{chain}"))
    taken = min(m, chains)
    return PromptGroup(question, format, tuple(order[(epoch * taken + i) % chains] for i in range(taken)), epoch, epoch)


def _hash(text: str) -> int:
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def _fill(lengths: Sequence[int], budget: int) -> tuple[tuple[int, ...], ...]:
    """Runs of the places by falling length, each filled to the budget."""
    runs: list[list[int]] = []
    left = 0
    for place in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if not runs or lengths[place] > left:
            runs.append([])
            left = budget
        runs[-1].append(place)
        left -= lengths[place]
    return tuple(map(tuple, runs))


def _cut(
    lengths: Sequence[tuple[int, int]], order: Sequence[int], budget: int
) -> tuple[int, tuple[tuple[int, ...], ...]]:
    """The cheapest cut of an order into runs, by dynamic programming: its cost in tokens, and the runs."""
    extra = 1 + budget // 16  # what a micro-batch costs beyond its tokens, so that runs are not cut into single rows
    best: list[tuple[int, int]] = [(0, 0)]  # of the first n places: the cost, and where the last run starts
    for end in range(1, len(order) + 1):
        prompt = target = 0
        found: tuple[int, int] | None = None
        for start in range(end - 1, -1, -1):
            prompt, target = max(prompt, lengths[order[start]][0]), max(target, lengths[order[start]][1])
            slots = (end - start) * (prompt + target)
            if slots > budget and found:
                break
            cost = (best[start][0] + slots + extra, start)
            found = cost if found is None else min(found, cost)
        assert found is not None
        best.append(found)
    runs, end = [], len(order)
    while end:
        start = best[end][1]
        runs.append(tuple(order[start:end]))
        end = start
    return best[-1][0], tuple(reversed(runs))
