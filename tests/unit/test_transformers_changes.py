"""What transformers has announced or may change: potstill gives the same numbers, or an error, and never other numbers.

`past_key_values` is to go in 5.40. A forward pass passes over arguments that it does not know, so a cache under a name
that is gone is not filled, and every token is read as if nothing stood before it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch

from cache_models import PROMPTS, next_logits, random_model
from potstill.errors import UserError
from potstill.inference import kv_cache
from potstill.inference.fast_decode import fast_prefill
from potstill.inference.kv_cache import prefill
from potstill.models import Student
from potstill.models.causal import MODEL_TYPES

EVERY = ("t5", "t5 of more layers in its decoder", *MODEL_TYPES)
Change = Callable[[Callable[..., Any], str], Callable[..., Any]]


def plain(forward: Callable[..., Any], name: str) -> Callable[..., Any]:
    """The forward pass as it is without any alias: the innermost function, whose signature is the documented one."""
    while "deprecat" in (forward.__code__.co_filename if hasattr(forward, "__code__") else ""):
        forward = forward.__wrapped__  # type: ignore[attr-defined]
    return forward


def renamed(forward: Callable[..., Any], name: str) -> Callable[..., Any]:
    def changed(self: Any, input_ids: Any = None, kv_store: Any = None, **others: Any) -> Any:
        others.pop(name, None)
        return forward(self, input_ids=input_ids, **{name: kv_store}, **others)

    return changed


def swallowed(forward: Callable[..., Any], name: str) -> Callable[..., Any]:
    """The argument is known and not used."""

    def changed(self: Any, *rest: Any, **others: Any) -> Any:
        others.pop(name, None)
        return forward(self, *rest, **others)

    changed.__signature__ = inspect.signature(forward)  # type: ignore[attr-defined]
    return changed


def emptied(forward: Callable[..., Any], name: str) -> Callable[..., Any]:
    """The argument is used by the first layer alone."""

    def changed(self: Any, *rest: Any, **others: Any) -> Any:
        made = forward(self, *rest, **others)
        if (cache := others.get(name)) is not None:  # a T5's encoder is of the same class and has none
            getattr(cache, "self_attention_cache", cache).layers[-1].get_seq_length = lambda: 0
        return made

    changed.__signature__ = inspect.signature(forward)  # type: ignore[attr-defined]
    return changed


def written_here(student: Student) -> Any:
    """As the engine reads prompts: of a Llama the prompts through the library, a T5 from its modules alone."""
    return fast_prefill(student, list(PROMPTS))


def library(student: Student) -> Any:
    return prefill(student, list(PROMPTS), list(range(len(PROMPTS))))


def change(student: Student, how: Change, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder: Any = student.model.get_submodule("decoder") if student.family == "t5" else student.model.get_decoder()
    kind = type(decoder)
    monkeypatch.setattr(kind, "forward", how(kind.forward, kv_cache.find_cache_argument(kind.forward)))


@pytest.mark.parametrize("memory", [written_here, library])
@pytest.mark.parametrize("kind", EVERY)
def test_without_the_alias_numbers_are_the_same(
    kind: str, memory: Callable[[Student], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    student = random_model(kind)
    change(student, plain, monkeypatch)
    with torch.no_grad():
        state, written = memory(student), [[] for _ in PROMPTS]
        for step in range(3):
            expected = torch.stack([next_logits(student, *row) for row in zip(PROMPTS, written, strict=True)])
            torch.testing.assert_close(state.logits, expected, rtol=1e-4, atol=1e-4)
            ids = torch.tensor([5 + (3 * step + row) % 40 for row in range(len(PROMPTS))])
            for row, token in zip(written, ids.tolist(), strict=True):
                row.append(token)
            state.step(ids)


@pytest.mark.parametrize("how", [renamed, swallowed, emptied])
@pytest.mark.parametrize(
    ("kind", "memory"), [*((kind, library) for kind in EVERY), *((kind, written_here) for kind in MODEL_TYPES)]
)
def test_a_cache_that_is_not_used_is_an_error_and_never_a_number(
    kind: str, how: Change, memory: Callable[[Student], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    student = random_model(kind)
    change(student, how, monkeypatch)
    with torch.no_grad(), pytest.raises(UserError) as error:
        memory(student)
    assert error.value.code == "E-inference-unsupported-cache"
    assert error.value.where.startswith("transformers ") and error.value.hint


@pytest.mark.parametrize("kind", EVERY)
def test_a_cache_that_is_not_used_is_found_at_a_later_step_too(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    student = random_model(kind)
    with torch.no_grad():
        state = library(student)
        change(student, swallowed, monkeypatch)
        with pytest.raises(UserError) as raised:
            state.step(torch.full((len(PROMPTS),), 5))
        assert raised.value.code == "E-inference-unsupported-cache"


def test_a_decoder_without_a_cache_is_an_error() -> None:
    with pytest.raises(UserError) as raised:
        kv_cache.find_cache_argument(lambda input_ids, cache_params=None, **others: None)
    assert raised.value.code == "E-inference-unsupported-cache"


@pytest.mark.parametrize("name", ["activation_checkpointing_enable", "gradient_checkpointing_enable"])
def test_layers_are_computed_again_under_either_name(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    student, called = random_model("t5"), []
    fake = type("Model", (), {name: lambda self: called.append(name)})()
    monkeypatch.setitem(student._modules, "model", fake)
    student.enable_gradient_checkpointing()
    assert called == [name]
