"""Training: the gradient does not depend on micro-batches, resuming is exact, and a student learns."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from expect import user_error
from potstill import training
from potstill.errors import UserError
from potstill.training import Schedule
from training_steps import (
    FAMILIES,
    MICRO_BATCHES,
    TOKENIZER,
    gradients,
    gradients_agree,
    make_student,
    micro_batches,
    optimizer_after_a_step,
    train,
    train_and_save,
    training_examples,
)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_gradient_does_not_depend_on_accumulation_and_cuts(family):
    """A peer's gradient norm halves when accumulation doubles."""
    student = make_student(family)
    made = training_examples(student)
    batch = student.batch(made)
    (batch.weights * student(batch)).sum().div(batch.weights.sum()).backward()
    plain = gradients(student)
    for name in MICRO_BATCHES:
        student.zero_grad()
        sums = training.accumulate_gradient(student, micro_batches(student, name), step=1, seed=1)
        assert gradients_agree(gradients(student), plain), name
        assert sums.positions == len(batch.positions)
        assert sum(sums.weights.values()) == pytest.approx(float(batch.weights.sum()))


def test_the_loss_of_each_format_is_told():
    student = make_student("t5")
    sums = training.accumulate_gradient(student, micro_batches(student, "four"), step=1, seed=1)
    for format in ("short", "long"):
        batch = student.batch([example for example in training_examples(student) if example.format == format])
        assert sums.losses[format] == pytest.approx((batch.weights * student(batch)).sum().item(), rel=1e-5)
        assert sums.weights[format] == pytest.approx(float(batch.weights.sum()))


def test_what_a_step_taught_is_told_by_kind_and_format():
    student = make_student("t5")
    made = training_examples(student)
    sums = training.accumulate_gradient(student, micro_batches(student, "four"), step=1, seed=1)
    batch = student.batch(made)
    values = batch.weights * student(batch).detach()
    kinds = [kind for example in made for kind in example.target.kinds]
    assert set(sums.kinds) == set(kinds) == {"hard", "mixed", "end"}
    for kind in sums.kinds:
        own = torch.tensor([kind == other for other in kinds])
        assert sums.kinds[kind] == pytest.approx((values[own].sum() / batch.weights[own].sum()).item(), rel=1e-5)
    mass = (batch.probabilities.sum(1) * batch.weights).sum() / batch.weights.sum()
    assert sums.kept == pytest.approx(mass.item()) and sums.kept < 1
    lengths = {form: sum(len(e.target) for e in made if e.format == form) for form in ("short", "long")}
    assert sums.taught == lengths


def test_dropout_is_a_function_of_seed_step_and_micro_batch():
    student = make_student("t5", dropout=0.3)
    batches = micro_batches(student, "two")

    def drawn(step: int, seed: int) -> dict[str, torch.Tensor]:
        student.zero_grad()
        torch.rand(1)  # what others draw does not matter
        training.accumulate_gradient(student, batches, step=step, seed=seed)
        return gradients(student)

    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = drawn(1, 1)
    assert all(torch.equal(first[name], value) for name, value in drawn(1, 1).items())
    assert not gradients_agree(first, drawn(2, 1), 1e-2) and not gradients_agree(first, drawn(1, 2), 1e-2)
    torch.set_rng_state(state)
    expected = torch.rand(2)[1]
    torch.set_rng_state(state)
    drawn(1, 1)
    assert torch.rand(1) == expected


def test_autocast_to_bfloat16_is_near_and_keeps_float32_weights():
    student = make_student("t5")
    training.accumulate_gradient(student, micro_batches(student, "two"), step=1, seed=1)
    exact = gradients(student)
    student.zero_grad()
    training.accumulate_gradient(student, micro_batches(student, "two"), step=1, seed=1, precision="bfloat16")
    low = gradients(student)
    assert {value.dtype for value in low.values()} == {torch.float32}
    assert gradients_agree(low, exact, 0.1) and not gradients_agree(low, exact, 1e-6)


@pytest.mark.parametrize(("family", "rule"), [("t5", "adamw"), ("causal", "adamw"), ("t5", "adafactor")])
def test_a_tiny_student_learns_its_examples(family, rule):
    student = make_student(family)
    options = {"schedule": Schedule("constant", 0.3, 2), "max_grad_norm": None} if rule == "adafactor" else {}
    metrics = train(student, 1, 40, training.build_optimizer(student, rule=rule), **options)
    assert metrics[0].loss > 2.0 and metrics[-1].loss < (metrics[0].loss / 5 if rule == "adafactor" else 0.3)
    assert [step.step for step in metrics] == list(range(1, 41))
    assert not student.training
    last = metrics[-1]
    assert set(last.losses) == {"short", "long"} and 0 <= last.padding < 0.5 and last.tokens > last.positions


def test_the_learning_rate_reaches_the_parameters_by_their_factors():
    student = make_student("t5")
    optimizer = training.build_optimizer(
        student, weight_decay=0.1, lr_multipliers={"relative_attention_bias": 10.0, "shared": 3.0}
    )
    train(student, 1, 1, optimizer, schedule=lambda step: 1e-3)
    found = {
        name: (group["lr"], group["weight_decay"]) for group in optimizer.param_groups for name in group["param_names"]
    }
    assert found["model.shared.weight"] == (pytest.approx(3e-3), 0.1)
    bias = "model.encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    assert found[bias] == (pytest.approx(1e-2), 0.1)
    assert found["model.encoder.final_layer_norm.weight"] == (1e-3, 0.0)
    assert len(found) == len(list(student.parameters()))
    with user_error("E-train-no-such-parameter"):
        training.build_optimizer(student, lr_multipliers={"nowhere": 2.0})


def test_the_norm_is_reported_before_clipping():
    free, clipped = make_student("t5"), make_student("t5")
    first = train(free, 1, 1, torch.optim.SGD(free.parameters(), 1.0), schedule=lambda _: 1.0, max_grad_norm=None)[0]
    second = train(
        clipped, 1, 1, torch.optim.SGD(clipped.parameters(), 1.0), schedule=lambda _: 1.0, max_grad_norm=0.01
    )[0]
    assert first.gradient_norm == second.gradient_norm > 0.01
    start = dict(make_student("t5").named_parameters())
    moved = [
        math.sqrt(sum((value - start[name]).square().sum().item() for name, value in student.named_parameters()))
        for student in (free, clipped)
    ]
    assert moved == [pytest.approx(first.gradient_norm, rel=1e-3), pytest.approx(0.01, rel=1e-3)]


def test_a_loss_that_is_not_a_number_stops_before_the_weights():
    student = make_student("t5")
    optimizer = training.build_optimizer(student)
    train(student, 1, 2, optimizer)
    with torch.no_grad():  # only what a long target reads becomes NaN
        student.model.shared.weight[TOKENIZER.encode("Q: 4 + 3").ids[-1]] = math.nan
        before = {name: value.clone() for name, value in student.named_parameters()}
    with pytest.raises(UserError) as error:
        train(student, 3, 3, optimizer)
    assert error.value.code == "E-train-not-finite" and error.value.where == "training step 3"
    assert "questions q" in error.value.found
    assert all(torch.equal(v.nan_to_num(), before[n].nan_to_num()) for n, v in student.named_parameters())


def test_a_gradient_that_is_not_a_number_stops_as_well():
    student = make_student("t5")
    student.model.lm_head.weight.register_hook(lambda grad: grad * math.inf)
    with user_error("E-train-not-finite", where="training step 1"):
        train(student, 1, 1, training.build_optimizer(student))


def test_adafactor_goes_on_where_it_was():
    whole, first = make_student("t5"), make_student("t5")
    train(whole, 1, 4, training.build_optimizer(whole, rule="adafactor"))
    adam = training.build_optimizer(first, rule="adafactor")
    train(first, 1, 2, adam)
    content = training.optimizer_state_bytes(adam)
    assert len(content) < 0.7 * len(training.optimizer_state_bytes(optimizer_after_a_step(make_student("t5"))))
    again = training.build_optimizer(first, rule="adafactor")
    training.restore_optimizer_bytes(again, content)
    train(first, 3, 4, again)
    for name, value in first.named_parameters():
        assert torch.equal(value, whole.get_parameter(name)), name
    with user_error("E-train-optimizer-state-of-another-model"):
        training.restore_optimizer_bytes(training.build_optimizer(make_student("causal"), rule="adafactor"), content)


RESUME = """
import sys
import torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from training_steps import train_and_save
train_and_save(Path(sys.argv[2]), 4, 6)
"""


def start(script: str, *arguments: object) -> subprocess.Popen[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", script, str(Path(__file__).parent), *map(str, arguments)]
    return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def finish(*processes: subprocess.Popen[str]) -> None:
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert all(process.returncode == 0 for process in processes), "\n".join(outputs)


def test_resume_in_a_fresh_process_is_exact_to_the_bit(tmp_path):
    torch.set_num_threads(1)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    parts.mkdir()
    train_and_save(whole, 1, 6)
    train_and_save(parts, 1, 3)
    assert (whole / "model.safetensors").read_bytes() != (parts / "model.safetensors").read_bytes()
    finish(start(RESUME, parts))
    for name in ("model.safetensors", "engine.safetensors", "config.json"):
        assert (whole / name).read_bytes() == (parts / name).read_bytes(), name


def test_the_state_of_another_model_is_refused():
    student, other = make_student("t5"), make_student("causal")
    adam, another = training.build_optimizer(student), training.build_optimizer(other)
    assert training.optimizer_state(adam) == {}
    training.restore_optimizer(adam, {})  # before the first step there is nothing
    train(student, 1, 1, adam)
    with user_error("E-train-optimizer-state-of-another-model"):
        training.restore_optimizer(another, training.optimizer_state(adam))
    state = training.optimizer_state(adam)
    name = next(name for name, value in state.items() if value.ndim == 2)
    with user_error("E-train-optimizer-state-of-another-model"):
        training.restore_optimizer(adam, state | {name: state[name][:1]})
    with user_error("E-train-optimizer-state-damaged"):
        training.restore_optimizer_bytes(adam, training.optimizer_state_bytes(adam)[:-7])


@pytest.mark.parametrize(
    ("schedule", "values"),
    [
        (Schedule("constant", 1.0), [1, 1, 1, 1, 1]),
        (Schedule("constant", 1.0, warmup=4), [0.25, 0.5, 0.75, 1, 1]),
        (Schedule("linear", 1.0, warmup=2, last=5), [0.5, 1, 0.75, 0.5, 0.25]),
        (Schedule("linear", 1.0, warmup=1, last=5, stable=2), [1, 1, 1, 2 / 3, 1 / 3]),
        (Schedule("cosine", 2.0, warmup=1, last=4), [2, 1 + 2**-0.5, 1, 1 - 2**-0.5]),
    ],
)
def test_schedules_are_functions_of_the_optimizer_step(schedule, values):
    assert [schedule(step) for step in range(1, len(values) + 1)] == pytest.approx(values)


def test_a_schedule_that_ends_is_not_asked_beyond_its_end():
    with pytest.raises(AssertionError, match="step 6 of a schedule of 5"):
        Schedule("linear", 1.0, last=5)(6)
