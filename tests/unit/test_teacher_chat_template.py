"""A local teacher with a chat template: its prompts use the template, and its thoughts are skipped."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

import tiny
from chat_model import save_chat_model
from potstill import dry_run, inference, models, prompts, teachers
from potstill.errors import UserError
from potstill.recipe import Recipe, parse_recipe
from potstill.records import Question
from potstill.stages import open_stage
from potstill.teachers import local_model, protocol

QUESTIONS = [Question(f"mine/{n}", f"What is {n} + 1?", str(n + 1), "mine", "train", "number", "So.") for n in range(2)]


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_chat_model(tmp_path_factory.mktemp("models") / "tuned")


def asked(model: Path, *more: str, kind: str = "local") -> Recipe:
    who = {"local": f"kind: local, model: {model}", "human": f"kind: human, score: {{model: {model}}}"}[kind]
    length = ", max_tokens: 8" if kind == "local" else ""
    return parse_recipe("name: x", "x.yaml", [f"teacher={{{who}{length}, top_logprobs: 2}}", *more])


@pytest.mark.parametrize("kind", ["local", "human"])
def test_a_teacher_and_a_scorer_are_asked_in_their_own_template(tuned: Path, kind: str) -> None:
    told = {chat: list(teachers.from_recipe(asked(tuned, f"teacher.chat={chat}", kind=kind)).sample(QUESTIONS))
            for chat in ("auto", "true", "false")}  # fmt: skip
    assert told["auto"] == told["true"] != told["false"]
    prompt = protocol.load_prompt_builder(asked(tuned))(QUESTIONS[0])
    rendered = models.open_student(tuned, chat_template=True).render(prompt)
    assert rendered.endswith("<|stop|>\n<|start|>assistant\n") and QUESTIONS[0].text in rendered
    chain = told["auto"][0][0]
    if kind == "human":  # the same text behind the rendered prompt, straight from the engine
        engine = inference.open_engine(tuned, chat_template=True)
        own = next(question for question in QUESTIONS if question.id == chain.question)
        read = local_model.score_chains(
            engine, [(protocol.load_prompt_builder(asked(tuned))(own), chain)], top_logprobs=2, batch_tokens=99
        )
        assert [dict(step).keys() for step in read[0].candidates] == [dict(step).keys() for step in chain.candidates]


def test_what_the_template_comes_to_is_in_the_identity_and_a_plain_model_keeps_its_own(tuned: Path, tmp_path: Path):
    plain = save_chat_model(tmp_path / "plain", template=None)
    t5 = save_chat_model(tmp_path / "t5", family="t5")
    for kind in ("local", "human"):
        assert open_stage("sample").inputs(asked(tuned, kind=kind))["teacher.chat"] == "its template"
        assert "teacher.chat" not in open_stage("sample").inputs(asked(tuned, "teacher.chat=false", kind=kind))
        for model in (plain, t5):
            assert "teacher.chat" not in open_stage("sample").inputs(asked(model, kind=kind))
        assert "teacher.chat" in open_stage("sample").free(asked(tuned, kind=kind)), "the key itself is in no identity"


def test_a_template_that_is_asked_for_and_not_there_is_the_users_to_correct(tmp_path: Path) -> None:
    plain, t5 = save_chat_model(tmp_path / "plain", template=None), save_chat_model(tmp_path / "t5", family="t5")
    for model in (plain, t5):
        with pytest.raises(UserError, match=r"teacher\.chat(.|\n)*E-model-chat-template-"):
            next(teachers.from_recipe(asked(model, "teacher.chat=true")).sample(QUESTIONS))
        with pytest.raises(UserError, match="E-model-chat-settings-unused"):
            next(teachers.from_recipe(asked(model, "teacher.reasoning=answer")).sample(QUESTIONS))
    with pytest.raises(UserError, match="E-recipe-teacher-key"):
        parse_recipe("name: x", "x.yaml", ["teacher={kind: human, chat: true}"])
    with pytest.raises(UserError, match="E-recipe-chat-settings"):
        asked(plain, "teacher.reasoning=answer", "teacher.chat=false")


def test_a_chat_teachers_answer_is_looked_for_behind_its_thought() -> None:
    def chain(text: str, chat: bool = True, reasoning: str = "both") -> str:
        tokens = [part.encode() for part in re.findall(r"\S+|\s+", text)]
        steps = [[(token, -0.1), (b"x", -3.0)] for token in tokens]
        generated = inference.Generation(("q", 0), (), tuple(tokens), text.encode(), tuple(map(tuple, steps)), "end")
        made = local_model.build_chain(generated, "t", chat, reasoning)
        assert len(made.tokens) <= len(made.candidates) <= len(made.tokens) + 1
        assert all(dict(step)[token] == -0.1 for token, step in zip(made.tokens, made.candidates, strict=False))
        return made.text

    thought = "<think> Perhaps the answer is 4 \n no </think> \n 2 + 3 = 5 \n The answer is 5 \n Shall I go on?"
    assert chain(thought) == "Perhaps the answer is 4 \n no\n2 + 3 = 5 \n The answer is 5 "
    assert chain("2 + 3 = 5 \n The answer is 5 \n More") == "2 + 3 = 5 \n The answer is 5 "
    assert chain("so 4 </think> \n The answer is 5") == "so 4\nThe answer is 5", "the template had opened the thought"
    assert chain(thought, chat=False).endswith("the answer is 4 "), "a plain model has no thoughts: as before"
    assert chain("<think> the answer is 4 \n and") == "the answer is 4 \n and", "cut off in its thought: nothing is cut"
    assert chain(thought, reasoning="answer") == "2 + 3 = 5 \n The answer is 5 "
    assert chain(thought, reasoning="reasoning") == "Perhaps the answer is 4 \n no"
    again = "<think> 2 + 3 = 5 . The answer is 5 . Wait . The answer is 5 </think> \n The answer is 5 \n More"
    assert chain(again, reasoning="shortened") == "2 + 3 = 5 . The answer is 5 .\nThe answer is 5 "


def test_the_plan_says_that_the_teacher_is_asked_in_its_template(world: Path, tmp_path: Path, tuned: Path) -> None:
    shutil.copytree(world, tmp_path / "here")
    shutil.copytree(tuned, tmp_path / "here" / "chatty")
    for model, said in (("teacher", False), ("chatty", True)):
        text = dry_run.describe_run(tiny.recipe(tmp_path / "here", f"teacher.model={model}"))
        assert ("in the model's chat template (plain prompts: teacher.chat: false" in text) == said


def test_a_student_as_the_teacher_is_asked_with_the_prompt_of_its_training(tuned: Path) -> None:
    """In plain text and in the chat template, with a scorer, and after a text of demonstrations."""
    trained = prompts.build_prompt(QUESTIONS[0].text, prompts.FORMATS["zero-shot-rationale"])
    for kind in ("local", "human"):
        recipe = asked(tuned, "teacher.prompt_style=student", kind=kind)
        assert protocol.load_prompt_builder(recipe)(QUESTIONS[0]) == trained
        assert protocol.load_prompt_builder(asked(tuned, kind=kind))(QUESTIONS[0]) != trained
    with pytest.raises(UserError) as fault:
        parse_recipe("name: x", "x.yaml", ["teacher={kind: human, prompt_style: student}"])
    assert "E-recipe-teacher-key" in str(fault.value)
