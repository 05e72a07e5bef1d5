"""Chat templates: golden text, the same prompt in training and evaluation, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

import tiny
from chat_model import SPECIAL, TEMPLATE, save_chat_model
from expect import user_error
from potstill import dry_run, models, runner, storage
from potstill.data import run_questions
from potstill.errors import UserError
from potstill.evaluation import checkpoint
from potstill.export import lm_eval
from potstill.export.source import open_exported_run
from potstill.inference.transformers import TransformersEngine
from potstill.prompts import FORMATS, Demonstration, build_prompt
from potstill.records import Checkpoint
from potstill.training import examples

GOLDEN = """<|start|>26 Jul 2024
<|start|>user
Q: What is 2 + 2?
Let's think step by step<|stop|>
<|start|>assistant
2 + 2 = 4.
The answer is 4<|stop|>
<|start|>user
Q: What is 1 + 1?
Let's think step by step<|stop|>
<|start|>assistant
"""
SHOTS = [Demonstration("What is 2 + 2?", "4", "2 + 2 = 4.")]
PROMPT = build_prompt("What is 1 + 1?", FORMATS["few-shot-rationale"], SHOTS)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_chat_model(tmp_path_factory.mktemp("models") / "tuned")


def test_the_rendered_prompt_is_golden_and_its_day_never_changes(tuned: Path):
    assert models.open_student(tuned, chat_template="auto").render(PROMPT) == GOLDEN
    assert models.open_student(tuned, chat_template=False).render(PROMPT) == PROMPT.plain + PROMPT.lead


def test_ids_are_those_that_transformers_gives_to_the_messages(tuned: Path, tmp_path: Path):
    student, library = models.open_student(tuned, chat_template=True), AutoTokenizer.from_pretrained(tuned)
    ids = student.encode(student.render(PROMPT))
    own = TEMPLATE.replace("{{ strftime_now('%d') }}", "26 Jul 2024")
    assert ids == library.apply_chat_template(
        PROMPT.messages, chat_template=own, add_generation_prompt=True, tokenize=True, return_dict=False
    )
    assert ids.count(student.tokenizer.vocabulary.specials["<|stop|>"]) == 3
    written = models.open_student(tuned, chat_template=False)
    assert not set(written.encode(GOLDEN)) & {student.tokenizer.vocabulary.specials[name] for name in SPECIAL}


def test_a_saved_student_is_spoken_to_as_before(tuned: Path, tmp_path: Path):
    models.open_student(tuned, chat_template=True).save(tmp_path)
    assert models.open_student(tmp_path, chat_template=True).render(PROMPT) == GOLDEN


def test_a_template_in_the_tokenizers_configuration_is_found(tuned: Path, tmp_path: Path):
    at = save_chat_model(tmp_path / "old")
    (at / "chat_template.jinja").unlink()
    config = json.loads((at / "tokenizer_config.json").read_text())
    (at / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": TEMPLATE}))
    assert models.open_student(at, chat_template=True).render(PROMPT) == GOLDEN


def test_what_cannot_be_is_one_message(tuned: Path, tmp_path: Path):
    without = save_chat_model(tmp_path / "without", template=None)
    assert models.open_student(without, chat_template="auto").render(PROMPT) == PROMPT.plain + PROMPT.lead
    with user_error("E-model-chat-template-missing"):
        models.open_student(without, chat_template=True)
    t5 = save_chat_model(tmp_path / "t5", family="t5")
    assert models.open_student(t5, chat_template="auto").render(PROMPT) == PROMPT.plain
    with user_error("E-model-chat-template-unsupported"):
        models.open_student(t5, chat_template=True)
    with user_error("E-model-special-token-in-prompt"):
        models.open_student(tuned, chat_template=True).render(
            build_prompt("Is <|stop|> a word?", FORMATS["zero-shot-answer"])
        )
    refusing = save_chat_model(tmp_path / "refusing", template="{{ raise_exception('no turns today') }}")
    with user_error("E-model-chat-template-refused", found="no turns today"):
        models.open_student(refusing, chat_template=True).render(PROMPT)


def test_training_and_evaluation_ask_with_the_same_ids(tuned: Path, world: Path, tmp_path: Path):
    """A whole run of a tuned student; its checkpoint, opened as evaluation opens it, reads what the lesson taught."""
    changes = (f"student={{model: {tuned}}}", "train.steps=1", "train.checkpoint_every=1")
    recipe = tiny.recipe(world, *changes)
    assert "in the chat template (plain" in dry_run.describe_run(recipe)
    run_dir = tiny.make(world, tmp_path / "run", *changes)
    trained = checkpoint.open_checkpoint(run_dir, recipe, Checkpoint(1))
    rows = examples.read_training_data(run_dir, recipe, models.from_recipe(recipe)).examples(1)
    taught = {row.prompt for row in rows if row.format == "zero-shot-rationale"}
    start = trained.tokenizer.vocabulary.specials["<|start|>"]
    assert taught and all(ids[0] == start for ids in taught)
    # The same questions, through the engine that answers in evaluation.
    table, engine = run_questions.read_task_prompts(run_dir), TransformersEngine(trained)
    questions = run_questions.read_questions(run_dir, ["sums"], "train")
    shown = {
        engine.encode(run_questions.evaluation_prompt(q, FORMATS["zero-shot-rationale"], table)) for q in questions
    }
    assert taught <= shown
    assert "own chat template" in (run_dir / "student" / "README.md").read_text()
    lm_eval.export_tasks(open_exported_run(run_dir), tmp_path / "tasks")
    documents = storage.read_jsonl(tmp_path / "tasks" / "potstill_other_zero_shot_rationale.jsonl")
    assert all(row["prompt"].endswith("<|stop|>\n<|start|>assistant\n") for _, row in documents)
    plain = tiny.recipe(world, *changes, "student.chat=false")
    with pytest.raises(UserError, match=r"student\.chat"):
        runner.run(plain, run_dir=run_dir)
