"""The public API `import potstill as ps` does what the documentation promises."""

from __future__ import annotations

import itertools
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch

import potstill as ps
from potstill.records import BASE


def test_the_package_says_its_version_and_its_names() -> None:
    assert set(ps.__all__) <= set(dir(ps)) and ps.__version__ == metadata.version("potstill")
    for name in ps.__all__:
        assert getattr(ps, name) is not None
    with pytest.raises(AttributeError, match="nothing_of_this_name"):
        _ = ps.nothing_of_this_name
    assert (Path(ps.__file__).parent / "py.typed").exists()


def test_importing_the_package_loads_nothing_heavy() -> None:
    program = "import sys, potstill; print(*sorted(name.split('.')[0] for name in sys.modules))"
    completed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert {"torch", "numpy", "pyarrow", "pydantic", "transformers"}.isdisjoint(completed.stdout.split())


def test_grade() -> None:
    assert ps.grade("The answer is $18.", "18", task="gsm8k").grade == "right"


def test_a_run_gives_its_records(finished: Path) -> None:
    run = ps.open_run(str(finished))
    assert str(finished) in repr(run) and len(repr(run)) < 300
    questions = list(run.questions("train"))
    assert questions and all(question.split == "train" for question in questions)
    everything, kept = list(run.chains()), list(run.chains(kept=True))
    assert kept and kept == [(chain, verdict) for chain, verdict in everything if verdict.kept]
    for chain, target in run.targets():
        assert chain.key in {each.key for each, _ in kept} and len(target.ids) > 0
    scores = run.scores("test")
    assert {score.split for score in scores} == {"test"} and {BASE, run.choice} <= {
        score.checkpoint for score in scores
    }
    for prediction in itertools.islice(run.predictions("test"), 3):
        assert prediction.grade in ("right", "wrong", "no answer", "truncated")
    student = run.student()
    assert isinstance(student.model, torch.nn.Module) and len(repr(student.tokenizer)) < 300


@pytest.mark.parametrize(
    "call, code",
    [
        (lambda run: list(run.questions()), "E-run-stage-not-finished"),
        (lambda run: list(run.chains()), "E-run-stage-not-finished"),
        (lambda run: list(run.targets()), "E-run-stage-not-finished"),
        (lambda run: run.scores("test"), "E-run-stage-not-finished"),
        (lambda run: run.choice, "E-run-stage-not-finished"),
        (lambda run: run.scores("train"), "E-run-unknown-split"),
    ],
)
def test_what_is_not_there_yet_is_one_message(finished: Path, tmp_path: Path, call, code: str) -> None:
    shutil.copy(finished / "recipe.yaml", tmp_path)
    with pytest.raises(ps.UserError) as error:
        call(ps.open_run(tmp_path))
    assert error.value.code == code


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ps.UserError) as error:
        ps.open_run(tmp_path)
    assert error.value.code == "E-run-not-a-run" and str(tmp_path) in error.value.where


def test_run_is_the_command(tmp_path: Path, finished: Path) -> None:
    again = ps.run(finished / "recipe.yaml", run_dir=finished)  # everything is up to date
    assert again == ps.open_run(finished)
    stopped = ps.run(finished / "recipe.yaml", set={"name": "another"}, run_dir=tmp_path / "another", until="collect")
    assert stopped.recipe.name == "another" and list(stopped.questions("train"))
