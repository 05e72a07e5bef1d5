"""The KV cache: shared prompts, dropped rows and growth give the logits of one plain forward pass."""

from __future__ import annotations

import functools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cache_models import PROMPTS, next_logits, random_model
from potstill.inference import Decode, Request, fast_decode
from potstill.inference.fast_decode import fast_prefill
from potstill.inference.kv_cache import CACHE_BLOCK
from potstill.inference.transformers import TransformersEngine
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


@pytest.mark.parametrize("change", ["adapter", "bfloat16", "rotation"])
def test_a_changed_model_is_left_to_the_library(change: str) -> None:
    student = random_model("llama")
    if change == "adapter":
        layer = student.model.get_submodule("model.layers.1.self_attn")
        layer.v_proj = type("Adapted", (torch.nn.Linear,), {})(16, 8)
    elif change == "bfloat16":
        student.model.bfloat16()
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
