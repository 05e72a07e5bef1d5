"""Several processes: their gradient equals that of one process, with whole and with sharded parameters; runs are killed and
resumed with another number of processes."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.distributed.tensor import DTensor
from transformers import AutoModelForSeq2SeqLM

import tiny
from expect import user_error
from potstill import process, training
from potstill.errors import UserError
from potstill.models import Student
from potstill.training.checkpoints import OPTIMIZER_FILE, CheckpointWriter
from potstill.training.distributed import Sharding
from process_group import gloo, together
from training_steps import (
    gradients,
    gradients_agree,
    make_student,
    micro_batches,
    optimizer_after_a_step,
    train,
    training_examples,
)

SHARDINGS: tuple[Sharding, ...] = ("none", "full")
# Cuts `one`, `two` and `four` are accumulation 1, 2 and 4; all but `two` and `four` leave the second process a filler.
CASES: list[tuple[str, str, Sharding]] = [
    *((family, cuts, kind) for family in ("t5", "causal") for cuts in ("one", "two", "four") for kind in SHARDINGS),
    ("t5-tied", "two", "full"),
    ("causal-tied", "two", "full"),
]


def whole(values: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {n: (v.full_tensor() if isinstance(v, DTensor) else v).detach().clone() for n, v in values.items()}


def compute(rank: int, folder: Path) -> None:
    """The gradients of all cases, and what two steps come to."""
    gloo(folder, rank)
    for family, cuts, sharding in CASES:
        student = make_student(family)
        model = training.distribute_student(student, sharding)
        own = dict(student.named_parameters())
        if sharding == "full":
            assert all(isinstance(value, DTensor) for value in own.values())
            held = sum(value.to_local().numel() for value in own.values() if isinstance(value, DTensor))
            assert held < 0.6 * sum(value.numel() for value in own.values())
        else:
            assert model is not student
        sums = training.accumulate_gradient(model, micro_batches(student, cuts), step=1, seed=1)
        at = folder / f"{family}.{cuts}.{sharding}.{rank}"
        if cuts == "two" and sharding == "full":
            weights = training.full_state_dict(student)
            if rank == 0:
                (folder / family).mkdir()
                student.save(folder / family, weights=weights)
        save_file(whole(gradients(student)), f"{at}.gradient")
        student.zero_grad(set_to_none=True)
        if cuts == "four":
            metrics = train(student, 1, 2, training.build_optimizer(model), model=model)
            save_file(whole(own), f"{at}.weights")
            told = [[step.loss, step.gradient_norm, step.positions] for step in metrics]
            Path(f"{at}.json").write_text(json.dumps([dict(sums.losses), sums.tokens, told]))


def test_two_processes_have_the_gradient_of_one(tmp_path: Path) -> None:
    assert together(2, compute, tmp_path) == [0, 0]
    for family, cuts, sharding in CASES:
        at = [tmp_path / f"{family}.{cuts}.{sharding}.{rank}" for rank in range(2)]
        student = make_student(family)
        sums = training.accumulate_gradient(student, micro_batches(student, cuts), step=1, seed=1)
        both = [load_file(f"{each}.gradient") for each in at]
        assert gradients_agree(both[0], gradients(student)), (family, cuts, sharding)
        assert all(torch.equal(both[0][name], both[1][name]) for name in both[0])
        if (tmp_path / family).exists():  # gathered, it is the folder that one process saves
            plain = tmp_path / f"{family}.plain"
            plain.mkdir(exist_ok=True)
            student.save(plain)
            for path in plain.iterdir():
                assert path.read_bytes() == (tmp_path / family / path.name).read_bytes(), (family, path.name)
        if cuts != "four":
            continue
        student.zero_grad()
        metrics = train(student, 1, 2, training.build_optimizer(student))
        weights = [load_file(f"{each}.weights") for each in at]
        assert gradients_agree(
            weights[0], dict(student.named_parameters()), 1e-4
        )  # Adam divides by gradients close to 0
        assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
        told = [json.loads(Path(f"{each}.json").read_text()) for each in at]
        assert told[0] == told[1]
        losses, tokens, rows = told[0]
        assert losses == pytest.approx(dict(sums.losses)) and tokens == sums.tokens
        for step, row in zip(metrics, rows, strict=True):
            assert row == pytest.approx([step.loss, step.gradient_norm, step.positions], rel=1e-4)


def vary(rank: int, folder: Path) -> None:
    """What else a spread student has to agree with: recomputed layers, bfloat16, clipping, and a loss that is not a
    number."""
    gloo(folder, rank)
    for family in ("t5", "causal"):
        for change in ("gradient_checkpointing", "bfloat16"):
            student = make_student(family)
            if change == "gradient_checkpointing":
                student.enable_gradient_checkpointing()
            precision = "bfloat16" if change == "bfloat16" else "float32"
            training.distribute_student(student, "full", precision)
            training.accumulate_gradient(student, micro_batches(student, "four"), step=1, seed=1, precision=precision)
            found = gradients(student)
            assert {value.dtype for value in found.values()} == {torch.float32}
            save_file(whole(found), f"{folder}/{family}.{change}.{rank}")
    student = make_student("t5")
    model = training.distribute_student(student, "full")
    before = whole(dict(student.named_parameters()))
    optimizer = torch.optim.SGD(student.named_parameters(), 1.0)
    train(student, 1, 1, optimizer, model=model, max_grad_norm=0.01, schedule=lambda _: 1.0)
    after = whole(dict(student.named_parameters()))
    moved = torch.stack([(after[name] - before[name]).norm() for name in before]).norm()
    assert float(moved) == pytest.approx(0.01, rel=1e-3)
    student = make_student("t5")  # what one process left behind
    adam = training.build_optimizer(training.distribute_student(student, "full"))
    training.restore_optimizer_bytes(adam, (folder / "engine").read_bytes())
    left = training.optimizer_state(adam)
    assert all(isinstance(value, DTensor) for value in left.values() if value.ndim)
    save_file(whole(left), folder / f"{rank}.engine")
    student = broken()
    training.distribute_student(student, "full")
    with pytest.raises(UserError) as error:
        training.accumulate_gradient(student, micro_batches(student, "seven"), step=3, seed=1)
    (folder / f"{rank}.txt").write_text(str(error.value))


def broken() -> Student:
    """A student for whom only what the second process meets first is not a number."""
    student = make_student("t5")
    made = training_examples(student)
    token = next(iter(set(made[1].prompt) - set(made[0].prompt)))
    with torch.no_grad():
        student.model.get_input_embeddings().weight[token] = torch.nan  # pyright: ignore
    return student


def test_a_spread_student_recomputes_rounds_clips_and_stops_as_one_that_is_whole(tmp_path: Path) -> None:
    left = training.optimizer_state_bytes(optimizer_after_a_step(make_student("t5")))
    (tmp_path / "engine").write_bytes(left)
    assert together(2, vary, tmp_path) == [0, 0]
    assert all((tmp_path / f"{rank}.engine").read_bytes() == left for rank in range(2))
    for family in ("t5", "causal"):
        student = make_student(family)
        training.accumulate_gradient(student, micro_batches(student, "four"), step=1, seed=1)
        exact = gradients(student)
        assert gradients_agree(load_file(tmp_path / f"{family}.gradient_checkpointing.0"), exact)
        low = load_file(tmp_path / f"{family}.bfloat16.0")
        assert gradients_agree(low, exact, 0.1) and not gradients_agree(low, exact, 1e-6)
    student = broken()
    with pytest.raises(UserError) as error:
        training.accumulate_gradient(student, micro_batches(student, "seven"), step=3, seed=1)
    assert error.value.code == "E-train-not-finite" and error.value.found == "questions q1"
    assert [(tmp_path / f"{rank}.txt").read_text() for rank in range(2)] == [str(error.value)] * 2


FULL = ("train.sharding=full", "train.evaluate=true")


def trained(rank: int, world: Path, run_dir: Path, stop: int | None) -> None:
    """The stage train, under a launcher; the second process is killed after its `stop`-th step's checkpoint."""
    save = CheckpointWriter.save

    def killed(self: CheckpointWriter, step: int) -> None:
        save(self, step)
        if step == stop and rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    CheckpointWriter.save = killed
    tiny.make(world, run_dir, *FULL, until="train")


@pytest.fixture(scope="module")
def aligned(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A new copy of a run that is ready to be trained."""
    base = tiny.make(world, tmp_path_factory.mktemp("aligned") / "run", until="align")

    def copy(name: str) -> Path:
        return Path(shutil.copytree(base, base.parent / name))

    return copy


def step_of(run: Path, step: int) -> Path:
    return run / "train" / "checkpoints" / str(step)


def lasting(run: Path) -> dict[str, bytes]:
    """Every digested file, but for the shards, whose headers stand in an order that safetensors draws at random."""
    found = {name: content for name, content in tiny.contents(run).items() if "/engine/" not in name}
    return {name: content for name, content in found.items() if name != "train/manifest.json"}


def spread(run: Path) -> list[dict[str, list[Any]]]:
    """What the shards of the newest checkpoint hold."""
    shards = sorted(step_of(run, 4).glob("engine/*.safetensors"))
    return [{name: value.tolist() for name, value in load_file(shard).items()} for shard in shards]


def weights_of(run: Path, step: int = 4) -> dict[str, torch.Tensor]:
    return load_file(step_of(run, step) / "model.safetensors")


def test_a_run_of_two_processes_is_killed_resumed_and_goes_on_in_one(world: Path, aligned: Callable[[str], Path]):
    one = tiny.make(world, aligned("one"), until="train")
    two, cut_off = aligned("two"), aligned("cut")
    assert together(2, trained, world, two, None) == [0, 0]
    # In form what one process makes, but for the engine's state, and to the rounding of sums the same weights.
    for step in (2, 4):
        names = [{path.name for path in step_of(folder, step).iterdir()} - {"engine"} for folder in (one, two)]
        assert names[0] - {OPTIMIZER_FILE} == names[1]
        for name in names[1] - {"model.safetensors"}:
            assert (step_of(one, step) / name).read_bytes() == (step_of(two, step) / name).read_bytes(), name
    assert gradients_agree(weights_of(two), weights_of(one), 1e-4)
    assert len(list(step_of(two, 4).glob("engine/*.safetensors"))) == 2 and not (step_of(two, 2) / "engine").exists()
    model, found = AutoModelForSeq2SeqLM.from_pretrained(step_of(two, 4), output_loading_info=True)
    assert not found["missing_keys"] and not found["unexpected_keys"]
    assert torch.equal(model.state_dict()["lm_head.weight"], weights_of(two)["lm_head.weight"])
    # Killed after the first checkpoint, and resumed by as many: the same bytes.
    assert together(2, trained, world, cut_off, 2)[1] == -signal.SIGKILL
    assert [path.name for path in (cut_off / "train" / "checkpoints").iterdir()] == ["2"]
    alone = Path(shutil.copytree(cut_off, cut_off.parent / "alone"))
    assert together(2, trained, world, cut_off, None) == [0, 0]
    assert lasting(cut_off) == lasting(two) and spread(cut_off) == spread(two)
    assert together(2, trained, world, cut_off, None) == [0, 0]  # it is there: nobody waits for anybody
    # What was answered on the way is what `evaluate` finds, whatever becomes of the engine's state.
    answers = (two / "evaluate" / "2" / "manifest.json").read_bytes()
    tiny.make(world, two, *FULL, until="evaluate")
    assert (two / "evaluate" / "2" / "manifest.json").read_bytes() == answers and b"/engine" not in answers
    # By one, which a recipe of `full` has to be told.
    with user_error("E-train-sharding-needs-processes"):
        tiny.make(world, alone, *FULL, until="train")
    shard = min(step_of(alone, 2).glob("engine/*.safetensors"))
    good = shard.read_bytes()
    shard.write_bytes(good[:-1] + b"\x01")
    with user_error("E-train-optimizer-state-damaged"):
        tiny.make(world, alone, until="train")
    shard.write_bytes(good)
    tiny.make(world, alone, until="train")
    assert gradients_agree(weights_of(alone), weights_of(two), 1e-4) and (step_of(alone, 4) / OPTIMIZER_FILE).exists()


def test_a_process_alone_under_a_launcher_stays_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    student = make_student("t5")
    with pytest.raises(UserError, match="torchrun"):
        training.distribute_student(student, "full")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert training.distribute_student(student, "full") is student and not training.is_sharded(student)
    assert (
        training.full_state_dict(student) is None
        and training.is_main_process()
        and training.broadcast_from_main(lambda: 3) == 3
    )


def test_shards_of_one_process_are_read_again_and_those_of_another_model_refused(tmp_path: Path) -> None:
    adam = optimizer_after_a_step(make_student("t5"))
    training.save_optimizer_shards(adam, tmp_path)
    again = training.build_optimizer(make_student("t5"))
    training.restore_optimizer_shards(again, tmp_path)
    first, second = training.optimizer_state(adam), training.optimizer_state(again)
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    with user_error("E-train-optimizer-state-of-another-model"):
        training.restore_optimizer_shards(training.build_optimizer(make_student("causal")), tmp_path)


def test_the_address_of_the_first_process() -> None:
    slurm = {"SLURM_PROCID": "9", "SLURM_STEP_NUM_TASKS": "16", "SLURM_LOCALID": "1"}
    assert process.read_process_rank(slurm) == process.ProcessRank(9, 16, 1, True)
    assert process.read_main_address({"MASTER_ADDR": "host", "MASTER_PORT": "7"}) == ("host", 7)
    assert process.read_main_address({"SLURM_STEP_NODELIST": "a1,b2", "SLURM_JOB_ID": "3"}) == ("a1", 20003)
    with pytest.raises(UserError) as error:
        process.read_main_address({"SLURM_JOB_ID": "3"})
    assert error.value.code == "E-run-missing-main-address"
