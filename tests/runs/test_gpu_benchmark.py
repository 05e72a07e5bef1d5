"""`benchmarks/gpu.sh` at tiny sizes on the CPU: each measurement gives its values, or says why it was skipped.

The compiled loss is only tested with a machine that compiles (`tests/unit/test_loss_kernels.py`): compiling takes a minute.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import fake_vllm  # noqa: E402
import gpu  # noqa: E402

TINY = argparse.Namespace(device="cpu", tiny=True, repeats=3)
ON_CPU = [name for name in gpu.LIMITS if "compiled" not in name and "vllm" not in name]
VLLM = "generate vllm smollm2-135m"


def run_script(*arguments: str) -> list[dict[str, Any]]:
    command = [str(ROOT / "benchmarks" / "gpu.sh"), *arguments]
    environment = {**os.environ, "PYTHON": sys.executable}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=300)
    return [json.loads(line) for line in done.stdout.splitlines()]


def check_row(row: dict[str, Any]) -> None:
    assert len(row["all"]) == TINY.repeats and min(row["all"]) <= row["seconds"] <= max(row["all"])
    assert row["tokens/s"] > 0 and row.get("peak MiB", 1) > 0 and row["shape"]


@pytest.mark.parametrize("name", ON_CPU)
def test_each_measurement_gives_its_values(name: str) -> None:
    check_row(gpu.measure(name, TINY))
    assert not torch.distributed.is_initialized()


def test_generation_with_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", fake_vllm)
    check_row(gpu.measure(VLLM, TINY))
    assert fake_vllm.STARTED[-1]["dtype"] == "bfloat16"


def test_the_shapes_are_those_of_the_models() -> None:
    counts = {name: gpu.models.student.count_parameters(shape) for name, shape in gpu.STUDENTS.items()}
    assert counts == {"flan-t5-base": 247_577_856, "smollm2-135m": 134_515_008}


@pytest.mark.slow
def test_the_script_prints_a_line_for_each() -> None:
    machine, row = run_script("--device", "cpu", "--tiny", "--repeats", "3", "--only", "loss plain smollm2")
    assert machine["name"] == "machine" and machine["versions"]["torch"]
    assert row["name"] == "loss plain smollm2-135m" and row["tiny"]
    check_row(row)


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_what_is_skipped_says_why() -> None:
    _, *rows = run_script()
    assert [row["name"] for row in rows] == list(gpu.LIMITS)
    assert all(row["skipped"] and "seconds" not in row for row in rows)


def test_one_measurement_stops_no_other(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["gpu.py", "--device", "cpu", "--tiny"]
    monkeypatch.setattr(sys, "argv", [*command, "--seconds", "1"])
    gpu.main()
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    reasons = {row["name"]: row.get("skipped") for row in rows[1:]}
    assert reasons.pop(VLLM) == "vLLM is measured on a GPU only" and {*reasons.values()} == {"no time is left"}
    monkeypatch.setattr(sys, "argv", command)
    assert gpu.run_alone("train flan-t5-base", 0.01) == "it took more than 0 s"
    assert "KeyError" in gpu.run_alone("train flan-t5-enormous", 60)
