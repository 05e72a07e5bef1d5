"""Long and short chains: a filter in tokens of the student, and their shares in training."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

import tiny
from expect import user_error
from potstill import models
from potstill.alignment.target_store import TargetStore
from potstill.recipe import Recipe, parse_recipe
from potstill.storage import manifest, parquet
from potstill.training import data_order, examples


def test_the_filter_counts_tokens_of_the_student(world: Path, tmp_path: Path) -> None:
    plain = tiny.make(world, tmp_path / "plain", until="filter")
    recipe = tiny.recipe(world)
    tokenizer = models.tokenizer_from_recipe(recipe)
    verdicts = dict(parquet.read_verdicts(plain / "filter" / "verdicts.parquet"))
    lengths = {
        chain.key: len(tokenizer.encode(chain.text).ids)
        for chain in parquet.read_chains(plain / "sample" / "chains.parquet")
    }
    kept = sorted(lengths[key] for key, verdict in verdicts.items() if verdict.kept)
    low, high = kept[0], kept[len(kept) // 2]
    limits = f"filter={{min_tokens: {low}, max_tokens: {high}}}"
    limited = tiny.make(world, tmp_path / "limited", limits, until="filter")
    for key, verdict in parquet.read_verdicts(limited / "filter" / "verdicts.parquet"):
        assert (verdict.dropped == "length") == (not low <= lengths[key] <= high)
    begun = [manifest.read_finished(run / "filter") for run in (plain, limited)]
    assert begun[0] is not None and begun[1] is not None
    assert "filter.max_tokens" not in begun[0].identity.recipe and "student.tokenizer" not in begun[0].identity.inputs
    assert begun[1].identity.inputs["student.tokenizer"] == tokenizer.digest


def drawn_kinds(recipe: Recipe, lengths: dict[str, list[int]], steps: int) -> Counter[str]:
    """How often each kind of chain is drawn for the first question."""
    kinds = {name: [examples.chain_kind(recipe, "a", n) for n in tokens] for name, tokens in lengths.items()}
    order = examples.build_data_order(recipe, [(name, len(of)) for name, of in kinds.items()], kinds)
    groups = (group for step in range(1, steps + 1) for group in data_order.draw_groups(order, step))
    return Counter(kinds[group.question][chain] for group in groups if group.question == "q" for chain in group.chains)


def test_long_and_short_chains_are_drawn_by_their_quotas(world: Path) -> None:
    only = "train.formats={zero-shot-rationale: 1}"
    recipe = tiny.recipe(world, only, "train.lengths={long_from: 100, short: 3, long: 1}")
    counts = drawn_kinds(recipe, {"q": [99, 100, 5000, 30_000, 200], "r": [5]}, 400)
    assert counts["short"] == pytest.approx(3 * counts["long"], abs=4)
    # A question without long chains is drawn from its short ones.
    assert set(drawn_kinds(recipe, {"q": [5, 6]}, 20)) == {"short"}


def test_quotas_of_sources_and_lengths_are_multiplied() -> None:
    teachers = "teachers: {a: {kind: human}, b: {kind: human}}"
    train = "train: {sources: {a: 2, b: 1}, lengths: {long_from: 9, short: 3, long: 1}}"
    recipe = parse_recipe(f"name: x\n{teachers}\n{train}\n", "x.yaml", [])
    quotas = examples.chain_quotas(recipe)
    assert quotas == {"a/short": 6, "a/long": 2, "b/short": 3, "b/long": 1}
    assert examples.chain_kind(recipe, "b", 9) == "b/long"


def test_without_quotas_nothing_changes(world: Path) -> None:
    recipe = tiny.recipe(world)
    assert examples.chain_quotas(recipe) is None
    order = examples.build_data_order(recipe, [("q", 3)], {"q": ["a", "a", "b"]})
    assert order.sources is None and order.source_quotas is None


def test_a_run_leaves_out_long_chains(world: Path, tmp_path: Path) -> None:
    made = tiny.make(world, tmp_path / "run", until="align")
    recipe = tiny.recipe(world)
    lengths = TargetStore(examples.targets_folder(made, recipe)).lengths
    limit = int(lengths.min()) + 1
    short = tiny.recipe(world, f"train.lengths={{long_from: {limit}, long: 0}}")
    student = models.from_recipe(short)
    data = examples.read_training_data(made, short, student)
    assert data.counts["chains"] == int((lengths < limit).sum())
    rationales = {len(row.target) for step in range(1, 9) for row in data.examples(step) if "rationale" in row.format}
    assert rationales and max(rationales) < limit


@pytest.mark.parametrize(
    "changes",
    [
        ("train.lengths={long_from: 9, short: 0, long: 0}",),
        ("train.lengths={long_from: 9, short: 10000, long: 1}",),
        ("train.lengths={long_from: 9}", "train.uniform_over=chains"),
    ],
)
def test_quotas_that_draw_nothing_are_refused(world: Path, changes: tuple[str, ...]) -> None:
    with user_error("E-recipe-lengths"):
        tiny.recipe(world, *changes)
