"""Chat templates: golden text, the same prompt in training and evaluation, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

import tiny
from potstill import exam, files, lessons, plan, run, students, tokenizers
from potstill.cli import lm_eval
from potstill.contenders import Contender
from potstill.engines.transformers import Engine
from potstill.errors import UserError
from potstill.prompts import FORMATS, Demonstration, build
from potstill.questions import collected
from potstill.students import Shape

TEXTS = ["Q: Tom has 2 apples and buys 3. How many? A: 2 + 3 = 5. The answer is 5", "user assistant system day"]
SPECIAL = ["<|start|>", "<|stop|>"]
TEMPLATE = (
    "{{ bos_token }}{% if strftime_now is defined %}{{ strftime_now('%d') }}\n{% endif %}"
    "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|stop|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
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
PROMPT = build("What is 1 + 1?", FORMATS["few-shot-rationale"], SHOTS)


def folder(at: Path, template: str | None = TEMPLATE, family: str = "causal") -> Path:
    """A tiny student with random weights whose tokenizer has a template."""
    at.mkdir()
    base = tokenizers.train_bpe(TEXTS, 290) if family == "causal" else tokenizers.train_unigram(TEXTS, 60)
    for name, content in base.files.items():
        (at / name).write_bytes(content)
    library = AutoTokenizer.from_pretrained(at)
    library.add_special_tokens({"additional_special_tokens": SPECIAL, "bos_token": SPECIAL[0]})
    library.chat_template = template
    library.save_pretrained(at)
    tokenizer = tokenizers.open(at)
    students.initialise(Shape(family, 16, 1, 2, 24, 8, tokenizer.size), tokenizer, seed=1).save(at)  # pyright: ignore
    return at


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder(tmp_path_factory.mktemp("models") / "tuned")


def test_the_rendered_prompt_is_golden_and_its_day_never_changes(tuned: Path):
    assert students.open(tuned, chat_template="auto").render(PROMPT) == GOLDEN
    assert students.open(tuned, chat_template=False).render(PROMPT) == PROMPT.plain + PROMPT.lead


def test_ids_are_those_that_transformers_gives_to_the_messages(tuned: Path, tmp_path: Path):
    student, library = students.open(tuned, chat_template=True), AutoTokenizer.from_pretrained(tuned)
    ids = student.encode(student.render(PROMPT))
    own = TEMPLATE.replace("{{ strftime_now('%d') }}", "26 Jul 2024")
    assert ids == library.apply_chat_template(
        PROMPT.messages, chat_template=own, add_generation_prompt=True, tokenize=True, return_dict=False
    )
    assert ids.count(student.tokenizer.vocabulary.specials["<|stop|>"]) == 3
    written = students.open(tuned, chat_template=False)
    assert not set(written.encode(GOLDEN)) & {student.tokenizer.vocabulary.specials[name] for name in SPECIAL}


def test_a_saved_student_is_spoken_to_as_before(tuned: Path, tmp_path: Path):
    students.open(tuned, chat_template=True).save(tmp_path)
    assert students.open(tmp_path, chat_template=True).render(PROMPT) == GOLDEN


def test_a_template_in_the_tokenizers_configuration_is_found(tuned: Path, tmp_path: Path):
    at = folder(tmp_path / "old")
    (at / "chat_template.jinja").unlink()
    config = json.loads((at / "tokenizer_config.json").read_text())
    (at / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": TEMPLATE}))
    assert students.open(at, chat_template=True).render(PROMPT) == GOLDEN


def test_what_cannot_be_is_one_message(tuned: Path, tmp_path: Path):
    without = folder(tmp_path / "without", template=None)
    assert students.open(without, chat_template="auto").render(PROMPT) == PROMPT.plain + PROMPT.lead
    with pytest.raises(UserError, match="there is no chat template"):
        students.open(without, chat_template=True)
    t5 = folder(tmp_path / "t5", family="t5")
    assert students.open(t5, chat_template="auto").render(PROMPT) == PROMPT.plain
    with pytest.raises(UserError, match="a T5 has no chat template"):
        students.open(t5, chat_template=True)
    with pytest.raises(UserError, match="special token of the model"):
        students.open(tuned, chat_template=True).render(build("Is <|stop|> a word?", FORMATS["zero-shot-answer"]))
    refusing = folder(tmp_path / "refusing", template="{{ raise_exception('no turns today') }}")
    with pytest.raises(UserError, match="no turns today"):
        students.open(refusing, chat_template=True).render(PROMPT)


def test_training_and_evaluation_ask_with_the_same_ids(tuned: Path, world: Path, tmp_path: Path):
    """A whole run of a tuned student; its checkpoint, opened as evaluation opens it, reads what the lesson taught."""
    changes = (f"student={{model: {tuned}}}", "train.steps=1", "train.checkpoint_every=1")
    asked = tiny.recipe(world, *changes)
    assert "in its own chat template" in plan.text(asked)
    at = tiny.make(world, tmp_path / "run", *changes)
    trained = exam.open_contender(at, asked, Contender(1))
    rows = lessons.read(at, asked, students.base(asked)).examples(1)
    taught = {row.prompt for row in rows if row.format == "zero-shot-rationale"}
    start = trained.tokenizer.vocabulary.specials["<|start|>"]
    assert taught and all(ids[0] == start for ids in taught)
    # The same questions, through the engine that answers in evaluation.
    table, engine = collected.shots(at), Engine(trained)
    questions = collected.questions(at, ["sums"], "train")
    shown = {engine.encode(collected.prompt_of(q, FORMATS["zero-shot-rationale"], table)) for q in questions}
    assert taught <= shown
    assert "own chat template" in (at / "student" / "README.md").read_text()
    lm_eval.export(at, tmp_path / "tasks")
    documents = files.read_jsonl(tmp_path / "tasks" / "potstill_other_zero_shot_rationale.jsonl")
    assert all(row["prompt"].endswith("<|stop|>\n<|start|>assistant\n") for _, row in documents)
    plain = tiny.recipe(world, *changes, "student.chat=false")
    with pytest.raises(UserError, match=r"student\.chat"):
        run.run(plain, folder=at)
