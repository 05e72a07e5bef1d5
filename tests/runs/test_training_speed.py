"""Training speed: FLOPs computed from shapes equal those that torch counts, and no digest covers a time."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import tiny
from potstill import models, process, training
from potstill.recipe import Recipe, parse_recipe
from potstill.report import collect, figures
from potstill.report.html import render_times
from potstill.storage import read
from potstill.training import examples


@pytest.mark.parametrize("family", ["t5", "causal"])
def test_operations_are_those_that_torch_counts(world: Path, tmp_path: Path, family: str) -> None:
    recipe = tiny.recipe(world, f"student.shape.family={family}", "train.formats={zero-shot-rationale: 1}")
    run_dir = tiny.make(world, tmp_path / "run", f"student.shape.family={family}", until="align")
    student = models.from_recipe(recipe)
    [*batches] = examples.read_training_data(run_dir, recipe, student).micro_batches(1)
    # The counter does not see inside fused attention on a CPU.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        for batch in batches:
            made = student.batch(batch)
            head, hidden = student.head, student.hidden(made)
            torch.nn.functional.linear(hidden, head.weight).sum().backward()
    # The program pads what is counted here without padding, and skips what needs no gradient (the input's).
    assert training.count_training_flops(student, batches) == pytest.approx(counter.get_total_flops(), rel=0.12)


def test_speed_is_told_beside_the_run(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "draw_figures", lambda told: {})  # figures take seconds and are not looked at
    start = time.time()
    run_dir = tiny.make(world, tmp_path / "run", "train.peak_flops=1e9")
    rows = [row for _, row in read.read_jsonl(run_dir / "train" / "speed.jsonl")]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    for row in rows:
        assert row["utilisation"] == pytest.approx(row["operations"] / row["seconds"] / 1e9, rel=1e-3)
        assert row["tokens_per_second"] > 0 and row["memory_mib"] > 0
    times = [row["time"] for row in rows]
    assert times == sorted(times) and start <= times[0] and times[-1] <= time.time()
    assert "speed" not in (run_dir / "train" / "manifest.json").read_text()
    assert "of the device's peak" in (run_dir / "report" / "time.html").read_text()
    speed = collect.read_speed(run_dir)
    assert speed is not None and speed.steps == 4 and speed.utilisation is not None
    assert "peak_flops" not in json.loads((run_dir / "train" / "manifest.json").read_text())["recipe"]


def test_on_a_cpu_nothing_is_claimed_of_its_peak(world: Path) -> None:
    recipe: Recipe = tiny.recipe(world)
    assert recipe.train.peak_flops is None and training.total_peak_flops(torch.device("cpu"), "float32") is None
    speed = training.compute_step_speed(1, 2.0, tokens=10, operations=100, peak=None, memory=1 << 21, time=7.5)
    assert (speed.utilisation, speed.tokens_per_second, speed.memory_mib) == (None, 5.0, 2)


def test_the_page_says_where_no_peak_is_known() -> None:
    from example_report import example
    from potstill.report.model import TrainingSpeed

    html = render_times(example(), (), TrainingSpeed(3, 1234.5, 2e9))["time.html"]
    assert "1234 tokens per second" in html and "peak is unknown" in html


def test_the_recipe_refuses_a_peak_of_nothing(world: Path) -> None:
    from potstill.errors import UserError

    with pytest.raises(UserError, match=r"train\.peak"):
        parse_recipe(tiny.RECIPE, "tiny.yaml", [f"data={world}", "train.peak_flops=0"])


def test_a_run_limits_the_kernels_that_are_kept(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By default there are 1,024, a set for every number of tokens. A value of the user is kept."""
    for name in process.KERNEL_CACHES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LRU_CACHE_CAPACITY", "7")
    tiny.make(world, tmp_path / "run", until="collect")
    assert os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == "16" and os.environ["LRU_CACHE_CAPACITY"] == "7"
