"""The loss on texts that the student wrote, against plain formulas over the whole vocabulary."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from loss_inputs import SMOOTH, random_inputs
from potstill.inference.transformers import hard_example
from potstill.losses import ON_POLICY_MEASURES, Loss, OnPolicyLoss, WrittenPositions
from potstill.losses.sparse import MIN_TAIL
from potstill.models import Example, Student, WrittenText
from potstill.training.loop import accumulate_gradient
from potstill.training.scorers import teacher_forced_scores, without_scores
from training_steps import gradients, gradients_agree, make_student

DOUBLE = torch.float64


def plain_divergence(name: str, log_q: Tensor, ids: Tensor, probs: Tensor, beta: float) -> Tensor:
    """The divergence between the distributions (candidates, rest), row by row, by its definition."""
    rows = []
    for row, candidates, values in zip(log_q, ids, probs, strict=True):
        used = values > 0
        rest = torch.ones(len(row), dtype=torch.bool)
        rest[candidates[used]] = False
        q = torch.cat([row[candidates[used]].exp(), row[rest].exp().sum()[None]])
        p = torch.cat([values[used], (1 - values.sum()).clamp_min(MIN_TAIL)[None]])
        if name == "forward_kl":
            p[-1] = 1 - values.sum()
            rows.append((torch.xlogy(p, p) - p * q.log()).sum())
        elif name == "reverse_kl":
            rows.append((q * (q / p).log()).sum())
        else:
            m = beta * p + (1 - beta) * q
            rows.append(beta * (p * (p / m).log()).sum() + (1 - beta) * (q * (q / m).log()).sum())
    return torch.stack(rows)


def written(seed: int, n: int, log_q: Tensor, ids: Tensor) -> WrittenPositions:
    """Positions whose token is the first candidate, with ratios around 1, advantages of both signs and a dropped row."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.rand(n, generator=generator, dtype=DOUBLE)
    weights[0] = 0.0
    tokens = ids[:, 0]
    offsets = torch.randn(n, generator=generator, dtype=DOUBLE) * 0.5
    before = log_q.gather(1, tokens[:, None]).squeeze(1).detach() + offsets
    return WrittenPositions(tokens, weights, torch.randn(n, generator=generator, dtype=DOUBLE), before)


@pytest.mark.parametrize("cap", [None, 1.3])
@pytest.mark.parametrize("divergence", SMOOTH)
@pytest.mark.parametrize("seed", range(4))
def test_value_and_gradient_are_those_of_the_formula(divergence: str, seed: int, cap: float | None) -> None:
    hidden, head, ids, probs = random_inputs(seed, dtype=DOUBLE)
    head.requires_grad_()
    n, weights = len(hidden), torch.rand(len(hidden), generator=torch.Generator().manual_seed(9), dtype=DOUBLE)
    log_q = (hidden @ head.T).log_softmax(1)
    texts, clip = written(seed, n, log_q, ids), 0.2
    loss = OnPolicyLoss(Loss(divergence, "tail", 0.3), divergence_weight=0.7, clip=clip, ratio_cap=cap)
    total, values = loss.weighted_sum(hidden, head, ids, probs, weights, written=texts)

    assert texts.written is not None
    ratio = (log_q.gather(1, texts.tokens[:, None]).squeeze(1) - texts.written).exp()
    importance = torch.ones(n, dtype=DOUBLE) if cap is None else ratio.detach().clamp(max=cap)
    pulls = 0.7 * texts.weights * importance * plain_divergence(divergence, log_q, ids, probs, 0.3)
    gains = torch.minimum(ratio * texts.advantages, ratio.clamp(1 - clip, 1 + clip) * texts.advantages)
    plain = (weights * (pulls - gains)).sum()
    [wanted] = torch.autograd.grad(plain, head, retain_graph=True)
    [found] = torch.autograd.grad(total, head)
    assert total.item() == pytest.approx(plain.item(), rel=1e-6)
    assert torch.allclose(found, wanted, rtol=1e-5, atol=1e-9)
    by_name = dict(zip(("divergence", *ON_POLICY_MEASURES), values.T, strict=True))
    assert not values.requires_grad and torch.allclose(by_name["ratio"], ratio)
    assert torch.allclose(by_name["divergence"], plain_divergence(divergence, log_q, ids, probs, 0.3), rtol=1e-6)
    assert by_name["capped"].tolist() == ([0.0] * n if cap is None else (ratio > cap).double().tolist())
    assert torch.allclose(by_name["kl"], ratio - 1 - ratio.log()) and bool((by_name["kl"] >= 0).all())
    outside = [(r > 1.2 and a > 0) or (r < 0.8 and a < 0) for r, a in zip(ratio, texts.advantages, strict=True)]
    assert by_name["clipped"].tolist() == outside


def test_with_the_current_weights_the_advantage_has_the_policy_gradient() -> None:
    """The gradient of -A log q, as in REINFORCE; the value of the surrogate is -A."""
    hidden, head, ids, probs = random_inputs(1, dtype=DOUBLE)
    head.requires_grad_()
    texts = WrittenPositions(ids[:, 0], torch.ones(len(ids)), torch.linspace(-1, 2, len(ids), dtype=DOUBLE))
    loss = OnPolicyLoss(Loss("reverse_kl", "tail"), divergence_weight=0.0)
    total, values = loss.weighted_sum(hidden, head, ids, probs, torch.ones(len(ids), dtype=DOUBLE), written=texts)
    log_q = (hidden @ head.T).log_softmax(1).gather(1, ids[:, :1]).squeeze(1)
    [wanted] = torch.autograd.grad(-(texts.advantages * log_q).sum(), head)
    [found] = torch.autograd.grad(total, head)
    assert torch.allclose(found, wanted) and total.item() == pytest.approx(-texts.advantages.sum().item())
    assert torch.allclose(values[:, 1], -log_q) and values[:, 2].tolist() == [1.0] * len(ids)


def test_a_position_without_scores_has_only_its_advantage() -> None:
    hidden, head, ids, probs = random_inputs(2, dtype=DOUBLE)
    head.requires_grad_()
    texts = WrittenPositions(ids[:, 0], torch.ones(len(ids)), torch.zeros(len(ids)))
    for name in ("reverse_kl", "generalized_jsd"):
        loss = OnPolicyLoss(Loss(name, "tail"))
        total, values = loss.weighted_sum(hidden, head, ids, 0 * probs, torch.ones(len(ids)), written=texts)
        assert float(total) == pytest.approx(0.0, abs=1e-12), name
        assert torch.autograd.grad(total, head)[0].abs().max() < 1e-12
        assert torch.isfinite(values).all()


def test_a_ratio_beyond_all_bounds_stays_finite() -> None:
    hidden, head, ids, probs = random_inputs(3)
    texts = WrittenPositions(ids[:, 0], torch.ones(7), -torch.ones(7), torch.full((7,), -1e6))
    loss = OnPolicyLoss(Loss("reverse_kl", "tail"), ratio_cap=2.0)
    total, values = loss.weighted_sum(hidden, head, ids, probs, torch.ones(7), written=texts)
    assert torch.isfinite(total) and torch.isfinite(values).all() and values[:, 3].tolist() == [1.0] * 7


def own_rows(family: str, advantage: float) -> tuple[Student, list[Example]]:
    student = make_student(family)
    rows = [
        hard_example((7, 8, 9), (5, 11, 6), student.tokenizer.eos, "a", "own"),
        hard_example((7, 8), (6,), None, "b", "own"),
    ]
    rows = teacher_forced_scores(student, rows, student.tokenizer.size)
    return student, [replace(row, written=WrittenText(1.0, advantage)) for row in rows]


@pytest.mark.parametrize("divergence", SMOOTH)
@pytest.mark.parametrize("family", ["t5", "causal"])
def test_a_student_that_is_its_own_scorer_has_no_loss_and_no_gradient(family: str, divergence: str) -> None:
    student, rows = own_rows(family, 0.0)
    sums = accumulate_gradient(student, [rows], step=1, seed=1, on_policy_loss=OnPolicyLoss(Loss(divergence, "tail")))
    assert abs(sums.losses["own"]) < 1e-5 and sums.written is not None and sums.written["ratio"] == 1
    assert max(float(value.abs().max()) for value in gradients(student).values()) < 1e-5


@pytest.mark.parametrize("family", ["t5", "causal"])
def test_the_gradient_does_not_depend_on_the_micro_batches(family: str) -> None:
    """Stored rows and own rows in one step, in any split; own and stored rows never share a micro-batch."""
    found = []
    for split in ([[0, 1]], [[0], [1]], [[1], [0]]):
        student, rows = own_rows(family, 0.7)
        stored = replace(rows[0], written=None, format="stored", target=without_scores(rows[0].target))
        stored = replace(stored, target=hard_example((7,), (5, 6), student.tokenizer.eos).target)
        batches = [[rows[index] for index in batch] for batch in split]
        batches.insert(len(batches) // 2, [stored])
        loss = OnPolicyLoss(Loss("reverse_kl", "tail"))
        sums = accumulate_gradient(student, batches, step=1, seed=1, on_policy_loss=loss)
        found.append((gradients(student), sums.losses, sums.written))
    for gradient, losses, measures in found[1:]:
        assert gradients_agree(gradient, found[0][0])
        assert losses == pytest.approx(found[0][1], abs=1e-6) and measures == pytest.approx(found[0][2])
    student, rows = own_rows(family, 0.7)
    with pytest.raises(AssertionError, match="only texts of the student"):
        student.batch([rows[0], replace(rows[1], written=None)])
