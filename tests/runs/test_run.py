"""Whole runs with every kind of teacher and student, from the recipe to the report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import tiny
from potstill import models, runner, storage
from potstill.data import run_questions
from potstill.errors import UserError
from potstill.records import Chain
from potstill.serialization import to_json
from potstill.storage import parquet
from potstill.training import examples

FOLDERS = ("collect", "sample", "filter", "align", "train", "evaluate", "select", "test", "report", "student")
CAUSAL = "student={shape: {family: causal, d_model: 16, layers: 1, heads: 2, d_ff: 32}, tokenizer: teacher}"


def read(path: Path) -> dict:
    return json.loads(path.read_text("utf-8"))


def test_a_run_holds_every_folder_of_the_design(finished: Path) -> None:
    assert {path.name for path in finished.iterdir() if path.is_dir()} == set(FOLDERS)
    assert (finished / "recipe.yaml").is_file() and (finished / "log.jsonl").is_file()
    assert sorted(path.name for path in (finished / "evaluate").iterdir() if path.is_dir()) == ["0", "2", "4"]
    assert sorted(path.name for path in (finished / "train" / "checkpoints").iterdir()) == ["2", "4"]
    assert {path.name for path in (finished / "test").iterdir() if path.is_dir()} == {"0", str(chosen(finished))}
    assert {path.name for path in (finished / "student").iterdir()} >= {"config.json", "model.safetensors", "README.md"}


def chosen(run_dir: Path) -> int:
    return read(run_dir / "select" / "choice.json")["step"]


def test_only_the_newest_checkpoint_keeps_the_engine(finished: Path) -> None:
    kept = [path.parent.name for path in (finished / "train" / "checkpoints").rglob("engine.safetensors")]
    assert kept == ["4"]


def test_splits_share_no_question(finished: Path) -> None:
    seen: dict[str, str] = {}
    for path in (finished / "collect").glob("*.*.jsonl"):
        for _, row in storage.read_jsonl(path):
            assert seen.setdefault(row["text"].casefold(), path.name) == path.name


def test_a_set_that_is_not_taught_wastes_no_question(world: Path, finished: Path) -> None:
    counts = {
        path.stem: sum(1 for _ in storage.read_jsonl(path)) for path in (finished / "collect").glob("other.*.jsonl")
    }
    own = sum(1 for _ in storage.read_jsonl(world / "sets" / "other.jsonl"))
    assert set(counts) == {"other.validation", "other.test"} and sum(counts.values()) == own


def test_every_chain_has_a_verdict_and_every_kept_one_a_target(finished: Path) -> None:
    chains = list(parquet.read_chains(finished / "sample" / "chains.parquet"))
    verdicts = dict(parquet.read_verdicts(finished / "filter" / "verdicts.parquet"))
    assert [chain.key for chain in chains] == sorted(verdicts)
    assert read(finished / "align" / "manifest.json")["counts"]["chains"] == sum(v.kept for v in verdicts.values())
    assert all(len(chain.candidates) >= len(chain.tokens) for chain in chains)


def test_every_step_answers_the_same_questions(finished: Path) -> None:
    for name in ("zero-shot-rationale", "few-shot-answer"):
        answered = []
        for step in ("0", "2", "4"):
            rows = storage.read_jsonl(finished / "evaluate" / step / f"{name}.greedy.jsonl")
            answered.append({row["question"] for _, row in rows})
        assert answered[0] == answered[1] == answered[2] != set()


def test_the_chosen_students_folder_is_the_checkpoint(finished: Path) -> None:
    weights = (finished / "student" / "model.safetensors").read_bytes()
    assert weights == (finished / "train" / "checkpoints" / str(chosen(finished)) / "model.safetensors").read_bytes()


def test_any_hugging_face_tool_loads_the_student(finished: Path) -> None:
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    model = AutoModelForSeq2SeqLM.from_pretrained(finished / "student")
    tokenizer = AutoTokenizer.from_pretrained(finished / "student")
    assert model.generate(**tokenizer("Q: 1 A:", return_tensors="pt"), max_new_tokens=3).shape[0] == 1


@pytest.mark.parametrize("mass", ["raw", "renormalised", "tail"])
def test_a_decoder_only_student_learns_under_every_treatment_of_the_mass(
    world: Path, tmp_path: Path, mass: str
) -> None:
    run_dir = tiny.make(
        world,
        tmp_path / "run",
        CAUSAL,
        f"train.missing_probability={mass}",
        "train.steps=40",
        "train.checkpoint_every=20",
    )
    losses = [row["loss"] for _, row in storage.read_jsonl(run_dir / "train" / "metrics.jsonl")]
    assert losses[-1] < 0.7 * losses[0]
    assert read(run_dir / "student" / "config.json")["model_type"] == "llama"


def test_the_keys_of_training_reach_it(world: Path, tmp_path: Path) -> None:
    keys = (
        "train.optimizer=adafactor",
        "train.precision=bfloat16",
        "train.gradient_checkpointing=true",
        "train.schedule=linear",
        "train.warmup_steps=1",
        "train.stable_steps=2",
    )
    run_dir = tiny.make(world, tmp_path / "run", *keys, until="train")
    rows = [row for _, row in storage.read_jsonl(run_dir / "train" / "metrics.jsonl")]
    assert [row["rate"] for row in rows] == pytest.approx([1e-2, 1e-2, 1e-2, 5e-3])
    assert {row["padding"] for row in rows} == {0.0} and all(0 < row["kept"] <= 1 for row in rows)
    assert all(set(row["taught"]) == set(row["losses"]) for row in rows) and {"hard", "end"} < set(rows[0]["kinds"])
    states = load_file(run_dir / "train" / "checkpoints" / "4" / "engine.safetensors")
    assert {name.rpartition("/")[2] for name in states} == {"step", "row_var", "col_var", "variance"}
    plain = tiny.make(world, tmp_path / "plain", until="train")
    assert {v.dtype for v in load_file(run_dir / "train/checkpoints/4/model.safetensors").values()} == {torch.float32}
    first = next(row for _, row in storage.read_jsonl(plain / "train" / "metrics.jsonl"))
    assert first["loss"] == pytest.approx(rows[0]["loss"], rel=1e-2) and first["loss"] != rows[0]["loss"]
    assert first["tokens"] == rows[0]["tokens"]


def test_a_loss_that_rises_is_said(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.make(world, tmp_path / "wild", "train.learning_rate=50", "train.max_grad_norm=null", until="train")
    assert "lower train.learning_rate" in capsys.readouterr().err
    tiny.make(world, tmp_path / "calm", until="train")
    assert "lower train.learning_rate" not in capsys.readouterr().err


def test_the_chains_of_a_group_share_their_prompt(world: Path, tmp_path: Path) -> None:
    """However small the budget, they stay in one micro-batch, and the prompt is read once."""
    keys = ("train.chains_per_prompt=3", "train.batch_tokens=60", "train.formats={zero-shot-rationale: 1}")
    run_dir = tiny.make(world, tmp_path / "run", *keys, until="align")
    for family in ("t5", "causal"):
        recipe = tiny.recipe(world, *keys, f"student.shape.family={family}")
        student = models.from_recipe(recipe)
        lesson = examples.read_training_data(run_dir, recipe, student)
        batches = lesson.micro_batches(1)
        assert len(batches) > 1 and sum(map(len, batches)) == len(lesson.examples(1)) > recipe.train.prompts_per_step
        prompts = [{example.prompt for example in batch} for batch in batches]
        assert sum(map(len, prompts)) <= recipe.train.prompts_per_step  # fewer where a question comes twice
        read = sum(student.batch(batch).tokens for batch in batches)
        shared = sum(len(prompt) for batch in prompts for prompt in batch)
        assert read <= shared + sum(len(row.target) for row in lesson.examples(1))
        assert read == sum(student.batch(batch).slots for batch in batches)


@pytest.mark.parametrize("rule", ["one-hot", "paper", "span", "text"])
def test_every_transfer_rule_reaches_the_report(world: Path, tmp_path: Path, rule: str) -> None:
    run_dir = tiny.make(world, tmp_path / "run", f"transfer.rule={rule}", "transfer.min_coverage=0.05")
    kinds = read(run_dir / "align" / "manifest.json")["counts"]["coverage"]["all"]
    assert ("same" in kinds) == (rule != "one-hot")


def test_human_rationales_and_stored_chains_teach_too(world: Path, tmp_path: Path) -> None:
    human = tiny.make(world, tmp_path / "human", "teacher={kind: human}", until="align")
    chains = list(parquet.read_chains(human / "sample" / "chains.parquet"))
    assert {chain.semantics for chain in chains} == {"none"} and {chain.source for chain in chains} == {"human"}
    stored = tmp_path / "stored.jsonl"
    storage.write_jsonl(stored, (to_json(chain) for chain in chains))
    replay = tiny.make(world, tmp_path / "replay", f"teacher={{kind: replay, chains: {stored}}}", until="align")
    assert list(parquet.read_chains(replay / "sample" / "chains.parquet")) == chains


def test_stored_chains_about_held_out_questions_are_passed_over(world: Path, tmp_path: Path) -> None:
    stored = tmp_path / "stored.jsonl"
    tiny.make(world, tmp_path / "first", "teacher={kind: human}", until="collect")
    others = [question.id for question in run_questions.read_unused(tmp_path / "first")]
    taught = run_questions.read_questions(tmp_path / "first", ["sums"], "train")
    rows = [Chain.from_text(q.id, 0, f"It is so. The answer is {q.gold}", source="old") for q in taught]
    rows += [Chain.from_text(name, 0, "The answer is 1", source="old") for name in others]
    storage.write_jsonl(stored, map(to_json, rows))
    run_dir = tiny.make(world, tmp_path / "second", f"teacher={{kind: replay, chains: {stored}}}", until="sample")
    assert {chain.question for chain in parquet.read_chains(run_dir / "sample" / "chains.parquet")} == {
        q.id for q in taught
    }
    storage.write_jsonl(stored, [to_json(Chain.from_text("nobody/7", 0, "The answer is 1", source="old"))])
    with pytest.raises(UserError, match="nobody/7"):
        tiny.make(world, tmp_path / "third", f"teacher={{kind: replay, chains: {stored}}}", until="sample")


def test_a_changed_input_is_noticed(world: Path, tmp_path: Path) -> None:
    mine = tiny.world(tmp_path / "mine")
    run_dir = tiny.make(mine, tmp_path / "run", until="filter")
    weights = mine / "teacher" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    with pytest.raises(UserError, match=r"content of teacher\.model"):
        tiny.make(mine, run_dir, until="filter")


def test_the_log_alone_knows_about_time_and_machine(finished: Path) -> None:
    import platform

    host = platform.node().encode()
    assert {row["event"] for _, row in storage.read_jsonl(finished / "log.jsonl")} >= {"start", "done", "train"}
    for name, content in tiny.contents(finished).items():
        assert b"seconds" not in content or name.endswith((".safetensors", ".jsonl")), name
        assert len(host) < 4 or host not in content, name


def test_stages_come_in_their_order(world: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="E-run-unknown-stage"):
        runner.run(tiny.recipe(world), run_dir=tmp_path / "run", until="distil")
