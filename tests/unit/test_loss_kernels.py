"""The plain and the compiled kernel of the loss agree, and the faster one is measured and chosen."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import tiny
from expect import user_error
from loss_inputs import random_inputs
from potstill import losses
from potstill.losses import KERNELS, sparse
from potstill.losses.sparse import is_low_precision, matmul_precision
from potstill.stages import train


@pytest.fixture(scope="module")
def compiler() -> None:
    try:
        torch.compile(lambda x: x + 1)(torch.zeros(2))
    except Exception as error:
        pytest.skip(f"nothing can be compiled here: {error}")


def gradients(
    seed: int, n: int, kernel: losses.Kernel, mode: losses.MissingProbability, cap: float | None, chunk: int | None
):
    hidden, head, ids, p = random_inputs(seed, n=n)
    bias, count = torch.linspace(-1, 1, len(head)), torch.linspace(0.1, 2.0, n)
    leaves = [leaf.requires_grad_() for leaf in (hidden, head, bias)]
    options: Any = {
        "missing_probability": mode,
        "bias": bias,
        "scale": 0.3,
        "softcap": cap,
        "chunk_rows": chunk,
        "kernel": kernel,
    }
    total, values = losses.weighted_sparse_kl(hidden, head, ids, p, count, **options)
    total.backward()
    return [total.detach(), values, *(leaf.grad for leaf in leaves)]


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "cap"), [("raw", None), ("tail", None), ("renormalised", 2.0)])
def test_compiled_is_plain(compiler: None, mode: losses.MissingProbability, cap: float | None) -> None:
    for seed, n, chunk in ((1, 7, None), (2, 7, 3), (3, 1, None), (4, 29, 8)):
        plain, compiled = (gradients(seed, n, kernel, mode, cap, chunk) for kernel in ("plain", "compiled"))
        for one, other in zip(plain, compiled, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_both_are_measured(compiler: None) -> None:
    found = losses.measure_kernels(4, 13, 2, "raw", None, torch.device("cpu"), False)
    assert found.failure is None and set(found.seconds) == set(losses.KERNELS)


@pytest.mark.slow
def test_a_run_trains_with_either(compiler: None, world: Path, tmp_path: Path) -> None:
    losses = []
    for kernel in KERNELS:
        made = tiny.make(world, tmp_path / kernel, "train.steps=4", f"train.loss_kernel={kernel}", until="train")
        assert f'"loss_kernel":"{kernel}"' in (made / "log.jsonl").read_text()
        lines = (made / "train" / "metrics.jsonl").read_text().splitlines()
        losses.append(torch.tensor([json.loads(line)["loss"] for line in lines]))
    torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-5)


def test_where_nothing_can_be_compiled_plain_is_taken_and_the_reason_told(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(kernel: losses.Kernel):
        if kernel == "plain":
            return sparse.compute_values_and_gradient
        raise RuntimeError("no working compiler\nand more")

    monkeypatch.setattr(sparse, "get_kernel", broken)
    found = losses.measure_kernels(2, 5, 2, "raw", None, torch.device("cpu"), False)
    assert found.kernel == "plain" and found.failure == "RuntimeError: no working compiler"
    with user_error("E-train-loss-kernel"):
        tiny.make(world, tmp_path / "run", "train.steps=4", "train.loss_kernel=compiled", until="train")


def test_the_faster_one_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([2.0, 1.0, 1.0, 2.0])

    class Told:
        def __init__(self, *_: object, **__: object) -> None:
            self.median = next(times)

        def blocked_autorange(self, **_: object) -> Told:
            return self

    monkeypatch.setattr(sparse, "Timer", Told)
    monkeypatch.setattr(sparse, "get_kernel", lambda _: sparse.compute_values_and_gradient)
    sizes = (2, 5, 2, "raw", None, torch.device("cpu"), False)
    assert [losses.measure_kernels(*sizes).kernel, losses.measure_kernels(*sizes).kernel] == ["compiled", "plain"]


def test_a_gpu_is_measured_and_a_cpu_is_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[object, ...]] = []

    def measured(*sizes: object) -> losses.KernelTiming:
        asked.append(sizes)
        return losses.KernelTiming("compiled", {"plain": 0.002, "compiled": 0.001})

    monkeypatch.setattr(losses, "measure_kernels", measured)
    head = SimpleNamespace(weight=torch.zeros(50_000, 2), softcap=30.0)
    there: Any = SimpleNamespace(device=torch.device("cuda"), head=head)
    assert (
        train._choose_loss_kernel(there, losses.Loss(missing_probability="tail"), "measured", "bfloat16") == "compiled"
    )
    assert train._choose_loss_kernel(there, losses.Loss(missing_probability="tail"), "plain", "bfloat16") == "plain"
    assert asked == [(335, 50_000, 8, "tail", 30.0, there.device, True)]
    assert "compiled (plain 2 ms, compiled 1 ms" in capsys.readouterr().err
    there.device = torch.device("cpu")
    assert (
        train._choose_loss_kernel(there, losses.Loss(missing_probability="tail"), "measured", "bfloat16") == "plain"
        and len(asked) == 1
    )


def test_products_are_tf32_on_a_gpu_whose_model_works_in_less_only() -> None:
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    for kind, low, inside in (("cuda", True, "tf32"), ("cuda", False, before), ("cpu", True, before)):
        with pytest.raises(KeyError), matmul_precision(kind, low):
            assert matmul.fp32_precision == inside
            raise KeyError
        assert matmul.fp32_precision == before
    with torch.autocast("cpu", torch.bfloat16):
        assert is_low_precision(torch.zeros(1))
        with matmul_precision("cpu", True):
            assert not is_low_precision(torch.zeros(1))
