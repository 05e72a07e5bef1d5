"""The order of the training data: which questions, formats, chains and demonstrations a step has, by (seed, step).

    >>> from potstill.prompts import FORMATS
    >>> quotas = {FORMATS["zero-shot-rationale"]: 2, FORMATS["zero-shot-answer"]: 1}
    >>> order = DataOrder(seed=1, groups_per_step=3, quotas=quotas, questions=(("a", 2), ("b", 1), ("c", 3)))
    >>> [(group.question, group.format.name, group.chains) for group in draw_groups(order, 1)]
    [('c', 'zero-shot-rationale', (2,)), ('a', 'zero-shot-answer', ()), ('a', 'zero-shot-rationale', (1,))]
    >>> split_into_micro_batches([(10, 5), (40, 5), (12, 5), (11, 4)], budget=60)
    ((1,), (2, 3, 0))

A *prompt group* is one question in one format with its chains, which share one prompt; a step is a fixed number of
groups. Chains are drawn uniformly over the questions, so that each question occurs equally often, or over the chains,
so that each chain occurs equally often and a question with 40 chains counts forty times as much as one with a single
chain. To resume, call with a later step; only `micro_batches_of_rank` depends on the number of processes. Random draws
are hashes of what they are for, never the state of a generator. The module is pure: no torch, no clock, no shared state
(permutations are cached, not advanced).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from itertools import accumulate
from math import gcd
from typing import Any, Final, Generic, Literal, Protocol, TypeVar, runtime_checkable

from potstill.errors import UserError

VERSION: Final = 2  # of the order that this module computes; stored in the manifests of the stages that use it


@runtime_checkable
class FormatLike(Protocol):
    """A format of prompts, such as `prompts.PromptFormat`; `rationale`: whether its targets are chains."""

    @property
    def name(self) -> str: ...

    @property
    def rationale(self) -> bool: ...


F = TypeVar("F", bound=FormatLike)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class PromptGroup(Generic[F]):
    """One question in one format: one prompt, and the targets under it.

    chains  indices into the question's list of chains; empty in an answer-only format, whose target is the bare answer
    epoch   how many times this format has gone through all its data before
    turn    how many times this format has used this question before; chooses the demonstrations
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
    """Everything that determines the order of a training run.

    quotas             by format: so many of every sum(quotas) groups have this format, spread evenly
    questions          (id, number of chains), in any order; questions without a chain occur in answer-only formats only
    chains_per_prompt  m: chains of a question in one group, fewer if the question has fewer
    uniform_over       questions: an epoch of a format uses each question once, with the next m of its chains.
                       chains: an epoch of a format uses each chain once; a question with n chains occurs in ceil(n / m)
                       groups, the last of which has the remainder. Answer-only formats have one target for a question,
                       so an epoch uses each question once in either case

    Raises UserError for quotas without any group, and for a format that has no question.
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
            what = "quotas are whole numbers, and at least one is above 0"
            found = {format.name: quota for format, quota in self.quotas.items()}
            raise UserError(what, code="E-train-format-quotas", where="train.formats", found=found)
        ids = [question for question, _ in self.questions]
        assert len(set(ids)) == len(ids), "a question occurs twice"
        for format, quota in self.quotas.items():
            if quota and not any(chains or not format.rationale for _, chains in self.questions):
                raise UserError(
                    f"the format {format.name} has no question to train on",
                    code="E-train-format-without-questions",
                    where="train.formats",
                    found=f"{len(ids)} questions, none with a chain",
                    hint="check which chains the filter kept, or remove this format",
                )


def draw_groups(order: DataOrder[F], step: int) -> tuple[PromptGroup[F], ...]:
    """The groups of a step, counted from 1. Costs O(groups), and one sort of the questions per format and epoch."""
    assert step >= 1, f"steps are counted from 1, not {step}"
    cycle = _format_cycle(order)
    first = (step - 1) * order.groups_per_step
    groups = []
    for number in range(first, first + order.groups_per_step):
        cycles_before, slot = divmod(number, len(cycle))
        format, before = cycle[slot]
        use = cycles_before * order.quotas[format] + before  # how many groups of this format came before
        epoch, index = divmod(use, len(_epoch_prompts(order, format.rationale)))
        groups.append(_prompt_group(order, format, epoch, _permutation(order, format, epoch)[index]))
    return tuple(groups)


def min_groups_per_step(order: DataOrder[F]) -> dict[F, int]:
    """By format, its number of groups in the step that has the fewest of them."""
    cycle = _format_cycle(order)
    size, length = order.groups_per_step, len(cycle)
    result = {}
    for format in dict.fromkeys(format for format, _ in cycle):
        before = [0, *accumulate(int(other == format) for other, _ in cycle)]  # in the first n slots of the cycle
        starts = range(0, length, gcd(size, length))  # every slot of the cycle at which a step can begin
        cycles, rest = divmod(size, length)
        counts = (before[min(i + rest, length)] - before[i] + before[max(i + rest - length, 0)] for i in starts)
        result[format] = cycles * before[-1] + min(counts)
    return result


def draw_demonstrations(
    seed: int, turn: int, question: str, format: FormatLike, pool: Sequence[str], count: int
) -> tuple[str, ...]:
    """`count` different ids of the pool, never the question itself. Costs O(count), whatever the size of the pool.

    Raises UserError if the pool has too few others.
    """
    key = f"{(seed, 'demonstrations', format.name, turn, question)}"
    # A Fisher-Yates shuffle of which only the first entries are computed: `moved` has the swapped ones.
    moved: dict[int, int] = {}
    drawn: list[str] = []
    for index in range(len(pool)):
        if len(drawn) == count:
            break
        other = index + _hash(f"{key}{index}") % (len(pool) - index)
        candidate = pool[moved.get(other, other)]
        moved[other] = moved.get(index, index)
        if candidate != question and candidate not in drawn:
            drawn.append(candidate)
    if len(drawn) < count:
        raise UserError(
            "there are too few questions to use as demonstrations",
            code="E-train-too-few-demonstrations",
            where=question,
            found=f"{len(drawn)} others in the pool, {count} needed",
            hint="lower train.demonstrations, or add training questions",
        )
    return tuple(drawn)


def rows_for_share(groups: int, share: float) -> int:
    """How many rows a step has beside its groups, so that they are this share of both; at least one."""
    return max(1, round(groups * share / (1 - share)))


def split_into_micro_batches(
    lengths: Sequence[tuple[int, int]], budget: int, *, padded: bool = True
) -> tuple[tuple[int, ...], ...]:
    """Split a step into micro-batches: tuples of indices into `lengths`, each of at most `budget` tokens.

    lengths  (prompt, target) of each example or group, in tokens
    budget   tokens of a micro-batch as the student computes them: rows * (longest prompt + longest target) if it pads,
             the sum if it does not. An example that alone exceeds it is a separate micro-batch: it has to be trained,
             and memory decides whether it fits
    padded   whether the student pads

    The longest examples come first, so that a step that is too large fails at once. For a student that pads, the split
    with the least padding among three orders by length is taken.
    """
    assert budget > 0, f"a budget of {budget} tokens"
    if not padded:
        return _fill_runs([sum(pair) for pair in lengths], budget)
    sort_keys = (lambda i: (*lengths[i], i), lambda i: (*lengths[i][::-1], i), lambda i: (sum(lengths[i]), i))
    orders = (sorted(range(len(lengths)), key=key, reverse=True) for key in sort_keys)
    return min((_cheapest_runs(lengths, order, budget) for order in orders), key=lambda split: split[0])[1]


def micro_batches_of_rank(micro_batches: Sequence[T], rank: int, world: int) -> list[T | None]:
    """What process `rank` of `world` computes: micro-batches rank, rank + world, ... At the end None may stand for a
    filler, so that all processes compute equally many."""
    assert 0 <= rank < world, f"process {rank} of {world}"
    padded = [*micro_batches, *[None] * (-len(micro_batches) % world)]
    return padded[rank::world]


@lru_cache(maxsize=8)
def _format_cycle(order: DataOrder[Any]) -> tuple[tuple[Any, int], ...]:
    """Smooth weighted round robin: in each slot the format that is furthest behind its share, with the number of times
    that it came before in the cycle."""
    total = sum(order.quotas.values())
    formats = sorted((format for format, quota in order.quotas.items() if quota), key=lambda format: format.name)
    credit, count = dict.fromkeys(formats, 0), Counter[Any]()
    cycle = []
    for _ in range(total):
        for format in formats:
            credit[format] += order.quotas[format]
        chosen = max(formats, key=lambda format: credit[format])
        credit[chosen] -= total
        cycle.append((chosen, count[chosen]))
        count[chosen] += 1
    return tuple(cycle)


@lru_cache(maxsize=8)
def _epoch_prompts(order: DataOrder[F], rationale: bool) -> tuple[tuple[str, int, int], ...]:
    """The prompts of an epoch: a question, the number of its chains, and which part of them the prompt has."""
    questions = [(question, chains) for question, chains in order.questions if chains or not rationale]
    by_chains = rationale and order.uniform_over == "chains"
    parts = [-(-chains // order.chains_per_prompt) if by_chains else 1 for _, chains in questions]
    return tuple((*pair, part) for pair, count in zip(questions, parts, strict=True) for part in range(count))


@lru_cache(maxsize=8)
def _permutation(order: DataOrder[F], format: F, epoch: int) -> tuple[tuple[str, int, int], ...]:
    """The prompts of an epoch, sorted by a hash: the order of a question does not depend on the other questions."""
    key = f"{(order.seed, 'questions', format.name, epoch)}"

    def sort_key(prompt: tuple[str, int, int]) -> tuple[int, str, int]:
        question, _, part = prompt
        return _hash(f"{key}{question}" + (f"/{part}" if part else "")), question, part

    return tuple(sorted(_epoch_prompts(order, format.rationale), key=sort_key))


def _prompt_group(order: DataOrder[F], format: F, epoch: int, prompt: tuple[str, int, int]) -> PromptGroup[F]:
    """A question with its next chains: of a hashed order of the chains the next m, cyclically; or, if each chain occurs
    once in an epoch, the m chains of this part."""
    question, chains, part = prompt
    if not format.rationale:
        return PromptGroup(question, format, (), epoch, epoch)
    key = f"{(order.seed, 'chains', format.name, question)}"
    m = order.chains_per_prompt
    by_chains = order.uniform_over == "chains"  # then in each epoch other chains share a prompt
    prefix = f"{key}{epoch}/" if by_chains else key
    shuffled = sorted(range(chains), key=lambda chain: _hash(f"{prefix}{chain}"))
    if by_chains:
        turn = epoch * -(-chains // m) + part
        return PromptGroup(question, format, tuple(shuffled[part * m : part * m + m]), epoch, turn)
    count = min(m, chains)
    chosen = tuple(shuffled[(epoch * count + i) % chains] for i in range(count))
    return PromptGroup(question, format, chosen, epoch, epoch)


def _hash(text: str) -> int:
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def _fill_runs(lengths: Sequence[int], budget: int) -> tuple[tuple[int, ...], ...]:
    """Runs of the indices by falling length, each filled up to the budget."""
    runs: list[list[int]] = []
    left = 0
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if not runs or lengths[index] > left:
            runs.append([])
            left = budget
        runs[-1].append(index)
        left -= lengths[index]
    return tuple(map(tuple, runs))


def _cheapest_runs(
    lengths: Sequence[tuple[int, int]], order: Sequence[int], budget: int
) -> tuple[int, tuple[tuple[int, ...], ...]]:
    """The cheapest split of an order into runs, by dynamic programming: its cost in tokens, and the runs."""
    overhead = 1 + budget // 16  # tokens that a micro-batch costs beyond its own, so that runs are not single rows
    best: list[tuple[int, int]] = [(0, 0)]  # for the first n indices: the cost, and where the last run starts
    for end in range(1, len(order) + 1):
        prompt = target = 0
        cheapest: tuple[int, int] | None = None
        for start in range(end - 1, -1, -1):
            prompt, target = max(prompt, lengths[order[start]][0]), max(target, lengths[order[start]][1])
            slots = (end - start) * (prompt + target)
            if slots > budget and cheapest:
                break
            option = (best[start][0] + slots + overhead, start)
            cheapest = option if cheapest is None else min(cheapest, option)
        assert cheapest is not None
        best.append(cheapest)
    runs, end = [], len(order)
    while end:
        start = best[end][1]
        runs.append(tuple(order[start:end]))
        end = start
    return best[-1][0], tuple(reversed(runs))
