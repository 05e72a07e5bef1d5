"""Training T5 without padding gives the numbers of the model's padded forward pass, also for shared prompts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from potstill import models
from potstill.models import Example, Shape, Student, t5_unpadded
from potstill.models.unpadded import MIN_LENGTH_RATIO, build_layout
from potstill.records import Target, TargetKind
from training_steps import TOKENIZER, gradients, gradients_agree, make_student, training_examples


def padded_hidden(student: Student, given: list[Example]) -> torch.Tensor:
    """What transformers computes with padding and masks, one row an example."""
    batch = student.batch(given)
    assert batch.prompt_ids is not None and batch.prompt_mask is not None
    rows = torch.tensor(batch.prompts)
    found = student.model(
        input_ids=batch.prompt_ids[rows],
        attention_mask=batch.prompt_mask[rows],
        decoder_input_ids=batch.input_ids,
        output_hidden_states=True,
        use_cache=False,
    )
    return found.decoder_hidden_states[-1].flatten(0, 1)[batch.positions]


def chains(student: Student) -> list[Example]:
    """Two prompts with three targets each, not side by side, beside a long prompt with one."""
    made = training_examples(student)
    prompts = [tuple(student.encode("Q: 2 + 3 A:")), tuple(student.encode("Q: 1 + 1"))]
    shared = [Example(prompts[i % 2], example.target, example.weight) for i, example in enumerate(made[:6])]
    return [*shared, Example(tuple(student.encode("Q: 4 + 3 A:" * 5)), made[6].target)]


@pytest.mark.parametrize("gated", [True, False])
def test_hidden_states_are_those_of_the_model_with_padding(gated):
    shape = Shape("t5", 16, 2, 2, 32, 8, TOKENIZER.size, gated=gated, tied=not gated)
    student = models.random_student(shape, TOKENIZER, 1)
    with torch.no_grad():  # a bias that is seen
        for name, value in student.model.named_parameters():
            if "relative_attention_bias" in name:
                value.normal_(generator=torch.Generator().manual_seed(3))
    for given_examples in (training_examples(student), chains(student)):
        ours = student.hidden(student.batch(given_examples))
        torch.testing.assert_close(ours, padded_hidden(student, given_examples), rtol=1e-5, atol=1e-5)


def test_a_shared_prompt_is_read_once_and_has_the_same_gradient():
    student = make_student("t5")
    made = chains(student)
    batch = student.batch(made)
    assert batch.prompt_ids is not None and len(batch.prompt_ids) == 3
    assert batch.prompts == (0, 1, 0, 1, 0, 1, 2)
    (batch.weights * student(batch)).sum().backward()
    shared = gradients(student)
    student.zero_grad()
    for example in made:
        alone = student.batch([example])
        (alone.weights * student(alone)).sum().backward()
    assert gradients_agree(shared, gradients(student))
    assert batch.slots == batch.tokens < sum(len(e.prompt) + len(e.target) for e in made)


@pytest.mark.parametrize("chunk", [1, 70, 1 << 20])
@pytest.mark.parametrize("cells", [0, 40])
def test_long_rows_are_computed_in_chunks_with_the_same_gradient(cells, chunk, monkeypatch: pytest.MonkeyPatch):
    """Self-attention with biases of encoder and decoder, and cross-attention, also with padding in a block of rows."""
    student = make_student("t5")
    with torch.no_grad():
        for name, value in student.model.named_parameters():
            if "relative_attention_bias" in name:
                value.normal_(generator=torch.Generator().manual_seed(3))
    batch = student.batch(chains(student))
    found = []
    for limit in (t5_unpadded.MAX_SCORE_CELLS, cells):
        monkeypatch.setattr(t5_unpadded, "MAX_SCORE_CELLS", limit)
        monkeypatch.setattr(t5_unpadded, "CHUNK_CELLS", chunk)
        student.zero_grad()
        losses = student(batch)
        (batch.weights * losses).sum().backward()
        found.append((losses.detach(), gradients(student)))
    torch.testing.assert_close(found[1][0], found[0][0], rtol=1e-5, atol=1e-5)
    assert gradients_agree(found[1][1], found[0][1])


def test_the_scores_that_exist_at_once_do_not_grow_with_the_square_of_the_length(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(t5_unpadded, "MAX_SCORE_CELLS", 1 << 12)
    monkeypatch.setattr(t5_unpadded, "CHUNK_CELLS", 1 << 14)
    student, largest = make_student("t5"), list[int]()
    attend = t5_unpadded.attend

    def counted(q, k, v, bias, dropout, *, fused):
        largest[-1] = max(largest[-1], q.shape[0] * q.shape[1] * q.shape[2] * k.shape[2])
        return attend(q, k, v, bias, dropout, fused=fused)

    monkeypatch.setattr(t5_unpadded, "attend", counted)
    prompt = tuple(student.encode("Q: 2 + 3 A:"))
    for length in (200, 800):
        kinds: list[TargetKind] = ["hard" for _ in range(length)]
        target = Target([5] * length, range(length + 1), [5] * length, [1.0] * length, kinds)
        largest.append(0)
        with torch.no_grad():
            student(student.batch([Example(prompt, target)]))
    assert max(largest) <= 1 << 14


def test_recomputing_the_layers_gives_the_same_gradient():
    student = make_student("t5", dropout=0.3)
    batch = student.batch(training_examples(student))
    student.train()
    found = []
    for keep in (True, False):
        if not keep:
            student.enable_gradient_checkpointing()
        student.zero_grad()
        torch.manual_seed(5)
        student(batch).sum().backward()
        found.append(gradients(student))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), min_size=1, max_size=12), st.integers(1, 3))
def test_a_layout_holds_each_token_once(lengths, heads):
    def rows(which: int) -> list[np.ndarray]:
        ends = np.cumsum([own[which] for own in lengths])
        return np.split(np.random.default_rng(1).permutation(ends[-1]), ends[:-1])

    queries, keys = rows(0), rows(1)
    layout = build_layout(queries, keys, heads)
    for places, own in ((layout.queries, queries), (layout.keys, keys)):
        flat = torch.randn(sum(map(len, own)) * heads, 2, dtype=torch.float64, requires_grad=True)
        assert torch.equal(places.scatter(places.gather(flat)), flat)
        weights = torch.randn(len(flat), 2, dtype=torch.float64)
        (places.scatter(3 * places.gather(flat)) * weights).sum().backward()
        torch.testing.assert_close(flat.grad, 3 * weights)
    sizes = [block.rows * block.queries * heads for block in layout.blocks]
    assert sum(sizes) == len(layout.queries.flat_of_slot)
    for block in layout.blocks:
        if block.key_padding is not None:
            assert int((~block.key_padding).sum(1).min()) >= MIN_LENGTH_RATIO * block.keys


@pytest.mark.parametrize("biased", [True, False])
def test_torchs_kernel_is_the_plain_attention(biased):
    """On a GPU the kernel is used; its twin here."""
    draw = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(2, 3, n, 4, generator=draw) for n in (5, 7, 7))
    bias = torch.randn(2, 3, 5, 7, generator=draw) if biased else None
    plain, fused = (t5_unpadded.attend(q, k, v, bias, 0.0, fused=fused) for fused in (False, True))
    torch.testing.assert_close(plain, fused, rtol=1e-5, atol=1e-5)


def test_dropout_falls_on_every_sum():
    student = make_student("t5", dropout=0.5)
    batch = student.batch(training_examples(student))
    plain = student.hidden(batch)
    student.train()
    torch.manual_seed(1)
    one, other = student.hidden(batch), student.hidden(batch)
    assert float((one == 0).float().mean()) == pytest.approx(0.5, abs=0.1)
    assert not torch.equal(one, other) and not torch.equal(one, plain)


def test_the_norms_gradient():
    own = t5_unpadded._RMSNorm.apply
    draw = torch.Generator().manual_seed(2)
    values = torch.randn(4, 6, generator=draw, dtype=torch.float64).requires_grad_()
    weight = torch.randn(6, generator=draw, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda values, weight: own(values, weight, 1e-3), (values, weight))


def test_targets_of_one_token_and_prompts_of_one_token():
    student = make_student("t5")
    end = TOKENIZER.eos
    target = Target([end], [0, 1], [end], [1.0], ["end"])
    made = [Example((end,), target), Example((3, end), target)]
    torch.testing.assert_close(student.hidden(student.batch(made)), padded_hidden(student, made), rtol=1e-5, atol=1e-5)
