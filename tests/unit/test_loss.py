"""The sparse loss against the dense formula, its gradients, and its edges."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from expect import user_error
from loss_inputs import SMOOTH, random_inputs
from potstill.errors import UserError
from potstill.losses import (
    DIVERGENCES,
    MISSING_PROBABILITY_MODES,
    Loss,
    candidate_log_probabilities,
    forward_kl,
    generalized_jsd,
    reverse_kl,
    sparse_kl,
    uses_beta,
    weighted_sparse_kl,
)


def dense(hidden, head, ids, probabilities, *, missing_probability, bias=None, scale=1.0, softcap=None) -> Tensor:
    """The definition, row by row over the whole vocabulary, with autograd's own gradient."""
    logits = hidden.double() @ head.double().T * scale
    logits = logits if bias is None else logits + bias.double()
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    losses = []
    for row, row_ids, row_p in zip(logits.log_softmax(1), ids, probabilities.double(), strict=True):
        pairs = [(int(i), p) for i, p in zip(row_ids, row_p, strict=True) if p > 0]
        kept = sum((p for _, p in pairs), torch.zeros((), dtype=torch.float64))
        if missing_probability == "renormalised":
            pairs = [(i, p / kept) for i, p in pairs]
        value = sum((p * (p.log() - row[i]) for i, p in pairs), row.sum() * 0)
        if missing_probability == "tail" and 1 - kept > 1e-6:
            others = [i for i in range(len(row)) if i not in {i for i, _ in pairs}]
            value = value + (1 - kept) * ((1 - kept).log() - row[others].logsumexp(0))
        losses.append(value)
    return torch.stack(losses)


@pytest.mark.parametrize("mode", MISSING_PROBABILITY_MODES)
@pytest.mark.parametrize("chunk", [1, 3, 64, None])
@pytest.mark.parametrize(("scale", "cap", "biased"), [(1.0, None, False), (0.3, None, True), (1.0, 2.0, True)])
def test_equals_the_dense_formula_and_its_gradients(mode, chunk, scale, cap, biased):
    hidden, head, ids, p = random_inputs(1)
    bias = torch.randn(13, generator=torch.Generator().manual_seed(2)) if biased else None
    leaves = [x.clone().requires_grad_() for x in (hidden, head) + ((bias,) if bias is not None else ())]
    twins = [x.clone().requires_grad_() for x in (hidden, head) + ((bias,) if bias is not None else ())]
    weights = torch.linspace(0.0, 2.0, len(ids))
    options = {"missing_probability": mode, "scale": scale, "softcap": cap}
    ours = sparse_kl(leaves[0], leaves[1], ids, p, bias=leaves[2] if biased else None, chunk_rows=chunk, **options)
    theirs = dense(twins[0], twins[1], ids, p, bias=twins[2] if biased else None, **options)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-5)
    (ours * weights).sum().backward()
    (theirs * weights).sum().backward()
    for leaf, twin in zip(leaves, twins, strict=True):
        torch.testing.assert_close(leaf.grad, twin.grad, rtol=1e-5, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10_000),
    st.sampled_from(MISSING_PROBABILITY_MODES),
    st.integers(1, 6),
    st.integers(7, 20),
    st.integers(1, 9),
)
def test_any_problem_equals_the_dense_formula(seed, mode, k, v, chunk):
    hidden, head, ids, p = random_inputs(seed, n=4, d=3, v=v, k=k)
    ours = sparse_kl(hidden, head, ids, p, missing_probability=mode, chunk_rows=chunk)
    torch.testing.assert_close(
        ours.double(), dense(hidden, head, ids, p, missing_probability=mode), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("mode", MISSING_PROBABILITY_MODES)
@pytest.mark.parametrize("cap", [None, 3.0])
def test_gradcheck(mode, cap):
    hidden, head, ids, p = random_inputs(3, n=3, d=3, v=7, k=3, dtype=torch.float64)
    bias = torch.zeros(7, dtype=torch.float64).requires_grad_()

    def function(hidden, head, bias):
        return sparse_kl(
            hidden, head, ids, p, missing_probability=mode, bias=bias, scale=0.7, softcap=cap, chunk_rows=2
        )

    assert torch.autograd.gradcheck(function, (hidden.requires_grad_(), head.requires_grad_(), bias))


@pytest.mark.parametrize("mode", MISSING_PROBABILITY_MODES)
def test_a_hard_label_is_cross_entropy(mode):
    hidden, head, ids, _ = random_inputs(4, k=3)
    p = torch.tensor([[1.0, 0.0, 0.0]]).expand(len(ids), -1)  # two padded slots
    expected = F.cross_entropy(hidden @ head.T, ids[:, 0], reduction="none")
    torch.testing.assert_close(sparse_kl(hidden, head, ids, p, missing_probability=mode), expected)


def test_the_raw_gradient_in_the_logits_is_M_q_minus_p():
    _, _, ids, p = random_inputs(5)
    logits = torch.randn(7, 13, generator=torch.Generator().manual_seed(6)).requires_grad_()
    sparse_kl(logits, torch.eye(13), ids, p).sum().backward()  # with the identity as head, hidden states are logits
    expected = p.sum(1, keepdim=True) * logits.softmax(1).detach()
    torch.testing.assert_close(logits.grad, expected.scatter_add(1, ids, -p))


@pytest.mark.parametrize("mode", MISSING_PROBABILITY_MODES)
def test_nothing_to_learn_at_the_teachers_own_distribution(mode):
    logits = torch.randn(6, 9, generator=torch.Generator().manual_seed(7)).requires_grad_()
    p = logits.detach().softmax(1)
    ids = torch.arange(9).expand(6, -1)
    if mode == "tail":  # of which it may show a part only
        ids, p = ids[:, :4], p[:, :4]
    losses = sparse_kl(logits, torch.eye(9), ids, p, missing_probability=mode)
    losses.sum().backward()
    assert losses.abs().max() < 1e-6
    assert logits.grad is not None and logits.grad.abs().max() < 1e-6


def test_a_student_certain_of_the_candidates_has_a_finite_tail():
    logits = torch.zeros(1, 5)
    logits[0, 2] = 200.0  # 1 - Q is far below the smallest float32
    logits.requires_grad_()
    losses = sparse_kl(logits, torch.eye(5), torch.tensor([[2]]), torch.tensor([[0.9]]), missing_probability="tail")
    losses.sum().backward()
    assert losses.item() == pytest.approx(0.9 * math.log(0.9) + 0.1 * (math.log(0.1) + 200 - math.log(4)))
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, torch.tensor([[-0.025, -0.025, 0.1, -0.025, -0.025]]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", ["raw", "tail"])
def test_a_position_that_shows_nothing_costs_nothing(mode):
    hidden, head, ids, p = random_inputs(8)
    p[2] = 0.0
    hidden.requires_grad_()
    losses = sparse_kl(hidden, head, ids, p, missing_probability=mode)
    losses.sum().backward()
    assert losses[2] == 0
    assert hidden.grad is not None and hidden.grad[2].abs().max() == 0
    assert torch.isfinite(hidden.grad).all()


def test_a_position_that_shows_nothing_cannot_be_renormalised():
    hidden, head, ids, p = random_inputs(8)
    p[2] = 0.0
    with user_error("E-train-nothing-to-renormalise"):
        sparse_kl(hidden, head, ids, p, missing_probability="renormalised")


def test_low_precision_inputs_are_accumulated_in_float32():
    hidden, head, ids, p = random_inputs(9, d=64)
    low, low_head = hidden.bfloat16().requires_grad_(), head.bfloat16().requires_grad_()
    exact = sparse_kl(low.detach().float(), low_head.detach().float(), ids, p)
    with torch.autocast("cpu", torch.bfloat16):
        losses = sparse_kl(low, low_head, ids, p)
    assert losses.dtype == torch.float32
    assert torch.equal(losses, exact)
    losses.sum().backward()
    assert low.grad is not None and low_head.grad is not None
    assert low.grad.dtype == torch.bfloat16 and low_head.grad.dtype == torch.bfloat16


def test_no_positions():
    hidden = torch.zeros(0, 5, requires_grad=True)
    losses = sparse_kl(hidden, torch.randn(13, 5), torch.zeros(0, 1, dtype=torch.long), torch.zeros(0, 1))
    losses.sum().backward()
    assert losses.shape == (0,)


def test_what_does_not_fit_is_refused():
    hidden, head, ids, p = random_inputs(10)
    with pytest.raises(AssertionError, match="candidate ids 0 to 13 for a head of 13 rows"):
        ids[0, 0], ids[1, 0] = 13, 0
        sparse_kl(hidden, head, ids, p)
    with pytest.raises(AssertionError, match="do not fit a head"):
        sparse_kl(hidden[:, :3], head, ids, p)
    with pytest.raises(AssertionError, match="missing_probability is one of raw, renormalised, tail"):
        sparse_kl(hidden, head, ids, p, missing_probability="Raw")  # type: ignore[arg-type]


HEADS = [(1.0, None, False), (0.3, None, True), (1.0, 2.0, True)]


@pytest.mark.parametrize("mode", MISSING_PROBABILITY_MODES)
@pytest.mark.parametrize("chunk", [1, 3, 64, 4096])
@pytest.mark.parametrize("scale, cap, biased", HEADS)
def test_the_weighted_sum_has_the_gradient_of_the_dense_formula(mode, chunk, scale, cap, biased):
    hidden, head, ids, p = random_inputs(11)
    leaves = [hidden.requires_grad_(), head.requires_grad_(), torch.randn(len(head)).requires_grad_()]
    twins = [leaf.detach().double().requires_grad_() for leaf in leaves]
    weights = torch.linspace(0.0, 2.0, len(ids))
    options = {"missing_probability": mode, "scale": scale, "softcap": cap}
    total, values = weighted_sparse_kl(
        hidden, head, ids, p, weights, bias=leaves[2] if biased else None, chunk_rows=chunk, **options
    )
    theirs = dense(twins[0], twins[1], ids, p, bias=twins[2] if biased else None, **options)
    torch.testing.assert_close(values.double(), theirs, rtol=1e-5, atol=1e-5)
    assert not values.requires_grad
    (3 * total).backward()
    (3 * weights * theirs).sum().backward()
    for leaf, twin in list(zip(leaves, twins, strict=True))[: 2 + biased]:
        assert leaf.grad is not None and twin.grad is not None
        torch.testing.assert_close(leaf.grad.double(), twin.grad, rtol=1e-5, atol=1e-5)


def test_the_gradient_of_a_weighted_sum_is_given_once():
    hidden, head, ids, p = random_inputs(11)
    total, _ = weighted_sparse_kl(hidden.requires_grad_(), head, ids, p, torch.ones(len(ids)))
    total.backward(retain_graph=True)
    with pytest.raises(AssertionError, match="can run once"):
        total.backward()


def plain_log_q(hidden, head, ids, p, bias, scale, cap) -> Tensor:
    """Candidates and the rest by the whole softmax, in float64."""
    logits = scale * hidden @ head.T
    logits = logits if bias is None else logits + bias
    log_q = (logits if cap is None else cap * torch.tanh(logits / cap)).log_softmax(1)
    seen = torch.zeros_like(log_q, dtype=torch.bool).scatter(1, ids, p > 0)
    rest = log_q.masked_fill(seen, -torch.inf).logsumexp(1, keepdim=True)
    return torch.cat([log_q.gather(1, ids), rest], 1)


@pytest.mark.parametrize("scale, cap, biased", HEADS)
@pytest.mark.parametrize("chunk", [2, 4096])
def test_candidate_log_probabilities_are_those_of_the_whole_softmax(chunk, scale, cap, biased):
    hidden, head, ids, p = random_inputs(12)
    leaves = [hidden.requires_grad_(), head.requires_grad_(), torch.randn(len(head)).requires_grad_()]
    twins = [leaf.detach().double().requires_grad_() for leaf in leaves]
    ours = candidate_log_probabilities(
        hidden,
        head,
        ids,
        with_rest=True,
        is_candidate=p > 0,
        bias=leaves[2] if biased else None,
        scale=scale,
        softcap=cap,
        chunk_rows=chunk,
    )
    theirs = plain_log_q(twins[0], twins[1], ids, p, twins[2] if biased else None, scale, cap)
    torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-5)
    slopes = torch.randn(theirs.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (ours * slopes).sum().backward()
    (theirs * slopes).sum().backward()
    for leaf, twin in list(zip(leaves, twins, strict=True))[: 2 + biased]:
        assert leaf.grad is not None and twin.grad is not None
        torch.testing.assert_close(leaf.grad.double(), twin.grad, rtol=1e-5, atol=1e-5)


def test_candidate_log_probabilities_gradcheck():
    hidden, head, ids, _ = random_inputs(3, n=3, d=3, v=7, k=3, dtype=torch.float64)

    def function(hidden, head):
        return candidate_log_probabilities(hidden, head, ids, with_rest=True, scale=0.7, softcap=2.0, chunk_rows=2)

    assert torch.autograd.gradcheck(function, (hidden.requires_grad_(), head.requires_grad_()))


@pytest.mark.parametrize("mode", MISSING_PROBABILITY_MODES)
def test_the_forward_divergence_on_log_probabilities_is_the_fused_one(mode):
    hidden, head, ids, p = random_inputs(13)
    found = []
    for of in (
        lambda h, w: sparse_kl(h, w, ids, p, missing_probability=mode),
        lambda h, w: forward_kl(
            candidate_log_probabilities(h, w, ids, with_rest=mode == "tail", is_candidate=p > 0), p, mode
        ),
    ):
        leaves = [hidden.clone().requires_grad_(), head.clone().requires_grad_()]
        values = of(*leaves)
        values.sum().backward()
        found.append((values.detach(), *(leaf.grad for leaf in leaves)))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_the_reverse_divergence_is_that_of_the_whole_distributions():
    """With every token a candidate it is the textbook's; with the rest as one outcome, that of the coarser pair."""
    draw = torch.Generator().manual_seed(14)
    logits = torch.randn(5, 6, generator=draw, dtype=torch.float64)
    p = torch.randn(5, 6, generator=draw, dtype=torch.float64).softmax(1)
    ids, head = torch.arange(6).expand(5, -1), torch.eye(6, dtype=torch.float64)
    log_q = candidate_log_probabilities(logits, head, ids)
    textbook = (log_q.exp() * (log_q - p.log())).sum(1)
    torch.testing.assert_close(reverse_kl(log_q, p, "renormalised"), textbook)
    part = candidate_log_probabilities(logits, head, ids[:, :3], with_rest=True)
    q, own = part.exp(), torch.cat([p[:, :3], 1 - p[:, :3].sum(1, keepdim=True)], 1)
    torch.testing.assert_close(reverse_kl(part, p[:, :3], "tail"), (q * (q / own).log()).sum(1))
    padded = torch.cat([p[:, :3], torch.zeros(5, 1, dtype=torch.float64)], 1)
    wider = torch.cat([part[:, :3], torch.zeros(5, 1, dtype=torch.float64), part[:, 3:]], 1)
    torch.testing.assert_close(reverse_kl(wider, padded, "tail"), reverse_kl(part, p[:, :3], "tail"))


def test_a_tail_needs_the_rest():
    with pytest.raises(AssertionError, match="with_rest=True"):
        forward_kl(torch.zeros(1, 2), torch.full((1, 2), 0.5), "tail")


# Every divergence of `train.divergence`, against its definition over the whole vocabulary with autograd's own gradient.


def kl(one: Tensor, other: Tensor) -> Tensor:
    return torch.xlogy(one, one / other).sum()


def jsd(p: Tensor, q: Tensor, beta: float) -> Tensor:
    mixture = beta * p + (1 - beta) * q
    return beta * kl(p, mixture) + (1 - beta) * kl(q, mixture)


# A new divergence needs a line here: its definition for two whole distributions (teacher's p, student's q, beta).
DENSE = {
    "forward_kl": lambda p, q, beta: kl(p, q),
    "reverse_kl": lambda p, q, beta: kl(q, p),
    "generalized_jsd": jsd,
}
RAISES_TAIL = {"reverse_kl", "generalized_jsd"}  # the teacher's tail is at least 1e-6
SCALES_P_ALONE = {"forward_kl"}  # under renormalised; the others scale p and q


def dense_divergence(name, hidden, head, ids, p, mode, *, beta, bias=None, scale=1.0, softcap=None) -> Tensor:
    """The definition in float64. tail: all tokens that are not candidates are one outcome, at least 1e-6 to the teacher
    for RAISES_TAIL. renormalised: p alone for SCALES_P_ALONE, else both sides."""
    assert name in DENSE, f"no dense definition for {name}: add it to DENSE"
    logits = hidden @ head.T * scale
    logits = logits if bias is None else logits + bias
    q_all = (logits if softcap is None else softcap * torch.tanh(logits / softcap)).softmax(1)
    values = []
    for q_row, row_ids, row_p in zip(q_all, ids, p, strict=True):
        used = row_p > 0
        q, own = q_row[row_ids[used]], row_p[used]
        if mode == "tail":
            rest = 1 - own.sum()
            rest = rest.clamp_min(1e-6) if name in RAISES_TAIL else rest
            q, own = torch.cat([q, (1 - q.sum())[None]]), torch.cat([own, rest[None]])
        elif mode == "renormalised":
            own = own / own.sum()
            q = q if name in SCALES_P_ALONE else q / q.sum()
        values.append(DENSE[name](own, q, beta))
    return torch.stack(values)


def refuses_raw(name: str) -> bool:
    try:
        Loss(name, "raw")
    except UserError:
        return True
    return False


REFUSE_RAW = [name for name in DIVERGENCES if refuses_raw(name)]
COMBINATIONS = [
    (name, mode)
    for name in DIVERGENCES
    for mode in MISSING_PROBABILITY_MODES
    if mode != "raw" or name not in REFUSE_RAW
]


def test_a_divergence_without_a_dense_definition_is_told():
    hidden, head, ids, p = random_inputs(21, dtype=torch.float64)
    with pytest.raises(AssertionError, match="no dense definition for half_l1"):
        dense_divergence("half_l1", hidden, head, ids, p, "tail", beta=0.5)


@pytest.mark.parametrize(("name", "mode"), COMBINATIONS)
@pytest.mark.parametrize(("scale", "softcap", "biased"), HEADS)
@pytest.mark.parametrize("beta", [0.5, 0.1])
def test_each_divergence_has_the_value_and_gradient_of_its_dense_definition(name, mode, scale, softcap, biased, beta):
    hidden, head, ids, p = random_inputs(21, dtype=torch.float64)
    bias = torch.randn(13, generator=torch.Generator().manual_seed(2), dtype=torch.float64) if biased else None
    inputs = [hidden, head, *([bias] if bias is not None else [])]
    weights = torch.linspace(0.0, 2.0, len(ids), dtype=torch.float64)
    loss, results = Loss(name, mode, beta=beta), []
    options = {"scale": scale, "softcap": softcap}
    for compute in (
        lambda h, w, b=None: loss(h, w, ids, p, bias=b, chunk_rows=3, **options),
        lambda h, w, b=None: loss.weighted_sum(h, w, ids, p, weights, bias=b, **options),
        lambda h, w, b=None: dense_divergence(name, h, w, ids, p, mode, beta=beta, bias=b, **options),
    ):
        leaves = [value.clone().requires_grad_() for value in inputs]
        result = compute(*leaves)
        total, values = result if isinstance(result, tuple) else ((weights * result).sum(), result)
        results.append((values.detach(), *torch.autograd.grad(total, leaves)))
    for ours in results[:2]:
        for one, dense_one in zip(ours, results[2], strict=True):
            torch.testing.assert_close(one, dense_one, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_each_divergence_is_zero_at_the_teachers_distribution_and_a_smooth_one_has_gradient_zero(name):
    logits = torch.randn(6, 9, generator=torch.Generator().manual_seed(7), dtype=torch.float64).requires_grad_()
    ids, p = torch.arange(9).expand(6, -1)[:, :4], logits.detach().softmax(1)[:, :4]
    values = Loss(name, "tail")(logits, torch.eye(9, dtype=torch.float64), ids, p)
    values.sum().backward()
    assert values.abs().max() < 1e-9 and logits.grad is not None and logits.grad.isfinite().all()
    assert name not in SMOOTH or logits.grad.abs().max() < 1e-9


def test_generalized_jsd_tends_to_both_kullback_leibler_divergences():
    hidden, head, ids, p = random_inputs(22, dtype=torch.float64)
    log_q = candidate_log_probabilities(hidden, head, ids, with_rest=True, is_candidate=p > 0)
    small = 1e-6
    forward, reverse = forward_kl(log_q, p, "tail"), reverse_kl(log_q, p, "tail")
    torch.testing.assert_close(generalized_jsd(log_q, p, beta=small) / small, forward, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(generalized_jsd(log_q, p, beta=1 - small) / small, reverse, rtol=1e-3, atol=1e-6)
    assert (generalized_jsd(log_q, p) <= math.log(2)).all(), "Jensen-Shannon is bounded"


def test_a_divergence_that_refuses_to_ignore_missing_probability_is_named():
    assert {"reverse_kl", "generalized_jsd"} <= set(REFUSE_RAW) and "forward_kl" not in REFUSE_RAW
    for name in REFUSE_RAW:
        with user_error("E-train-divergence-needs-tail", where="train.missing_probability") as error:
            Loss(name, "raw")
        assert name in error.value.what


def test_an_unknown_divergence_is_refused_with_the_known_ones():
    with pytest.raises(UserError) as error:
        Loss("hellinger")
    assert error.value.code == "E-train-unknown-divergence" and "generalized_jsd" in error.value.hint


def test_a_new_divergence_is_one_function_and_one_entry(monkeypatch: pytest.MonkeyPatch):
    def half_l1(log_q, p, missing_probability="tail"):
        q = torch.where(p > 0, log_q[:, : p.shape[1]].exp(), 0.0)
        if missing_probability == "renormalised":
            q, p = q / q.sum(1, keepdim=True), p / p.sum(1, keepdim=True)
        values = (q - p).abs().sum(1)
        if missing_probability == "tail":
            values = values + (log_q[:, -1].exp() - (1 - p.sum(1))).abs()
        return 0.5 * values

    def scaled_half_l1(log_q, p, missing_probability="tail", *, beta=0.5):
        return beta * half_l1(log_q, p, missing_probability)

    monkeypatch.setitem(DIVERGENCES, "half_l1", half_l1)  # type: ignore[arg-type]
    monkeypatch.setitem(DIVERGENCES, "scaled_half_l1", scaled_half_l1)  # type: ignore[arg-type]
    monkeypatch.setitem(DENSE, "half_l1", lambda p, q, beta: 0.5 * (p - q).abs().sum())
    monkeypatch.setitem(DENSE, "scaled_half_l1", lambda p, q, beta: 0.5 * beta * (p - q).abs().sum())
    assert not uses_beta("half_l1") and uses_beta("scaled_half_l1") and not uses_beta("no such divergence")
    for name in ("half_l1", "scaled_half_l1"):
        for mode in ("renormalised", "tail"):
            test_each_divergence_has_the_value_and_gradient_of_its_dense_definition(name, mode, 1.0, None, False, 0.1)
        test_each_divergence_is_zero_at_the_teachers_distribution_and_a_smooth_one_has_gradient_zero(name)
