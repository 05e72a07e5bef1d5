"""Arguments of chat templates, system messages, and the token that ends an answer in a template: the same for training,
evaluation and export."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import GenerationConfig

import fake_vllm
import tiny
from chat_model import END_TOKENS, save_chat_model, save_end_model
from expect import user_error
from potstill import inference, models, preflight, runner, storage
from potstill.cli import export
from potstill.data import run_questions
from potstill.evaluation import checkpoint
from potstill.export import lm_eval
from potstill.export.source import open_exported_run
from potstill.inference import Decode, Request
from potstill.inference.transformers import TransformersEngine
from potstill.models import ChatSettings
from potstill.models.chat_template import find_template_arguments
from potstill.prompts import FORMATS, build_prompt
from potstill.records import Checkpoint
from potstill.stages import open_stage
from potstill.storage import manifest
from potstill.training import examples

# As Qwen3 writes it.
THINKING = (
    "{% for m in messages %}<|start|>{{ m.role }}\n{{ m.content }}<|stop|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
OPENS = THINKING.replace(
    "{% if enable_thinking is defined",
    "{% if not enable_thinking is defined %}<think>\n{% endif %}{% if enable_thinking is defined",
)
# As SmolLM2 writes it: a system message of its own, unless there is another.
DEFAULT_SYSTEM = (
    "{% for m in messages %}{% if loop.first and messages[0]['role'] != 'system' %}<|start|>system\nBe brave<|stop|>\n"
    "{% endif %}<|start|>{{ m.role }}\n{{ m.content }}<|stop|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
# As Gemma 2 writes it.
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + THINKING
IGNORES_SYSTEM = THINKING.replace(
    "<|start|>{{ m.role }}\n{{ m.content }}<|stop|>\n",
    "{% if m.role != 'system' %}<|start|>{{ m.role }}\n{{ m.content }}<|stop|>\n{% endif %}",
)
PROMPT = build_prompt("What is 1 + 1?", FORMATS["zero-shot-answer"])
USER = "<|start|>user\nQ: What is 1 + 1? A:<|stop|>\n<|start|>assistant\n"


def opened(folder: Path, **settings: Any) -> models.ChatTemplate:
    chat = models.open_chat_template(folder, ChatSettings(True, **settings), "causal")
    assert chat is not None
    return chat


@pytest.fixture(scope="module")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_chat_model(tmp_path_factory.mktemp("models") / "thinker", THINKING)


def test_arguments_reach_the_template(thinker: Path) -> None:
    assert opened(thinker).render(PROMPT) == USER
    without = opened(thinker, kwargs={"enable_thinking": False})
    assert without.render(PROMPT) == USER + "<think>\n\n</think>\n\n"
    assert (opened(thinker).thinking_switch, without.thinking_switch) == ("enable_thinking", None)


def test_arguments_without_effect_are_refused(thinker: Path) -> None:
    with user_error("E-model-template-argument-unknown", found="enable_thinkin", hint="it reads enable_thinking"):
        opened(thinker, kwargs={"enable_thinkin": False})
    for name in ("messages", "add_generation_prompt", "tokenize", "tools"):
        with user_error("E-model-template-argument-reserved", found=name):
            opened(thinker, kwargs={name: False})
    with user_error("E-model-chat-settings-unused", where="student.system_prompt"):
        models.open_chat_template(thinker, ChatSettings(False, system_prompt="Be brief."), "causal")


def test_a_template_reads_names_that_it_may_set_itself() -> None:
    """Llama 3.1 sets a date unless it is given."""
    source = "{% if not date_string is defined %}{% set date_string = '26 Jul 2024' %}{% endif %}{{ date_string }}"
    assert "date_string" in find_template_arguments(source)
    loop = (
        "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}"
        "{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
    )
    assert find_template_arguments(loop) == {"messages"}


def test_a_system_message_is_first_and_an_empty_one_is_none(tmp_path: Path) -> None:
    brave = save_chat_model(tmp_path / "brave", DEFAULT_SYSTEM)
    plain = save_chat_model(tmp_path / "plain", THINKING)
    assert opened(brave).render(PROMPT) == "<|start|>system\nBe brave<|stop|>\n" + USER
    for folder in (brave, plain):
        assert (
            opened(folder, system_prompt=" Be brief. ").render(PROMPT) == "<|start|>system\nBe brief.<|stop|>\n" + USER
        )
    # The template's own message becomes empty; a template without one writes none.
    assert opened(brave, system_prompt="").render(PROMPT) == "<|start|>system\n<|stop|>\n" + USER
    assert opened(plain, system_prompt="").render(PROMPT) == USER
    refusing = save_chat_model(tmp_path / "refusing", NO_SYSTEM)
    assert opened(refusing, system_prompt="").render(PROMPT) == USER
    with user_error("E-model-system-prompt-refused", found="no system"):
        opened(refusing, system_prompt="Be brief.")
    with user_error("E-model-system-prompt-ignored"):
        opened(save_chat_model(tmp_path / "ignoring", IGNORES_SYSTEM), system_prompt="Be brief.")
    with user_error("E-model-special-token-in-prompt"):
        opened(plain, system_prompt="Say <|stop|>.").render(PROMPT)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ("student.system_prompt=Hi", "E-recipe-chat-settings"),  # a student with random weights
        ("teacher={kind: openai, model: m, system_prompt: Hi}", "E-recipe-chat-settings"),
        ("teacher={kind: human, chat_template_kwargs: {a: 1}}", "E-recipe-teacher-key"),
        ("teacher={kind: local, model: m, chat: false, system_prompt: Hi}", "E-recipe-chat-settings"),
    ],
)
def test_recipes_that_have_no_template_refuse_its_settings(world: Path, change: str, code: str) -> None:
    with user_error(code):
        tiny.recipe(world, change)


def test_training_evaluation_and_export_render_the_same(thinker: Path, world: Path, tmp_path: Path) -> None:
    base = f"student={{model: {thinker}, chat_template_kwargs: {{enable_thinking: false}}, system_prompt: Be brief.}}"
    changes = (base, "train.steps=1", "train.checkpoint_every=1")
    recipe = tiny.recipe(world, *changes)
    run_dir = tiny.make(world, tmp_path / "run", *changes)
    trained = checkpoint.open_checkpoint(run_dir, recipe, Checkpoint(1))
    table, engine = run_questions.read_task_prompts(run_dir), TransformersEngine(trained)
    questions = run_questions.read_questions(run_dir, ["sums"], "train")
    asked = [
        trained.render(run_questions.evaluation_prompt(q, FORMATS["zero-shot-rationale"], table)) for q in questions
    ]
    for text in asked:
        assert text.startswith("<|start|>system\nBe brief.<|stop|>\n") and text.endswith("<think>\n\n</think>\n\n")
    rows = examples.read_training_data(run_dir, recipe, models.from_recipe(recipe)).examples(1)
    taught = {row.prompt for row in rows if row.format == "zero-shot-rationale"}
    assert taught and taught <= {tuple(engine.student.encode(text)) for text in asked}
    lm_eval.export_tasks(open_exported_run(run_dir), tmp_path / "tasks")
    tasks = storage.read_jsonl(tmp_path / "tasks" / "potstill_sums_zero_shot_rationale.jsonl")
    assert all(row["prompt"].endswith("<think>\n\n</think>\n\n") for _, row in tasks)
    row = json.loads(next(iter(export.export_rows(run_dir, "messages"))))
    assert row["messages"][0] == {"role": "system", "content": "Be brief."}
    assert row["chat_template_kwargs"] == {"enable_thinking": False}
    # Other settings are another run, and the stage says so.
    for other in ("student.system_prompt=Be long.", "student.chat_template_kwargs={enable_thinking: true}"):
        with user_error("E-run-stage-differs", found=other.partition("=")[0]):
            runner.run(tiny.recipe(world, *changes, other), run_dir=run_dir)


def test_settings_that_are_not_given_are_in_no_manifest(thinker: Path, world: Path, tmp_path: Path) -> None:
    run_dir = tiny.make(world, tmp_path / "run", f"student={{model: {thinker}}}", "train.steps=1", until="train")
    for stage in ("sample", "train"):
        done = manifest.read_finished(run_dir / stage)
        assert done is not None
        keys = {*done.identity.recipe, *done.identity.inputs}
        assert not [key for key in keys if "system_prompt" in key or "chat_template_kwargs" in key]


def test_a_local_teacher_has_the_same_settings(thinker: Path, world: Path) -> None:
    section = "teacher={kind: local, model: %s, system_prompt: Be brief., chat_template_kwargs: {%s: false}}"
    recipe = tiny.recipe(world, section % (thinker, "enable_thinking"))
    assert not preflight.find_problems(recipe, ("sample",))
    unknown = tiny.recipe(world, section % (thinker, "enable_thoughts"))
    [problem] = preflight.find_problems(unknown, ("sample",))
    assert problem.fault.code == "E-model-template-argument-unknown"
    assert problem.fault.where == "teacher.chat_template_kwargs"
    assert "teacher.system_prompt" in runner_keys(recipe) and "teacher.system_prompt" not in runner_keys(
        tiny.recipe(world)
    )


def runner_keys(recipe: Any) -> set[str]:
    from potstill.recipe import flatten_keys

    return {key for key, value in flatten_keys(recipe, "teacher").items() if value is not None}


@pytest.mark.parametrize("kind", sorted(END_TOKENS))
def test_the_end_of_a_turn_is_taught_generated_and_exported(kind: str, tmp_path: Path) -> None:
    """The tokenizer's own token ends a document, the template's ends a turn. Both end a text, and the latter is taught."""
    turn, document = save_end_model(folder := tmp_path / kind, kind)
    student = models.open_student(folder, chat_template=True)
    plain = models.open_student(folder)
    specials = student.tokenizer.vocabulary.specials
    assert plain.tokenizer.eos == specials[document] and student.tokenizer.eos == specials[turn]
    assert student.tokenizer.digest == plain.tokenizer.digest and student.tokenizer.files == plain.tokenizer.files
    engine = TransformersEngine(student)
    assert set(engine.end_tokens) == {specials[turn], specials[document]}
    student.save(tmp_path)
    assert set(GenerationConfig.from_pretrained(tmp_path).eos_token_id) == {specials[turn], specials[document]}
    again = models.open_student(tmp_path, chat_template=True)
    assert again.tokenizer.eos == specials[turn]
    assert set(TransformersEngine(again).end_tokens) == set(engine.end_tokens)


@pytest.mark.parametrize("kind", sorted(END_TOKENS))
@pytest.mark.parametrize("engine_kind", ["transformers", "ctranslate2", "vllm"])
def test_every_end_token_stops_an_engine(
    kind: str, engine_kind: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that always writes one token: each of the two ends its text at once."""
    if engine_kind == "ctranslate2":
        pytest.importorskip("ctranslate2")
    monkeypatch.setitem(sys.modules, "vllm", fake_vllm)
    turn, document = save_end_model(folder := tmp_path / kind, kind)
    student = models.open_student(folder, chat_template=True)
    specials = student.tokenizer.vocabulary.specials
    for token in (specials[turn], specials[document]):
        make_constant(student, token)
        engine = inference.open_engine(student, engine_kind)
        [text] = engine.generate([Request(("q", 0), engine.encode(PROMPT))], Decode(5, likelihood=True))
        assert (text.ids, text.stop) == ((), "end")
        assert text.likelihood is not None and text.likelihood > -1, "the token that was written, not another end"


def make_constant(student: models.Student, token: int) -> None:
    """Every position predicts the token: its row of the head follows the one state that all positions have."""
    import torch

    with torch.no_grad():
        for name, value in student.model.named_parameters():
            if "norm" in name or "embed_tokens" in name:
                value.fill_(1.0)
            elif "lm_head" in name:
                value.fill_(0.0)
                value[token] = 1.0
            else:
                value.zero_()


def test_targets_end_with_the_end_of_the_turn(world: Path, tmp_path: Path) -> None:
    save_end_model(folder := tmp_path / "gemma", "gemma")
    changes = (f"student={{model: {folder}}}", "train.steps=1", "train.checkpoint_every=1")
    recipe = tiny.recipe(world, *changes)
    run_dir = tiny.make(world, tmp_path / "run", *changes)
    student = models.from_recipe(recipe)
    end = student.tokenizer.vocabulary.specials["<end_of_turn>"]
    rows = examples.read_training_data(run_dir, recipe, student).examples(1)
    assert rows and {row.target.ids[-1] for row in rows if row.target.kinds[-1] == "end"} == {end}
    assert end in json.loads((run_dir / "student" / "generation_config.json").read_text())["eos_token_id"]
    assert open_stage("align").inputs(recipe)["student.chat (end of turn)"] == str(end)
    plain = tiny.recipe(world, *changes, "student.chat=false")
    assert "student.chat (end of turn)" not in open_stage("align").inputs(plain)
    with user_error("E-run-stage-differs", where="align"):
        runner.run(plain, run_dir=run_dir)


def test_a_tokenizer_whose_end_is_the_templates_end_is_left_alone(tmp_path: Path) -> None:
    folder = save_chat_model(tmp_path / "m", THINKING.replace("<|stop|>", "</s>"))
    settings = ChatSettings(True)
    assert models.end_of_turn_identity(folder, settings) == {}, "an end that is no token"
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"eos_token": "<|stop|>"}))
    assert models.end_of_turn_identity(folder, settings) == {}, "</s> is no token of this tokenizer"
    (folder / "chat_template.jinja").write_text(THINKING)
    assert models.end_of_turn_identity(folder, settings) == {}
