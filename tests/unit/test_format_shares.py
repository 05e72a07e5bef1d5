"""The mix of formats: shares of rows, weights in the gradient, and whether questions or chains are drawn uniformly.

The paper's authors cut each format's whole data into micro-batches of a size that fits the GPU; each micro-batch counts
the same. Shares, weights and rows a step follow from the sizes and the number of examples, so the recipes are held
against these.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import tiny
from expect import user_error
from potstill import dry_run, models, prompts, training
from potstill.errors import UserError
from potstill.models import Example, Student
from potstill.prompts import FORMATS
from potstill.recipe import load_recipe, parse_recipe, recipe_to_yaml
from potstill.report import collect
from potstill.runner import run as run_recipe
from potstill.storage import manifest, read
from potstill.training import data_order, examples, loss_from_recipe
from potstill.training.loop import on_policy_divergence
from process_group import gloo, together
from training_steps import FAMILIES, MICRO_BATCHES, gradients, gradients_agree, make_student, training_examples

RECIPES = Path(__file__).parents[2] / "recipes"
NAMES = ("few-shot-rationale", "few-shot-answer", "zero-shot-rationale", "zero-shot-answer")
QUESTIONS, CHAINS, ANSWERS = 7_473, 207_135, 7_300  # of the authors; they give the last number only roughly
SIZES = {  # rows of a micro-batch of each format, and micro-batches a step
    "flan-t5-base": ((25, 35, 40, 60), 3),
    "flan-t5-large": ((8, 12, 18, 30), 20),
    "flan-t5-xl": ((2, 10, 8, 20), 30),
    "flan-t5-xxl": ((10, 20, 20, 30), 6),
}
WEIGHTS = "train.loss_weights={zero-shot-rationale: 6, zero-shot-answer: 1, few-shot-rationale: 2, few-shot-answer: 1}"
FEW = "train.formats={zero-shot-rationale: 2, zero-shot-answer: 2, few-shot-rationale: 2, few-shot-answer: 2}"


def chain_counts() -> list[tuple[str, int]]:
    """As many questions and chains as the authors had, from 0 to 40 of them a question."""
    counts = [round(40 * (1 - (i / (QUESTIONS - 1)) ** 2.25)) for i in range(QUESTIONS)]
    for position in range(3000, 3000 + abs(CHAINS - sum(counts))):
        counts[position] += 1 if sum(counts) < CHAINS else -1
    return [(f"q{i}", count) for i, count in enumerate(counts)]


@pytest.mark.parametrize("name", SIZES)
def test_the_recipes_have_the_shares_of_the_authors_counts(name: str) -> None:
    recipe = load_recipe(RECIPES / f"{name}.yaml")
    sizes, accumulation = SIZES[name]
    rows = dict(zip(NAMES, (CHAINS, ANSWERS, CHAINS, ANSWERS), strict=True))
    batches = {each: rows[each] / size for each, size in zip(NAMES, sizes, strict=True)}
    quotas, weights = recipe.train.formats, recipe.train.loss_weights
    assert weights is not None and quotas.keys() == weights.keys() == set(NAMES)
    for each in NAMES:
        assert quotas[each] / sum(quotas.values()) == pytest.approx(rows[each] / sum(rows.values()), abs=5e-4)
        assert weights[each] / sum(weights.values()) == pytest.approx(batches[each] / sum(batches.values()), abs=1.1e-3)
    assert recipe.train.prompts_per_step == round(accumulation * sum(rows.values()) / sum(batches.values()))
    assert recipe.train.chains_per_prompt == 1  # so that a group is a row


def test_an_epoch_of_3b_has_as_many_micro_batches_as_the_authors_notebook() -> None:
    rows = (CHAINS, ANSWERS, CHAINS, ANSWERS)
    batches = sum(count / size for count, size in zip(rows, SIZES["flan-t5-xl"][0], strict=True))
    assert batches == pytest.approx(130_530, rel=2e-4)  # 24 more: the number of answers is rounded


@pytest.mark.parametrize("name", SIZES)
def test_the_recipes_train_sample_and_filter_as_the_authors_did(name: str) -> None:
    recipe = load_recipe(RECIPES / f"{name}.yaml")
    train, teacher = recipe.train, recipe.teacher
    assert (train.optimizer, train.betas, train.weight_decay, train.max_grad_norm) == (
        "adamw",
        [0.9, 0.999],
        0.01,
        None,
    )
    assert (train.schedule, train.warmup_steps, train.precision, train.missing_probability) == (
        "constant",
        10,
        "float32",
        "raw",
    )
    assert train.learning_rate == (1e-4 if name == "flan-t5-xxl" else 5e-4) and recipe.student.dropout == 0
    assert 2000 <= train.steps <= 2700 and train.uniform_over == "chains" and train.demonstrations == 4
    assert (teacher.samples, teacher.temperature, teacher.max_tokens, teacher.top_logprobs) == (40, 0.5, 256, 5)
    kept = recipe.filter
    assert (kept.duplicates, kept.max_per_question, kept.near_duplicate_threshold, kept.wrong_sums) == (
        "keep",
        None,
        None,
        None,
    )
    assert recipe.transfer.rule == "paper"


@pytest.mark.slow
@pytest.mark.parametrize("name", SIZES)
def test_the_order_of_the_recipes_has_these_shares(name: str) -> None:
    """By the real order over as many questions and chains as the authors had."""
    recipe, counts = load_recipe(RECIPES / f"{name}.yaml"), dict(chain_counts())
    assert sum(counts.values()) == CHAINS and 0 in counts.values() and max(counts.values()) == 40
    course = examples.build_data_order(recipe, list(counts.items()))
    steps = 20_000 // recipe.train.prompts_per_step
    found = [data_order.draw_groups(course, step) for step in range(1, steps + 1)]
    assert all({group.format.name for group in groups} == set(NAMES) for groups in found)
    rows = Counter(group.format.name for groups in found for group in groups for _ in range(group.targets))
    for each, share in zip(NAMES, (CHAINS, ANSWERS, CHAINS, ANSWERS), strict=True):
        assert rows[each] / rows.total() == pytest.approx(share / (2 * CHAINS + 2 * ANSWERS), abs=1e-3)
    own = [group for groups in found for group in groups if group.format.rationale]
    # A question is drawn in proportion to its chains, so the mean number of chains of those drawn is this:
    expected = sum(count**2 for count in counts.values()) / CHAINS
    assert sum(counts[group.question] for group in own) / len(own) == pytest.approx(expected, rel=0.01)
    for each in ("few-shot-rationale", "zero-shot-rationale"):
        seen = [(group.question, group.chains) for group in own if group.format.name == each]
        assert len(set(seen)) == len(seen), "no chain comes twice in an epoch"


questions = (
    st.lists(st.integers(0, 9), min_size=1, max_size=9)
    .filter(any)
    .map(lambda counts: tuple((f"q{i}", count) for i, count in enumerate(counts)))
)


@settings(max_examples=80)
@given(st.integers(0, 99), questions, st.integers(1, 5), st.integers(1, 7))
def test_over_chains_an_epoch_sees_every_chain_exactly_once(seed, counts, m, per_step):
    rationale, answer = FORMATS["few-shot-rationale"], FORMATS["few-shot-answer"]
    course = data_order.DataOrder(seed, per_step, {rationale: 3, answer: 1}, counts, m, "chains")
    prompts_of = {name: -(-count // m) for name, count in counts if count}
    epochs, length = 3, sum(prompts_of.values())
    steps = range(1, -(-2 * epochs * (3 * length + 3 * len(counts)) // per_step) + 1)
    found = [group for step in steps for group in data_order.draw_groups(course, step)]
    for epoch in range(epochs):
        own = [group for group in found if (group.format, group.epoch) == (rationale, epoch)]
        seen = Counter((group.question, chain) for group in own for chain in group.chains)
        assert seen == {(name, chain): 1 for name, count in counts for chain in range(count)}
        assert Counter(group.question for group in own) == prompts_of
        assert all(1 <= len(group.chains) <= m for group in own)
        for name, parts in prompts_of.items():  # each time it is asked it gets other demonstrations
            turns = sorted(group.turn for group in own if group.question == name)
            assert turns == list(range(epoch * parts, (epoch + 1) * parts))
        bare = [group.question for group in found if (group.format, group.epoch) == (answer, epoch)]
        assert sorted(bare) == sorted(name for name, _ in counts)


@settings(max_examples=40)
@given(st.integers(0, 99), questions, st.integers(2, 5))
def test_over_questions_a_chain_of_few_is_seen_more_often(seed, counts, m):
    """What `uniform_over` chooses between: here every question is asked once an epoch."""
    form = FORMATS["zero-shot-rationale"]
    course = data_order.DataOrder(seed, 1, {form: 1}, counts, m)
    asked = [name for name, count in counts if count]
    found = [data_order.draw_groups(course, step)[0] for step in range(1, len(asked) + 1)]
    assert sorted(group.question for group in found) == sorted(asked)
    assert all(group.turn == group.epoch == 0 for group in found)


@settings(max_examples=30)
@given(st.integers(0, 99), st.integers(1, 12), st.integers(1, 3))
def test_with_one_chain_a_question_both_are_the_same_order(seed, size, m):
    counts = tuple((f"q{i}", 1) for i in range(size))
    quotas = {FORMATS["zero-shot-rationale"]: 2, FORMATS["zero-shot-answer"]: 1}
    one, other = (data_order.DataOrder(seed, 4, quotas, counts, m, over) for over in ("questions", "chains"))
    assert [data_order.draw_groups(one, step) for step in range(1, 15)] == [
        data_order.draw_groups(other, step) for step in range(1, 15)
    ]


def test_the_golden_order_over_chains():
    """Changing this changes every run that draws over chains: raise order.VERSION with it."""
    form = FORMATS["zero-shot-rationale"]
    course = data_order.DataOrder(1, 7, {form: 1}, (("a", 5), ("b", 1), ("c", 3)), 2, "chains")
    written = [f"{g.question}{''.join(map(str, g.chains))}:{g.turn}" for g in data_order.draw_groups(course, 1)]
    assert " ".join(written) == GOLDEN


GOLDEN = "c21:0 a04:0 c0:1 a2:2 a31:1 b0:0 c0:3"


@settings(max_examples=80)
@given(st.dictionaries(st.sampled_from(list(FORMATS.values())), st.integers(1, 9), min_size=1), st.integers(1, 25))
def test_the_fewest_groups_of_a_format_in_a_step(quotas, per_step):
    course = data_order.DataOrder(1, per_step, quotas, (("a", 1),))
    cycle = sum(quotas.values())  # after so many steps everything comes again
    steps = [Counter(group.format for group in data_order.draw_groups(course, step)) for step in range(1, cycle + 1)]
    assert data_order.min_groups_per_step(course) == {format: min(step[format] for step in steps) for format in quotas}
    counted = list(data_order.count_formats(course, range(0, cycle * per_step + 1, per_step)))
    assert counted == [{format: step[format] for format in quotas} for step in steps]


def plain(student: Student, rows: list[Example], weights: dict[str, float]) -> dict[str, torch.Tensor]:
    """The gradient of the sum over formats of the weight times the mean over the format's positions."""
    student.zero_grad()
    loss = torch.zeros(())
    for name, weight in weights.items():
        own = [replace(row, weight=1.0) for row in rows if row.format == name]
        loss = loss + weight / sum(weights.values()) * student(student.batch(own)).mean()
    loss.backward()
    return gradients(student)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("weights", [{"short": 0.9, "long": 0.1}, {"short": 1.0, "long": 300.0}])
def test_the_gradient_is_that_of_the_weighted_means_however_it_is_cut(family, weights):
    student = make_student(family)
    rows = training_examples(student)
    wanted = plain(student, rows, weights)
    made = [row for group in examples.weight_formats([[row] for row in rows], weights) for row in group]
    positions = sum(len(row.target) for row in rows)
    assert sum(row.weight * len(row.target) for row in made) == pytest.approx(positions)  # a mean weight of 1
    for cuts in MICRO_BATCHES.values():
        student.zero_grad()
        sums = training.accumulate_gradient(student, [[made[i] for i in batch] for batch in cuts], step=1, seed=1)
        assert gradients_agree(gradients(student), wanted)
        for name, weight in weights.items():
            share = sums.weights[name] / sum(sums.weights.values())
            assert share == pytest.approx(weight / sum(weights.values()))


def compute(rank: int, folder: Path) -> None:
    gloo(folder, rank)
    for cuts in ("two", "seven"):
        student = make_student("t5")
        rows = examples.weight_formats([[row] for row in training_examples(student)], {"short": 0.9, "long": 0.1})
        made = [row for group in rows for row in group]
        model = training.distribute_student(student, "none")
        training.accumulate_gradient(model, [[made[i] for i in batch] for batch in MICRO_BATCHES[cuts]], step=1, seed=1)
        save_file(gradients(student), folder / f"{cuts}.{rank}")


def test_two_processes_have_the_gradient_of_the_weighted_means(tmp_path: Path) -> None:
    assert together(2, compute, tmp_path) == [0, 0]
    student = make_student("t5")
    wanted = plain(student, training_examples(student), {"short": 0.9, "long": 0.1})
    for cuts in ("two", "seven"):
        for rank in range(2):
            assert gradients_agree(load_file(tmp_path / f"{cuts}.{rank}"), wanted)


@pytest.fixture(scope="module")
def run(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    changes = (FEW, WEIGHTS, "train.prompts_per_step=8", "train.uniform_over=chains", "filter.duplicates=keep")
    more = ("train.replay={share: 0.25, sets: [more]}", "train.chains_per_prompt=2")
    return tiny.make(world, tmp_path_factory.mktemp("weighted") / "run", *changes, *more)


def test_every_step_of_a_run_gives_each_format_its_weight(run: Path) -> None:
    from potstill.run_reader import open_run

    asked = open_run(run).recipe
    assert asked.train.loss_weights is not None
    lesson = examples.read_training_data(run, asked, models.from_recipe(asked))
    for step in (1, 2, 3, 40):
        weight = Counter[str]()
        for row in lesson.examples(step):
            weight[row.format] += row.weight * len(row.target)
        shares = {name: value / weight.total() for name, value in weight.items()}
        wanted = {name: 0.75 * value / 10 for name, value in asked.train.loss_weights.items()}
        assert shares == pytest.approx(wanted | {"replay": 0.25})
    report = collect.collect_report(run, asked)
    assert any("zero-shot-rationale 60.0 %" in note for note in report.notes)


def test_a_token_budget_changes_no_weighted_step(world: Path, run: Path, tmp_path: Path) -> None:
    from potstill.run_reader import open_run

    other = tmp_path / "run"
    asked = open_run(run).recipe
    first = list(read.read_jsonl(run / "train" / "metrics.jsonl"))
    for budget in (60, 4000):
        student = models.from_recipe(asked)
        changed = asked.model_copy(update={"train": asked.train.model_copy(update={"batch_tokens": budget})})
        lesson = examples.read_training_data(run, changed, student)
        optimizer = training.optimizer_from_recipe(changed, student, changed.train.learning_rate)
        schedule = training.Schedule("constant", changed.train.learning_rate, changed.train.warmup_steps)
        done = training.train_steps(
            student,
            optimizer,
            lesson.micro_batches,
            first=1,
            last=1,
            schedule=schedule,
            max_grad_norm=asked.train.max_grad_norm,
            seed=1,
        )
        step = next(iter(done))
        assert step.loss == pytest.approx(first[0][1]["loss"], rel=1e-5)
        assert step.gradient_norm == pytest.approx(first[0][1]["gradient_norm"], rel=1e-4)
    assert not other.exists()


def test_what_a_recipe_does_not_choose_leaves_no_trace(world: Path, tmp_path: Path) -> None:
    run_dir = tiny.make(world, tmp_path / "run", until="train")
    done = manifest.read_finished(run_dir / "train")
    assert done is not None
    assert not [
        key
        for key in done.identity.recipe
        if any(name in key for name in ("loss_weights", "uniform_over", "divergence"))
    ]
    for change in ("train.uniform_over=chains", FEW.replace("2", "1"), WEIGHTS):
        with pytest.raises(UserError, match="--redo train "):
            tiny.make(world, run_dir, change, until="train")


@pytest.mark.parametrize(
    "changes, message",
    [
        (["train.loss_weights={zero-shot-rationale: 1}"], "E-recipe-loss-weights"),
        (
            ["train.formats={zero-shot-answer: 1}", "train.loss_weights={zero-shot-answer: 1, few-shot-answer: 1}"],
            "E-recipe-loss-weights",
        ),
        (
            ["train.formats={zero-shot-answer: 1}", "train.loss_weights={zero-shot-answer: 0}"],
            "greater than or equal to 0.000001",
        ),
        (["train.formats={zero-shot-answer: 1}", "train.loss_weights={zero-shot-answer: .inf}"], "finite"),
        (["train.formats={zero-shot-answer: 999999999, zero-shot-rationale: 1}"], "E-recipe-formats"),
        (["train.loss_weights={}"], "E-recipe-loss-weights"),
        (["train.uniform_over=rows"], "'questions' or 'chains'"),
    ],
)
def test_weights_that_say_nothing_are_refused(world: Path, changes: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        tiny.recipe(world, *changes)


def test_a_step_without_a_weighted_format_is_refused_before_a_teacher_is_asked(world: Path, tmp_path: Path) -> None:
    """Else the weight of a format would silently go to the others in some steps."""
    change = "train.formats={zero-shot-rationale: 7, zero-shot-answer: 1, few-shot-rationale: 7, few-shot-answer: 7}"
    recipe = tiny.recipe(world, change, WEIGHTS)
    run_dir = tmp_path / "run"
    with user_error("E-train-format-without-rows", where="train.loss_weights", hint="zero-shot-answer"):
        run_recipe(recipe, run_dir=run_dir, until="train")
    assert not (run_dir / "sample").exists(), "no teacher was asked"
    assert "problem           at train: train.loss_weights: " in dry_run.describe_run(recipe)
    assert "train.loss_weights" not in dry_run.describe_run(
        tiny.recipe(world, change)
    )  # without weights it is as good as any


def test_the_parts_of_a_recipe_by_hand(world: Path) -> None:
    """12 questions with 30 chains, 8 groups of two chains a step and 2 replayed rows, 6 steps."""
    recipe = tiny.recipe(
        world,
        "train.formats={zero-shot-rationale: 3, zero-shot-answer: 1}",
        "train.chains_per_prompt=2",
        "train.replay={share: 0.2, sets: [more]}",
        "train.prompts_per_step=8",
        "train.steps=6",
    )
    lengths = {"zero-shot-rationale": 20.0, "zero-shot-answer": 5.0}
    first, second, third = examples.compute_format_shares(recipe, lengths, 12, 30)
    assert (first.rows, second.rows, third.rows) == pytest.approx((12 / 16, 2 / 16, 2 / 16))
    assert (first.tokens, second.tokens, third.tokens) == (240 / 250, 10 / 250, None)
    assert (first.weight, second.weight, third.weight) == pytest.approx((0.8 * 240 / 250, 0.8 * 10 / 250, 0.2))
    assert (first.epochs, second.epochs, third.epochs) == (12 * 6 / 30, 2 * 6 / 12, None)
    weights = "train.loss_weights={zero-shot-rationale: 1, zero-shot-answer: 3}"
    heavy = parse_recipe(recipe_to_yaml(recipe), "r.yaml", [weights])
    assert [part.weight for part in examples.compute_format_shares(heavy, lengths, 12, 30)] == pytest.approx(
        [0.2, 0.6, 0.2]
    )
    assert examples.compute_format_shares(heavy, lengths, 12, None)[0].epochs is None
    assert examples.compute_format_shares(heavy, lengths, 12, 12)[0].rows == pytest.approx(
        6 / 10
    )  # a question has one chain to show


@given(st.floats(0, 1), st.floats(0, 1), st.integers(1, 4), st.integers(1, 3), st.integers(1, 30), st.booleans())
@settings(max_examples=60, deadline=None)
def test_texts_of_the_student_take_their_share_from_the_stored_chains(
    first: float, last: float, samples: int, quota: int, steps: int, replays: bool
) -> None:
    section = (
        f"train.on_policy={{share: {{1: {first}, 20: {max(last, 0.01)}}}, samples: {samples}, scorers:"
        f" {{a: {{sets: [sums], quota: {quota}}}, b: {{sets: [more], model: base}}}}}}"
    )
    formats = "train.formats={zero-shot-rationale: 3, zero-shot-answer: 1}"
    more = ["train.replay={share: 0.2, sets: [more]}"] if replays else []
    changes = (formats, "train.prompts_per_step=8", f"train.steps={steps}", *more)
    plain = tiny.recipe(Path("data"), *changes)
    own = tiny.recipe(Path("data"), *changes, section)
    lengths = {"zero-shot-rationale": 20.0, "zero-shot-answer": 5.0, "own/a": 15.0, "own/b": 6.0}
    before = {part.name: part for part in examples.compute_format_shares(plain, lengths, 12, 30)}
    after = {part.name: part for part in examples.compute_format_shares(own, lengths, 12, 30, {"a": 12, "b": 9})}
    counts = examples.count_own_prompts(own)
    assert own.train.on_policy is not None
    assert sum(counts.values()) == own.train.on_policy.count_own_prompts(8, steps)[-1]
    stored = 1 - sum(counts.values()) / (8 * steps)
    for name in ("zero-shot-rationale", "zero-shot-answer"):
        assert after[name].epochs == pytest.approx((before[name].epochs or 0) * stored)
    assert after["own/a"].epochs == pytest.approx(counts["a"] / 12)
    assert sum(part.rows for part in after.values()) == pytest.approx(1)
    assert sum(part.tokens or 0 for part in after.values()) == pytest.approx(1)
    assert sum(part.weight for part in after.values()) == pytest.approx(1)
    # Every position of a text weighs the same as the mean position of a stored chain.
    for name in ("own/a", "own/b"):
        assert after[name].weight == pytest.approx((after[name].tokens or 0) * (0.8 if replays else 1))


@pytest.mark.slow
def test_the_dry_run_of_a_recipe_prints_the_mix(data: Path) -> None:
    description = dry_run.describe_run(load_recipe(RECIPES / "flan-t5-xl.yaml", [f"data={data}"]))
    rows = {line.split()[0]: line.split()[1:] for line in description.splitlines() if line.strip().startswith(NAMES)}
    assert [rows[name][:4] for name in NAMES] == [
        ["48.3%", "49.9%", "79.3%", ">=0.43"],
        ["1.7%", "0.1%", "0.6%", "0.61"],
        ["48.3%", "49.9%", "19.8%", ">=0.43"],
        ["1.7%", "0.1%", "0.3%", "0.61"],
    ]
    assert prompts.FORMATS.keys() == set(NAMES)


@pytest.mark.parametrize(
    ("changes", "code", "where"),
    [
        (["train.divergence=hellinger"], "E-train-unknown-divergence", "train.divergence"),
        (["train.divergence=reverse_kl"], "E-train-divergence-needs-tail", "train.missing_probability"),
        (["on_policy={sets: [more], divergence: hellinger}"], "E-train-unknown-divergence", "on_policy.divergence"),
    ],
)
def test_a_divergence_that_cannot_be_computed_stops_before_a_teacher_is_asked(
    world: Path, tmp_path: Path, changes: list[str], code: str, where: str
) -> None:
    with user_error(code, where=where):
        run_recipe(tiny.recipe(world, *changes), run_dir=tmp_path / "run")
    assert not (tmp_path / "run" / "sample").exists()


def test_the_default_divergence_leaves_no_trace_in_the_identity_of_training(world: Path) -> None:
    from potstill.stages import open_stage

    train = open_stage("train")
    assert {"train.divergence", "train.divergence_beta"} <= set(train.free(tiny.recipe(world)))
    jsd = tiny.recipe(world, "train.divergence=generalized_jsd", "train.missing_probability=tail")
    assert not {"train.divergence", "train.divergence_beta"} & set(train.free(jsd))
    reverse = tiny.recipe(world, "train.divergence=reverse_kl", "train.missing_probability=tail")
    free = train.free(reverse)
    assert "train.divergence" not in free and "train.divergence_beta" in free, "it has no beta"


@pytest.mark.parametrize(
    ("divergence", "has_beta"), [("forward_kl", False), ("reverse_kl", False), ("generalized_jsd", True)]
)
def test_beta_counts_in_the_identity_of_repair_where_the_divergence_has_one(
    world: Path, divergence: str, has_beta: bool
) -> None:
    from potstill.stages import open_stage

    recipe = tiny.recipe(world, f"on_policy={{sets: [more], divergence: {divergence}}}")
    free = open_stage("repair").free(recipe)
    assert ("train.divergence_beta" not in free) == has_beta and "on_policy.divergence_beta" in free
    own = tiny.recipe(world, f"on_policy={{sets: [more], divergence: {divergence}, divergence_beta: 0.2}}")
    free = open_stage("repair").free(own)
    assert ("on_policy.divergence_beta" not in free) == has_beta and "train.divergence_beta" in free
    assert (on_policy_divergence(recipe, "on_policy").beta, on_policy_divergence(own, "on_policy").beta) == (0.5, 0.2)
    assert loss_from_recipe(own).beta == 0.5
