"""The KV cache: shared prompts, dropped rows and growth give the logits of one plain forward pass."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cache_models import PROMPTS, next_logits, random_model
from potstill.inference import Decode, Request, fast_decode
from potstill.inference.fast_decode import fast_prefill
from potstill.inference.kv_cache import CACHE_BLOCK, next_token_logits
from potstill.inference.transformers import TransformersEngine
from potstill.models import Head, open_student
from potstill.models.causal import MODEL_TYPES


@pytest.mark.parametrize("kind", ["t5", *MODEL_TYPES])
def test_rows_that_share_a_prompt_and_are_thinned_are_those_of_a_forward_pass(kind: str) -> None:
    student = random_model(kind)
    rows, written = list(PROMPTS), [[] for _ in PROMPTS]
    with torch.no_grad():
        memory = fast_prefill(student, rows)
        for step in range(12):
            expected = torch.stack([next_logits(student, *row) for row in zip(rows, written, strict=True)])
            torch.testing.assert_close(memory.logits, expected, rtol=1e-4, atol=1e-4)
            if step in (3, 7):
                kept = [0, 1, 4, 5] if step == 3 else [1, 3]  # then the prompts of two rows are read no more
                order = memory.keep(kept)
                assert sorted(order) == kept
                rows, written = [rows[row] for row in order], [written[row] for row in order]
                torch.testing.assert_close(memory.logits, expected[order], rtol=1e-4, atol=1e-4)
            ids = torch.tensor([5 + (3 * step + row) % 40 for row in range(len(rows))])
            for row, token in zip(written, ids.tolist(), strict=True):
                row.append(token)
            memory.step(ids)


@pytest.mark.parametrize("kind", ["t5", *MODEL_TYPES])
def test_the_step_written_out_serves_the_kinds_that_it_knows(kind: str) -> None:
    student = random_model(kind)
    assert fast_decode.supports_fast_decode(student) == (kind in ("t5", "llama"))
    assert isinstance(fast_prefill(student, PROMPTS), fast_decode.FastState) == fast_decode.supports_fast_decode(
        student
    )


@pytest.mark.parametrize("change", ["adapter", "mixed dtypes", "rotation"])
def test_a_changed_model_is_left_to_the_library(change: str) -> None:
    student = random_model("llama")
    if change == "adapter":
        layer = student.model.get_submodule("model.layers.1.self_attn")
        layer.v_proj = type("Adapted", (torch.nn.Linear,), {})(16, 8)
    elif change == "mixed dtypes":
        student.model.get_submodule("model.layers.1").bfloat16()
    else:
        student.model.config.rope_parameters = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    assert not fast_decode.supports_fast_decode(student)


@pytest.mark.parametrize("kind", ["t5", "llama"])
def test_the_step_written_out_gives_the_texts_of_the_librarys(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    student = random_model(kind)
    prompts = {"a": (9, 8, 7), "b": (5, 6), "c": (11, 12, 13, 14, 15, 16)}
    requests = [Request((name, index), prompt) for name, prompt in prompts.items() for index in range(12)]
    for temperature in (0.0, 1.0):
        ours = TransformersEngine(student).generate(
            requests, Decode(max_tokens=CACHE_BLOCK + 9, temperature=temperature, top_logprobs=2)
        )
        with monkeypatch.context() as patch:
            patch.setattr(fast_decode, "supports_fast_decode", lambda random_model: False)
            theirs = TransformersEngine(student).generate(
                requests, Decode(max_tokens=CACHE_BLOCK + 9, temperature=temperature, top_logprobs=2)
            )
        assert [text.ids for text in ours] == [text.ids for text in theirs]
        assert len({len(text.ids) for text in ours}) > 3 or temperature == 0  # rows left at different times


@given(st.sets(st.integers(0, 30), min_size=1))
def test_rows_close_up(places: set[int]) -> None:
    order, holes, moved = fast_decode.compact_rows(sorted(places))
    assert sorted(order) == sorted(places) and len(holes) == len(moved)
    assert all(order[position] == position for position in places if position < len(places))


@pytest.mark.parametrize("kind", ["t5", "llama"])
def test_texts_longer_than_a_block_of_room(kind: str) -> None:
    student = random_model(kind)
    requests = [Request(("q", index), (9, 8, 7)) for index in range(3)] + [Request(("p", 0), (5, 6, 7, 8))]
    with torch.no_grad():
        memory = fast_prefill(student, [request.prompt for request in requests])
        written: list[int] = []
        for _ in range(CACHE_BLOCK + 10):
            written.append(7 + len(written) % 9)
            memory.step(torch.full((4,), written[-1]))
    torch.testing.assert_close(memory.logits[1], next_logits(student, (9, 8, 7), written), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(memory.logits[3], next_logits(student, (5, 6, 7, 8), written), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["t5", "llama"])
def test_a_prompt_is_read_once_whatever_is_asked_of_it(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    student = random_model(kind)
    first = student.model.get_submodule("encoder") if kind == "t5" else student.model.get_decoder()
    plain, rows = first.forward, []

    @functools.wraps(plain)
    def counted(*args: object, **kwargs: object) -> object:
        rows.append(kwargs["input_ids"].shape)  # type: ignore[attr-defined]
        return plain(*args, **kwargs)

    monkeypatch.setattr(first, "forward", counted)
    requests = [
        Request((name, index), prompt) for name, prompt in (("a", (9, 8, 7)), ("b", (5, 6))) for index in range(8)
    ]
    texts = TransformersEngine(student).generate(requests, Decode(max_tokens=3, temperature=1.0, top_logprobs=2))
    assert rows[0] == (2, 3) and len(texts) == 16
    assert len({text.ids for text in texts[:8]}) > 1


@pytest.mark.parametrize("kind", ["llama", "gemma"])
@pytest.mark.parametrize("fast", [True, False])
def test_a_window_that_the_attention_ignores_is_ignored_by_the_cache(
    kind: str, fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    student = random_model(kind)
    student.model.config.sliding_window = 6
    monkeypatch.setattr(fast_decode, "supports_fast_decode", lambda student: fast and kind == "llama")
    written: list[int] = []
    with torch.no_grad():
        memory = fast_prefill(student, PROMPTS[-2:])
        for token in range(5, 15):
            expected = torch.stack([next_logits(student, row, written) for row in PROMPTS[-2:]])
            torch.testing.assert_close(memory.logits, expected, rtol=1e-4, atol=1e-4)
            written.append(token)
            memory.step(torch.full((2,), token))


@pytest.mark.parametrize("kind", ["t5", *MODEL_TYPES])
def test_converted_weights_are_those_that_transformers_opens_in_bfloat16(kind: str, tmp_path: Path) -> None:
    student = random_model(kind)
    student.save(tmp_path)
    student.convert_weights("bfloat16")
    opened = open_student(tmp_path, dtype="bfloat16").model
    ours, theirs = (dict([*model.named_parameters(), *model.named_buffers()]) for model in (student.model, opened))
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        # Gemma's scale of embeddings stays float32, and is rounded where it is used.
        assert ours[name].dtype == value.dtype or name.endswith("embed_scale"), name
        assert torch.equal(ours[name].to(value.dtype), value), name
    embedding: Any = student.model.get_input_embeddings()
    assert (student.head.weight is embedding.weight) == bool(
        opened.get_output_embeddings().weight is opened.get_input_embeddings().weight
    )


@pytest.mark.parametrize("kind", ["t5", *MODEL_TYPES])
def test_bfloat16_gives_the_greedy_tokens_of_transformers_where_rounding_does_not_decide(kind: str) -> None:
    student = random_model(kind)
    student.convert_weights("bfloat16")
    prompts = [tuple(5 + (7 * row + 3 * place) % 40 for place in range(3 + row)) for row in range(12)]
    requests = [Request(("q", row), prompt) for row, prompt in enumerate(prompts)]
    texts = TransformersEngine(student).generate(requests, Decode(max_tokens=20))
    same = 0
    for prompt, text in zip(prompts, texts, strict=True):
        settings = {"max_new_tokens": 20, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
        theirs: Any = student.model.generate(torch.tensor([prompt]), **settings)  # type: ignore[operator]
        start = 1 if kind == "t5" else len(prompt)
        for step, (token, expected) in enumerate(zip(text.ids, theirs.sequences[0, start:].tolist(), strict=False)):
            if token != expected:
                logits = theirs.logits[step][0].float()
                gap, scale = float(logits[expected] - logits[token]), float(logits.abs().max())
                assert gap <= 2**-5 * scale, f"step {step}: {gap} of {scale}"
                break
        else:
            same += 1
    assert same >= 5  # of 12; random models often decide by less than rounding


@pytest.mark.parametrize("kind", ["t5", "llama", "gemma2"])
def test_the_logits_of_a_bfloat16_model_are_those_of_its_weights_in_float32(kind: str) -> None:
    student, prompts = random_model(kind), PROMPTS[-2:]
    student.convert_weights("bfloat16")
    exact = random_model(kind)
    exact.model.load_state_dict(student.model.state_dict())
    with torch.no_grad():
        memory = fast_prefill(student, prompts)
        assert memory.logits.dtype == torch.float32
        for step in range(6):
            expected = torch.stack([next_logits(exact, row, [9] * step) for row in prompts])
            assert float((memory.logits - expected).abs().max()) < 0.03 * float(expected.abs().max())
            memory.step(torch.tensor([9, 9]))


@pytest.mark.parametrize("shared", [1, 3, 9])
def test_a_beginning_that_all_prompts_share_is_read_once(shared: int, monkeypatch: pytest.MonkeyPatch) -> None:
    student, beginning = random_model("llama"), tuple(range(20, 29))
    prompts = [beginning + rest for rest in ((5, 6), (7,), (9, 8, 7, 6), (7,))]
    decoder, read = student.model.get_decoder(), []
    plain = decoder.forward

    @functools.wraps(plain)
    def counted(*args: object, **kwargs: object) -> object:
        read.append(tuple(kwargs["input_ids"].shape))  # type: ignore[attr-defined]
        return plain(*args, **kwargs)

    monkeypatch.setattr(decoder, "forward", counted)
    monkeypatch.setattr(fast_decode, "shared_length", lambda *_: shared)  # also for float32, to compare closely
    with torch.no_grad():
        memory = fast_prefill(student, prompts)
        assert read == [(1, shared), (3, 9 + 4 - shared)]
        monkeypatch.setattr(decoder, "forward", plain)
        for step in range(5):
            expected = torch.stack([next_logits(student, row, [9] * step) for row in prompts])
            torch.testing.assert_close(memory.logits, expected, rtol=1e-4, atol=1e-4)
            memory.step(torch.full((4,), 9))


def test_which_beginning_is_shared() -> None:
    student, beginning = random_model("llama"), tuple(range(20, 30))
    prompts = [(*beginning, 5, 6), (*beginning, 5, 7), (*beginning, 8)]
    assert fast_decode.shared_length(student, prompts) == 0  # float32
    student.convert_weights("bfloat16")
    assert fast_decode.shared_length(student, prompts) == 10
    assert fast_decode.shared_length(student, [beginning, (*beginning, 5)]) == 9
    assert fast_decode.shared_length(student, prompts[:1]) == 0
    assert fast_decode.shared_length(student, [prompt[4:] for prompt in prompts]) == 0  # 6 tokens are too few


@given(st.integers(0, 10**6), st.sampled_from([0.01, 1.0]))
def test_the_likeliest_token_of_a_bfloat16_head_is_exact(seed: int, spread: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(4, 16, generator=generator).bfloat16()
    # With a small spread all rows of the head are nearly equal: more logits are equally large than are computed again.
    weight = (torch.randn(1, 16, generator=generator) + spread * torch.randn(90, 16, generator=generator)).bfloat16()
    exact = hidden.double() @ weight.double().T
    logits = next_token_logits(Head(weight), hidden)
    best = logits.argmax(-1, keepdim=True)
    torch.testing.assert_close(exact.gather(-1, best)[:, 0], exact.amax(-1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logits.double(), exact, rtol=2**-8, atol=1e-6)
