"""The order of training data: quotas, epochs, demonstrations, micro-batches and shares, as properties."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expect import user_error
from potstill.prompts import FORMATS, PromptFormat
from potstill.training.data_order import (
    DataOrder,
    draw_demonstrations,
    draw_groups,
    micro_batches_of_rank,
    split_into_micro_batches,
)

UNEQUAL = {
    FORMATS["few-shot-rationale"]: 2,
    FORMATS["few-shot-answer"]: 10,
    FORMATS["zero-shot-rationale"]: 8,
    FORMATS["zero-shot-answer"]: 20,
}
quotas = st.dictionaries(st.sampled_from(list(FORMATS.values())), st.integers(1, 7), min_size=1)
questions = st.lists(st.integers(1, 5), min_size=1, max_size=12).map(
    lambda counts: tuple((f"q{i}", count) for i, count in enumerate(counts))
)


def stream(order: DataOrder, count: int):
    """The first `count` groups, from as many steps as that takes."""
    steps = range(1, -(-count // order.groups_per_step) + 1)
    return [group for step in steps for group in draw_groups(order, step)][:count]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 99), quotas, questions, st.integers(1, 9), st.integers(1, 3))
def test_every_cycle_has_exactly_its_quotas(seed, quotas, questions, per_step, m):
    order = DataOrder(seed, per_step, quotas, questions, m)
    total = sum(quotas.values())
    found = stream(order, 3 * total)
    for cycle in range(3):
        assert Counter(group.format for group in found[cycle * total : (cycle + 1) * total]) == quotas


@settings(max_examples=60, deadline=None)
@given(quotas)
def test_formats_are_spread_smoothly(quotas):
    order = DataOrder(1, 1, quotas, (("a", 1),))
    total = sum(quotas.values())
    seen: Counter[PromptFormat] = Counter()
    for number, group in enumerate(stream(order, total), 1):
        seen[group.format] += 1
        for format, quota in quotas.items():
            assert abs(seen[format] - number * quota / total) < len(quotas)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 99), quotas, questions, st.integers(1, 9))
def test_every_format_asks_every_question_once_in_an_epoch(seed, quotas, questions, per_step):
    order = DataOrder(seed, per_step, quotas, questions)
    found = stream(order, 2 * len(questions) * sum(quotas.values()))
    for format in quotas:
        own = [group for group in found if group.format == format]
        for epoch in (0, 1):
            names = [group.question for group in own if group.epoch == epoch]
            assert sorted(names) == sorted(name for name, _ in questions)
        assert [group.epoch for group in own] == sorted(group.epoch for group in own)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 99), questions, st.integers(1, 4))
def test_chains_rotate_so_that_all_are_used_alike(seed, questions, m):
    form = FORMATS["few-shot-rationale"]
    order = DataOrder(seed, 1, {form: 1}, questions, m)
    epochs = 60  # a multiple of every number of chains
    used: dict[str, Counter[int]] = {}
    for group in stream(order, epochs * len(questions)):
        assert len(set(group.chains)) == len(group.chains) == group.targets
        used.setdefault(group.question, Counter()).update(group.chains)
    for name, chains in questions:
        assert len(used[name]) == chains and len(set(used[name].values())) == 1


def test_answer_only_groups_have_one_target_and_need_no_chain():
    answer, rationale = FORMATS["zero-shot-answer"], FORMATS["zero-shot-rationale"]
    order = DataOrder(3, 2, {answer: 1, rationale: 1}, (("with", 4), ("without", 0)), chains_per_prompt=3)
    found = stream(order, 40)
    assert {group.question for group in found if group.format == answer} == {"with", "without"}
    assert {group.question for group in found if group.format == rationale} == {"with"}
    assert {(group.chains, group.targets) for group in found if group.format == answer} == {((), 1)}
    assert {group.targets for group in found if group.format == rationale} == {3}


def test_a_step_is_a_function_of_its_number_alone():
    """No replay: any step, in any order, by a new plan, while others draw random numbers."""
    asked = tuple((f"q{i}", 1 + i % 3) for i in range(50))
    order = DataOrder(7, 6, UNEQUAL, asked, 2)
    forward = [draw_groups(order, step) for step in range(1, 30)]
    random.seed(1)
    for step in (29, 3, 17, 1):
        random.random()
        again = DataOrder(7, 6, dict(reversed(UNEQUAL.items())), asked, 2)
        assert draw_groups(again, step) == forward[step - 1]
    assert draw_groups(DataOrder(8, 6, UNEQUAL, asked, 2), 1) != forward[0]


def test_the_order_of_the_questions_in_the_plan_does_not_matter():
    asked = [(f"q{i}", 1 + i % 3) for i in range(20)]
    one, other = DataOrder(7, 5, UNEQUAL, asked), DataOrder(7, 5, UNEQUAL, asked[::-1])
    assert [draw_groups(one, step) for step in range(1, 20)] == [draw_groups(other, step) for step in range(1, 20)]


def test_the_formats_of_a_question_do_not_share_their_chains_and_places():
    order = DataOrder(7, 4, dict.fromkeys(FORMATS.values(), 1), tuple((f"q{i}", 9) for i in range(30)))
    found = stream(order, 120)
    streams = [[group.question for group in found if group.format == format] for format in FORMATS.values()]
    assert len({tuple(names) for names in streams}) == 4
    chains = [
        {group.question: group.chains for group in found if group.format == FORMATS[name]}
        for name in ("zero-shot-rationale", "few-shot-rationale")
    ]
    assert chains[0] != chains[1]


def test_the_golden_order():
    """Changing this changes every run: raise order.VERSION with it."""
    order = DataOrder(1, 8, UNEQUAL, tuple((f"q{i}", 2) for i in range(6)), 2)
    short = {"zero-shot-answer": "za", "zero-shot-rationale": "zr", "few-shot-answer": "fa", "few-shot-rationale": "fr"}
    written = [f"{short[g.format.name]}:{g.question}:{''.join(map(str, g.chains))}" for g in draw_groups(order, 2)]
    assert " ".join(written) == GOLDEN
    pool = tuple(f"q{i}" for i in range(9))
    assert draw_demonstrations(1, 0, "q3", FORMATS["few-shot-answer"], pool, 4) == GOLDEN_SHOTS


GOLDEN = "za:q4: fa:q3: fr:q3:10 za:q3: zr:q5:01 za:q0: fa:q4: za:q4:"
GOLDEN_SHOTS = ("q2", "q6", "q0", "q5")


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 99), st.integers(0, 5), st.integers(0, 8), st.integers(1, 9), st.integers(0, 8))
def test_demonstrations_are_others_and_different(seed, epoch, question, size, count):
    pool = tuple(f"q{i}" for i in range(size))
    asked, others = f"q{question}", size - (question < size)
    if count > others:
        with user_error("E-train-too-few-demonstrations"):
            draw_demonstrations(seed, epoch, asked, FORMATS["few-shot-answer"], pool, count)
        return
    found = draw_demonstrations(seed, epoch, asked, FORMATS["few-shot-answer"], pool, count)
    assert len(set(found)) == len(found) == count and set(found) <= set(pool) - {asked}


def test_demonstrations_change_with_epoch_question_and_format_and_are_spread():
    pool = tuple(f"q{i}" for i in range(40))
    answer, rationale = FORMATS["few-shot-answer"], FORMATS["few-shot-rationale"]
    one = draw_demonstrations(1, 0, "q1", answer, pool, 4)
    assert one == draw_demonstrations(1, 0, "q1", answer, pool, 4)
    others = [
        draw_demonstrations(2, 0, "q1", answer, pool, 4),
        draw_demonstrations(1, 1, "q1", answer, pool, 4),
        draw_demonstrations(1, 0, "q2", answer, pool, 4),
        draw_demonstrations(1, 0, "q1", rationale, pool, 4),
    ]
    assert all(one != other for other in others)
    used = Counter(name for epoch in range(1000) for name in draw_demonstrations(1, epoch, "q1", answer, pool, 4))
    assert set(used) == set(pool) - {"q1"} and max(used.values()) < 2 * min(used.values())  # expected 103 each


lengths = st.lists(st.tuples(st.integers(1, 90), st.integers(1, 30)), max_size=40)


@settings(max_examples=100, deadline=None)
@given(lengths, st.integers(1, 400))
def test_micro_batches_hold_everything_once_within_the_budget(lengths, budget):
    cut = split_into_micro_batches(lengths, budget)
    assert sorted(place for batch in cut for place in batch) == list(range(len(lengths)))
    for batch in cut:
        rows = [lengths[place] for place in batch]
        assert len(rows) == 1 or len(rows) * (max(p for p, _ in rows) + max(t for _, t in rows)) <= budget
    assert cut == split_into_micro_batches(lengths, budget)


@settings(max_examples=100, deadline=None)
@given(lengths, st.integers(1, 400))
def test_micro_batches_without_padding_are_full(lengths, budget):
    cut = split_into_micro_batches(lengths, budget, padded=False)
    assert sorted(place for batch in cut for place in batch) == list(range(len(lengths)))
    sizes = [sum(sum(lengths[place]) for place in batch) for batch in cut]
    assert all(size <= budget or len(batch) == 1 for size, batch in zip(sizes, cut, strict=True))
    for size, after in zip(sizes, cut[1:], strict=False):  # the next one had no room
        assert size + sum(lengths[after[0]]) > budget


def test_the_papers_mix_is_cut_with_little_padding():
    """A step of the 3B recipe: prompt and target tokens and rows of each format, as its dry run says."""
    drawn = random.Random(1)
    kinds = [(605, 79, 48), (351, 5, 2), (69, 79, 48), (64, 5, 2)]
    lengths = [(int(drawn.gauss(p, p / 8)), max(4, int(drawn.gauss(t, t / 8)))) for p, t, n in kinds for _ in range(n)]
    cut = split_into_micro_batches(lengths, 16384)
    slots = sum(len(b) * (max(lengths[i][0] for i in b) + max(lengths[i][1] for i in b)) for b in cut)
    assert sum(map(sum, lengths)) / slots > 0.85


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 30), st.integers(1, 7))
def test_the_processes_share_everything_in_equal_numbers(count, world):
    batches = tuple((i,) for i in range(count))
    shares = [micro_batches_of_rank(batches, rank, world) for rank in range(world)]
    assert len({len(own) for own in shares}) == 1
    assert sorted(batch for own in shares for batch in own if batch is not None) == sorted(batches)
    for rank, own in enumerate(shares):
        assert all(batch is None or batch[0] == rank + turn * world for turn, batch in enumerate(own))


def test_plans_that_name_nothing_are_refused():
    with user_error("E-train-format-quotas"):
        DataOrder(1, 1, {FORMATS["zero-shot-answer"]: 0}, (("a", 1),))
    with user_error("E-train-format-quotas"):
        DataOrder(1, 1, {FORMATS["zero-shot-answer"]: -1, FORMATS["zero-shot-rationale"]: 2}, (("a", 1),))
    with user_error("E-train-format-without-questions", where="train.formats"):
        DataOrder(1, 1, {FORMATS["zero-shot-rationale"]: 1}, (("a", 0),))
    with pytest.raises(AssertionError, match="occurs twice"):
        DataOrder(1, 1, {FORMATS["zero-shot-answer"]: 1}, (("a", 0), ("a", 0)))
    with pytest.raises(AssertionError, match="counted from 1"):
        draw_groups(DataOrder(1, 1, {FORMATS["zero-shot-answer"]: 1}, (("a", 0),)), 0)


@settings(max_examples=20, deadline=None)
@given(
    st.integers(0, 99),
    st.lists(st.lists(st.sampled_from("abc"), min_size=1, max_size=4), min_size=1, max_size=4),
    st.fixed_dictionaries({"a": st.integers(1, 4), "b": st.integers(1, 4), "c": st.integers(1, 4)}),
)
def test_sources_get_their_quotas_and_their_chains_rotate(seed, of_question, quotas):
    form = FORMATS["zero-shot-rationale"]
    sources = {f"q{i}": names for i, names in enumerate(of_question)}
    counts = tuple((name, len(names)) for name, names in sources.items())
    order = DataOrder(seed, 1, {form: 1}, counts, sources=sources, source_quotas=quotas)
    cycles = 12  # a multiple of every number of chains, so that all chains of a source are used alike
    groups = stream(order, len(counts) * sum(quotas.values()) * cycles)
    for name, names in sources.items():
        present = sorted(set(names))
        total = sum(quotas[source] for source in present)
        own_groups = [group for group in groups if group.question == name][: total * cycles]
        used = Counter(chain for group in own_groups for chain in group.chains)
        for source in present:
            own = [used[chain] for chain, other in enumerate(names) if other == source]
            assert sum(own) == cycles * quotas[source] and max(own) - min(own) == 0


def test_a_group_has_no_chain_twice_and_questions_begin_at_other_sources():
    form, count = FORMATS["zero-shot-rationale"], 200
    sources = {f"q{i}": ["model"] * 4 + ["human"] for i in range(count)}
    quotas, asked = {"model": 1, "human": 1}, tuple((name, 5) for name in sources)
    groups = stream(DataOrder(1, 10, {form: 1}, asked, 3, sources=sources, source_quotas=quotas), 4 * count)
    assert all(len(set(group.chains)) == len(group.chains) in (2, 3) for group in groups)
    first = stream(DataOrder(1, 10, {form: 1}, asked, sources=sources, source_quotas=quotas), count)
    assert 0.35 < sum(group.chains == (4,) for group in first) / count < 0.65
    with pytest.raises(AssertionError, match="uniform_over"):
        DataOrder(1, 1, {form: 1}, asked, 1, "chains", sources, quotas)
