"""The order of the training data: the questions, formats, chains and demonstrations of a step, by (seed, step).

    >>> from potstill.prompts import FORMATS
    >>> quotas = {FORMATS["zero-shot-rationale"]: 2, FORMATS["zero-shot-answer"]: 1}
    >>> order = DataOrder(seed=1, groups_per_step=3, quotas=quotas, questions=(("a", 2), ("b", 1), ("c", 3)))
    >>> [(group.question, group.format.name, group.chains) for group in draw_groups(order, 1)]
    [('c', 'zero-shot-rationale', (2,)), ('a', 'zero-shot-answer', ()), ('a', 'zero-shot-rationale', (1,))]
    >>> split_into_micro_batches([(10, 5), (40, 5), (12, 5), (11, 4)], budget=60)
    ((1,), (2, 3, 0))

A *prompt group* is one question in one format with some of its chains, which share one prompt. A step is a fixed number
of groups. Chains are drawn uniformly over the questions, so that every question occurs equally often, or uniformly over
the chains, so that every chain occurs equally often: a question with 40 chains then occurs 40 times as often as a
question with one chain. To resume, call the functions with a later step. Only `micro_batches_of_rank` depends on the
number of processes. Random draws come from hashes of their purpose and index, not from the state of a generator. The
module is pure: it uses no torch and no clock, and its only state is a cache.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from itertools import accumulate, pairwise
from math import gcd
from typing import Any, Final, Generic, Literal, Protocol, TypeVar, runtime_checkable

from potstill.errors import UserError

VERSION: Final = 2  # of the data order; stored in the manifests of the stages that use it


@runtime_checkable
class FormatLike(Protocol):
    """A prompt format, such as `prompts.PromptFormat`. `rationale` says whether its targets are chains."""

    @property
    def name(self) -> str: ...

    @property
    def rationale(self) -> bool: ...


F = TypeVar("F", bound=FormatLike)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class PromptGroup(Generic[F]):
    """One question in one format: one prompt with one or more targets.

    chains  indices into the question's list of chains; empty in an answer-only format, whose target is the bare answer
    epoch   the number of complete passes of this format over its data before this group
    turn    the number of earlier groups with this question in this format; it selects the demonstrations
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
    """Everything that determines the order of the data in a training run.

    quotas             number of groups of each format in every sum(quotas) groups, spread evenly
    questions          (id, number of chains), in any order. Questions without chains occur only in answer-only formats
    chains_per_prompt  m, the number of chains in a group; a group has fewer if the question has fewer
    uniform_over       questions: an epoch of a format uses every question once, with the next m of its chains.
                       chains: an epoch of a format uses every chain once; a question with n chains occurs in
                       ceil(n / m) groups, and the last group has the remainder. An answer-only format has one target
                       per question, so its epochs use every question once in both cases
    sources            question -> the source (or another kind, such as long) of each of its chains, in their order; None:
                       they do not matter
    source_quotas      with `sources`: number of draws from each source in every sum(source_quotas) draws of a question,
                       spread evenly. A question without chains of a source is drawn from its other sources, in the same
                       proportion. A group has no chain twice: it is smaller if a source has fewer chains than its draws

    Raises UserError if all quotas are 0, and for a format without a question.
    """

    seed: int
    groups_per_step: int
    quotas: Mapping[F, int]
    questions: Sequence[tuple[str, int]]
    chains_per_prompt: int = 1
    uniform_over: Literal["questions", "chains"] = "questions"
    sources: Mapping[str, Sequence[str]] | None = None
    source_quotas: Mapping[str, int] | None = None

    def __post_init__(self) -> None:
        assert self.sources is None or self.uniform_over == "questions", "source quotas are for uniform_over questions"
        assert self.groups_per_step > 0 and self.chains_per_prompt > 0, "a step has groups, and a group has chains"
        if any(quota < 0 for quota in self.quotas.values()) or not sum(self.quotas.values()):
            what = "the quotas of the formats must be whole numbers of at least 0, and one must be above 0"
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
                    found=f"{len(ids)} questions without chains",
                    hint="check which chains the filter kept, or remove this format",
                )


def draw_groups(order: DataOrder[F], step: int) -> tuple[PromptGroup[F], ...]:
    """The groups of a step; steps are counted from 1."""
    assert step >= 1, f"steps are counted from 1, not {step}"
    return draw_numbered_groups(order, (step - 1) * order.groups_per_step, order.groups_per_step)


def draw_numbered_groups(order: DataOrder[F], first: int, count: int) -> tuple[PromptGroup[F], ...]:
    """`count` groups of a run from number `first` on, counted from 0, for steps of different sizes.

    Takes O(count), and one sort of the questions per format and epoch.
    """
    cycle = _format_cycle(order)
    groups = []
    for number in range(first, first + count):
        cycles_before, slot = divmod(number, len(cycle))
        format, before = cycle[slot]
        use = cycles_before * order.quotas[format] + before  # number of earlier groups of this format
        epoch, index = divmod(use, len(_epoch_prompts(order, format.rationale)))
        groups.append(_prompt_group(order, format, epoch, _permutation(order, format, epoch)[index]))
    return tuple(groups)


def count_formats(order: DataOrder[F], bounds: Sequence[int]) -> Iterator[dict[F, int]]:
    """The number of groups of each format between every two neighbours of `bounds`, which are numbers of groups."""
    cycle = _format_cycle(order)
    formats = dict.fromkeys(format for format, _ in cycle)
    before = {f: [0, *accumulate(int(other == f) for other, _ in cycle)] for f in formats}  # in the first n slots

    def count(format: F, number: int) -> int:
        cycles, rest = divmod(number, len(cycle))
        return cycles * before[format][-1] + before[format][rest]

    for first, last in pairwise(bounds):
        yield {format: count(format, last) - count(format, first) for format in formats}


def min_groups_per_step(order: DataOrder[F]) -> dict[F, int]:
    """For each format, the smallest number of its groups in any step."""
    cycle = _format_cycle(order)
    size, length = order.groups_per_step, len(cycle)
    result = {}
    for format in dict.fromkeys(format for format, _ in cycle):
        before = [
            0,
            *accumulate(int(other == format) for other, _ in cycle),
        ]  # number in the first n slots of the cycle
        starts = range(0, length, gcd(size, length))  # every slot of the cycle at which a step can begin
        cycles, rest = divmod(size, length)
        counts = (before[min(i + rest, length)] - before[i] + before[max(i + rest - length, 0)] for i in starts)
        result[format] = cycles * before[-1] + min(counts)
    return result


def draw_demonstrations(
    seed: int, turn: int, question: str, format: FormatLike, pool: Sequence[str], count: int
) -> tuple[str, ...]:
    """`count` different ids of the pool, never the question itself. Takes O(count), for any size of the pool.

    Raises UserError if the pool has too few other questions.
    """
    key = f"{(seed, 'demonstrations', format.name, turn, question)}"
    # A Fisher-Yates shuffle that computes only its first entries; `moved` has the swapped entries.
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
            "there are too few questions for the demonstrations",
            code="E-train-too-few-demonstrations",
            where=question,
            found=f"{len(drawn)} other questions in the pool, {count} needed",
            hint="lower train.demonstrations, or add training questions",
        )
    return tuple(drawn)


def count_in_rotation(quotas: Mapping[T, int], length: int) -> dict[T, int]:
    """How often each item occurs among the first `length` places, if the items take turns by their quotas.

    >>> count_in_rotation({"a": 2, "b": 1}, 4)
    {'a': 3, 'b': 1}
    """
    cycles, rest = divmod(length, sum(quotas.values()))
    begun = Counter(item for item, _ in _round_robin(quotas)[:rest])
    return {item: cycles * quota + begun[item] for item, quota in quotas.items()}


def rows_for_share(groups: int, share: float) -> int:
    """The number of rows to add to a step of `groups` groups so that they are this share of the sum; at least 1."""
    return max(1, round(groups * share / (1 - share)))


def split_into_micro_batches(
    lengths: Sequence[tuple[int, int]], budget: int, *, padded: bool = True
) -> tuple[tuple[int, ...], ...]:
    """Split a step into micro-batches of at most `budget` tokens. A micro-batch is a tuple of indices into `lengths`.

    lengths  (prompt, target) of each example or group, in tokens
    budget   the largest number of tokens in a micro-batch, counted as the student computes them: rows * (longest prompt
             + longest target) if it pads, the sum of all tokens if it does not. An example that alone exceeds the budget
             is a micro-batch by itself, because it has to be trained; it may be too large for the memory
    padded   whether the student pads

    The longest examples come first, so that a step that is too large fails at once. For a student that pads, three
    orders by length are tried, and the split with the least padding is returned.
    """
    assert budget > 0, f"a budget of {budget} tokens"
    if not padded:
        return _fill_runs([sum(pair) for pair in lengths], budget)
    sort_keys = (lambda i: (*lengths[i], i), lambda i: (*lengths[i][::-1], i), lambda i: (sum(lengths[i]), i))
    orders = (sorted(range(len(lengths)), key=key, reverse=True) for key in sort_keys)
    return min((_cheapest_runs(lengths, order, budget) for order in orders), key=lambda split: split[0])[1]


def micro_batches_of_rank(micro_batches: Sequence[T], rank: int, world: int) -> list[T | None]:
    """The micro-batches of process `rank` of `world`: those with the indices rank, rank + world, ... All processes get the
    same number: None at the end stands for a filler."""
    assert 0 <= rank < world, f"process {rank} of {world}"
    padded = [*micro_batches, *[None] * (-len(micro_batches) % world)]
    return padded[rank::world]


@lru_cache(maxsize=8)
def _format_cycle(order: DataOrder[Any]) -> tuple[tuple[Any, int], ...]:
    """The (format, number of its earlier slots) of each slot of the cycle."""
    return _round_robin({format: order.quotas[format] for format in sorted(order.quotas, key=lambda each: each.name)})


def _round_robin(quotas: Mapping[T, int]) -> tuple[tuple[T, int], ...]:
    """The (item, number of its earlier slots) of each slot of a cycle of sum(quotas) slots, by smooth weighted round robin:
    a slot gets the item that is furthest behind its share; the first one of several."""
    items, total = [item for item, quota in quotas.items() if quota], sum(quotas.values())
    credit, count = dict.fromkeys(items, 0), Counter[T]()
    cycle = []
    for _ in range(total):
        for item in items:
            credit[item] += quotas[item]
        chosen = max(items, key=lambda item: credit[item])
        credit[chosen] -= total
        cycle.append((chosen, count[chosen]))
        count[chosen] += 1
    return tuple(cycle)


@lru_cache(maxsize=8)
def _epoch_prompts(order: DataOrder[F], rationale: bool) -> tuple[tuple[str, int, int], ...]:
    """The prompts of an epoch, as (question, number of the question's chains, index of the prompt's part of the chains)."""
    questions = [(question, chains) for question, chains in order.questions if chains or not rationale]
    by_chains = rationale and order.uniform_over == "chains"
    parts = [-(-chains // order.chains_per_prompt) if by_chains else 1 for _, chains in questions]
    return tuple((*pair, part) for pair, count in zip(questions, parts, strict=True) for part in range(count))


@lru_cache(maxsize=8)
def _permutation(order: DataOrder[F], format: F, epoch: int) -> tuple[tuple[str, int, int], ...]:
    """The prompts of an epoch, sorted by a hash, so that a question's place does not depend on the other questions."""
    key = f"{(order.seed, 'questions', format.name, epoch)}"

    def sort_key(prompt: tuple[str, int, int]) -> tuple[int, str, int]:
        question, _, part = prompt
        return _hash(f"{key}{question}" + (f"/{part}" if part else "")), question, part

    return tuple(sorted(_epoch_prompts(order, format.rationale), key=sort_key))


def _prompt_group(order: DataOrder[F], format: F, epoch: int, prompt: tuple[str, int, int]) -> PromptGroup[F]:
    """The group of a prompt. Its chains are the next m in a hashed, cyclic order of the question's chains. If the order is
    uniform over the chains, they are the m chains of the prompt's part."""
    question, chains, part = prompt
    if not format.rationale:
        return PromptGroup(question, format, (), epoch, epoch)
    key = f"{(order.seed, 'chains', format.name, question)}"
    m = order.chains_per_prompt
    if order.sources is not None and order.source_quotas is not None:
        uses = range(epoch * m, epoch * m + m)
        chosen = _chains_by_source(key, order.sources[question], order.source_quotas, uses)
        return PromptGroup(question, format, chosen, epoch, epoch)
    by_chains = order.uniform_over == "chains"  # if so, the chains that share a prompt change with every epoch
    prefix = f"{key}{epoch}/" if by_chains else key
    shuffled = sorted(range(chains), key=lambda chain: _hash(f"{prefix}{chain}"))
    if by_chains:
        turn = epoch * -(-chains // m) + part
        return PromptGroup(question, format, tuple(shuffled[part * m : part * m + m]), epoch, turn)
    count = min(m, chains)
    chosen = tuple(shuffled[(epoch * count + i) % chains] for i in range(count))
    return PromptGroup(question, format, chosen, epoch, epoch)


def _chains_by_source(
    key: str, sources: Sequence[str], quotas: Mapping[str, int], uses: Sequence[int]
) -> tuple[int, ...]:
    """The different chains that are drawn at the uses of a question, which are counted from 0.

    The sources follow a cycle of their quotas that begins somewhere else for every question, so that they have their
    shares in every epoch, too. The chains of a source follow a hashed order.
    """
    by_source = {
        source: sorted(
            (chain for chain, other in enumerate(sources) if other == source), key=lambda chain: _hash(f"{key}{chain}")
        )
        for source in sorted(set(sources))
    }
    cycle = _round_robin({source: quotas[source] for source in by_source})
    start = _hash(f"{key}start") % len(cycle)
    chosen = []
    for use in uses:
        cycles, slot = divmod(start + use, len(cycle))
        source, before = cycle[slot]
        own = by_source[source]
        chosen.append(own[(cycles * quotas[source] + before) % len(own)])
    return tuple(dict.fromkeys(chosen))


def _hash(text: str) -> int:
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def _fill_runs(lengths: Sequence[int], budget: int) -> tuple[tuple[int, ...], ...]:
    """The indices, sorted by length, longest first, and cut into runs that fill the budget."""
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
    """The cheapest split of an order into runs, by dynamic programming. Returns its cost in tokens, and the runs."""
    overhead = 1 + budget // 16  # added cost of a micro-batch in tokens, which makes runs longer than one row
    best: list[tuple[int, int]] = [(0, 0)]  # for the first n indices: (cost, start of the last run)
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
