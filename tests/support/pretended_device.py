"""A device that is only pretended: its tensors refuse to meet others, while the CPU computes what they hold.

It finds devices that mix on a machine that has one. Torch lets it be registered once and for a whole process, so
`test_devices.py` runs this file in a process of its own; a case is a function here whose name begins with `case_`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch.utils import backend_registration
from torch.utils._pytree import tree_leaves, tree_map

import tiny
from potstill import inference, models, training
from potstill.alignment import cross_tokenizer
from potstill.evaluation import checkpoint
from potstill.inference import Decode, Request, transformers
from potstill.models import Example, Shape, Student
from potstill.records import BASE, Chain
from potstill.tokenization import Tokenizer
from tools.toy_models.tokenizer_training import train_unigram


class Backend(backend_registration._DummyBackendModule):
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


backend_registration._setup_privateuseone_for_python_backend("elsewhere", backend_module=Backend())
ELSEWHERE = torch.device("elsewhere", 0)
COPIES = ("aten::_to_copy", "aten::copy_", "aten::_copy_from")  # where devices may meet; so they may in
INDEX = ("aten::index.Tensor", "aten::index_put_", "aten::index_put", "aten::_index_put_impl_")  # their second argument
PLAIN = ("aten::_local_scalar_dense", "aten::is_nonzero")  # give a number, no tensor


class Elsewhere(torch.Tensor):
    """A tensor that says that it lies elsewhere; `held` is what it holds."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> Elsewhere:
        layout = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype}
        made = torch.Tensor._make_wrapper_subclass(cls, held.shape, **layout, device=ELSEWHERE)
        made.held = held
        return made

    def tolist(self) -> Any:
        return self.held.tolist()

    def __getitem__(self, at: Any) -> torch.Tensor:
        return super().__getitem__(_index(at))

    def __setitem__(self, at: Any, value: Any) -> None:
        super().__setitem__(_index(at), value)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(func, *args, **(kwargs or {}))


def compute(func: Any, *args: Any, **kwargs: Any) -> Any:
    """One operation on what its tensors hold. AssertionError where one of them is not elsewhere."""
    name = func.name()
    for leaf in tree_leaves((args[:1], args[2:]) if name in INDEX else (args, kwargs)):
        if isinstance(leaf, torch.Tensor) and not isinstance(leaf, Elsewhere) and leaf.dim() and name not in COPIES:
            raise AssertionError(f"{name}: a tensor on {leaf.device} meets one elsewhere")
    own, named = tree_map(_held, (args, kwargs))
    found = func(*own, **named)
    if name == "aten::copy_":
        return args[0]
    asked = kwargs.get("device")
    if name in PLAIN or (asked is not None and torch.device(asked).type == "cpu"):
        return found
    known = {id(leaf.held): leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Elsewhere)}
    return tree_map(lambda leaf: known[id(leaf)] if id(leaf) in known else _wrapped(leaf), found)


def _index(at: Any) -> Any:
    return _tensor(at, dtype=torch.long) if isinstance(at, list) else at  # else torch makes one, past every hook


def _held(leaf: Any) -> Any:
    if isinstance(leaf, Elsewhere):
        return leaf.held
    return torch.device("cpu") if isinstance(leaf, torch.device) else leaf


def _wrapped(leaf: Any) -> Any:
    return Elsewhere(leaf) if isinstance(leaf, torch.Tensor) else leaf


library = torch.library.Library("_", "IMPL")
library.fallback(compute, "PrivateUse1")  # what makes tensors from nothing
_tensor = torch.tensor


def tensor(data: Any, *, device: Any = None, **more: Any) -> torch.Tensor:
    made = _tensor(data, **more)  # its own way to a device passes by every hook
    return made if device is None else made.to(device)


torch.tensor = tensor


def move(student: Student) -> Student:
    """`Module.to` puts new parameters in place of such tensors, each by itself; tied ones have to stay tied."""
    moved: dict[int, torch.nn.Parameter] = {}
    for module in student.modules():
        for name, own in module._parameters.items():
            if own is not None:
                moved.setdefault(id(own), torch.nn.Parameter(own.detach().to(ELSEWHERE)))
                module._parameters[name] = moved[id(own)]
        for name, held in module._buffers.items():
            if held is not None:
                module._buffers[name] = held.to(ELSEWHERE)
    return student


TEXTS = ["2 + 2 = 4", "The answer is 4", "Ann has 12 kites.\nThe answer is 12"]


def make(kind: str, tokenizer: Tokenizer) -> Student:
    shape = {"d_model": 16, "layers": 2, "heads": 2, "d_ff": 16, "d_kv": 8, "vocabulary": tokenizer.size}
    if kind != "gemma":
        return models.random_student(Shape(kind, **shape), tokenizer, seed=1)  # type: ignore[arg-type]
    from transformers import Gemma2Config, Gemma2ForCausalLM

    config = Gemma2Config(
        vocab_size=tokenizer.size, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, sliding_window=4, pad_token_id=tokenizer.pad, eos_token_id=tokenizer.eos,
    )  # fmt: skip
    torch.manual_seed(1)
    from potstill.models import causal

    return causal.CausalStudent(Gemma2ForCausalLM(config), tokenizer).eval()


def case_texts_and_scores_are_those_of_the_cpu(kind: str, tokenizer: Tokenizer) -> None:
    requests = [Request((name, index), prompt) for name, prompt in (("a", (5, 6, 7)), ("b", (8,))) for index in (0, 1)]
    found = []
    for student in (make(kind, tokenizer), move(make(kind, tokenizer))):
        engine = transformers.TransformersEngine(student)
        for temperature, more in (
            (0.0, {}),
            (1.0, {"calculator": True}),
            (1.0, {"top_logprobs": 3, "likelihood": True}),
        ):
            found.append(engine.generate(requests, Decode(max_tokens=12, temperature=temperature, **more)))  # type: ignore
        found.append(engine.score(requests[:2], TEXTS[:2], top_logprobs=2))
    for here, there in zip(found[:4], found[4:], strict=True):
        for one, other in zip(here, there, strict=True):
            assert one.ids == other.ids, (kind, one, other)
            steps = zip(one.candidates, other.candidates, strict=True)
            assert all(abs(a[1] - b[1]) < 1e-5 for step in steps for a, b in zip(*step, strict=True)), (
                kind,
                one,
                other,
            )


def case_gradients_and_steps_are_those_of_the_cpu(kind: str, tokenizer: Tokenizer) -> None:
    rows = []
    for prompt, text in (((5, 6, 7), TEXTS[0]), ((5, 6, 7), TEXTS[1]), ((5, 6), TEXTS[2])):
        target = cross_tokenizer.transfer(Chain.from_text("q", 0, text, source="human"), tokenizer, "one-hot")
        rows.append(Example(prompt, target, 1.0, "q", "zero-shot-rationale"))
    here, there = make(kind, tokenizer), move(make(kind, tokenizer))
    losses = []
    for student in (here, there):
        optimizer = training.build_optimizer(student, 1e-2)
        made = training.train_steps(
            student, optimizer, lambda _: [rows[:2], rows[2:]], first=1, last=2,
            schedule=training.Schedule("constant", 1e-2), seed=1, max_grad_norm=1.0,
        )  # fmt: skip
        losses.append([(step.loss, step.gradient_norm) for step in made])
    for own, other in zip(*losses, strict=True):
        assert torch.allclose(_tensor(own), _tensor(other), rtol=1e-5), (kind, losses)
    for (name, own), (_, other) in zip(here.named_parameters(), there.named_parameters(), strict=True):
        assert isinstance(other.data, Elsewhere) or isinstance(other, Elsewhere), name
        assert torch.allclose(own.detach(), _held(other.detach()), atol=1e-4), (kind, name)


def case_an_engine_computes_where_the_process_does(kind: str, tokenizer: Tokenizer) -> None:
    """What it opens from a folder, and what an exam opens for it."""
    recipe = tiny.recipe(Path())
    _computes_elsewhere(make(kind, tokenizer), lambda: contextlib.nullcontext(inference.open_engine("a folder")))
    _computes_elsewhere(make(kind, tokenizer), lambda: checkpoint.open_checkpoint_engine(Path("a run"), recipe, BASE))


def _computes_elsewhere(student: Student, opened: Callable[[], Any]) -> None:
    asked: list[Any] = []
    with (
        mock.patch.object(models, "default_device", lambda: ELSEWHERE),
        mock.patch.object(models, "open_student", lambda *_, **__: student),
        mock.patch.object(checkpoint, "open_checkpoint", lambda *_, **__: student),
        mock.patch.object(student, "to", lambda where: asked.append(where) or move(student)),
        opened() as engine,
    ):
        assert asked == [ELSEWHERE] and engine.generate([Request(("a", 0), (5,))], Decode(max_tokens=2))


def case_an_engine_leaves_a_student_that_is_open_where_it_is(kind: str, tokenizer: Tokenizer) -> None:
    """One that is taught has its optimizer's moments beside its weights."""
    student = make(kind, tokenizer)
    with (
        mock.patch.object(models, "default_device", lambda: ELSEWHERE),
        mock.patch.object(student, "to", lambda where: move(student)),
    ):
        engine = inference.open_engine(student)
    assert engine.generate([Request(("a", 0), (5,))], Decode(max_tokens=2)) and student.device.type == "cpu"


def case_devices_that_mix_are_found(kind: str, tokenizer: Tokenizer) -> None:
    del kind, tokenizer
    for mixed in (lambda a, b: a + b, lambda a, b: torch.cat([a, b]), lambda a, b: a @ b.T):
        try:
            mixed(torch.ones(2, 2, device=ELSEWHERE), torch.ones(2, 2))
        except AssertionError as fault:
            assert "meets one elsewhere" in str(fault)
        else:
            raise AssertionError("nobody noticed")


def main() -> None:
    torch.set_num_threads(1)
    tokenizer = train_unigram(TEXTS, 60)
    cases = [value for name, value in sorted(globals().items()) if name.startswith("case_")]
    for kind in ("t5", "causal", "gemma"):
        for case in cases:
            case(kind, tokenizer)
            print(f"{case.__name__.removeprefix('case_')}[{kind}]", flush=True)


if __name__ == "__main__":
    main()
