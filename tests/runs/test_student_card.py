"""The model card of a student: its metadata, and its program, which gives the measured answers with plain transformers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

import tiny
from chat_model import save_chat_model
from potstill import hub, models, prompts
from potstill.data import run_questions
from potstill.evaluation import query_settings
from potstill.models import query_files
from potstill.report.card import format_f_string
from potstill.run_reader import open_run

TRAINED = ("train.steps=60", "train.checkpoint_every=60", "evaluate.max_tokens=20", "train.learning_rate=2e-2")
CAUSAL = "student={shape: {family: causal, d_model: 16, layers: 1, heads: 2, d_ff: 32}, tokenizer: teacher}"
KINDS = ("t5", "causal", "chat")
SETS = ("sums", "other", "more")


def make(kind: str, world: Path, folder: Path, *changes: str) -> Path:
    if kind == "causal":
        changes = (CAUSAL, *changes)
    if kind == "chat":
        changes = (f"student={{model: {save_chat_model(folder / 'tuned')}}}", *changes)
    return tiny.make(world, folder / "run", *TRAINED, *changes)


@pytest.fixture(scope="module", params=KINDS)
def run_dir(request: pytest.FixtureRequest, world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(
        request.param, world, tmp_path_factory.mktemp(request.param), "report.licences={sums: MIT, more: our terms}"
    )


def card_of(run_dir: Path) -> str:
    return (run_dir / "student" / "README.md").read_text("utf-8")


def program_of(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """The function `ask` of the card's own lines, run in the student's folder."""
    [program] = re.findall(r"^```python\n(.*?)^```$", card_of(run_dir), re.M | re.S)
    assert len([line for line in program.splitlines() if line]) <= 20 and "potstill" not in program
    monkeypatch.chdir(run_dir / "student")
    names: dict[str, Any] = {}
    exec(program, names)
    return names["ask"]


def stored_answers(run_dir: Path, decoding: str = "greedy") -> dict[str, str]:
    """Test question -> the text that the stage `test` stored."""
    texts = {question.id: question.text for question in run_questions.read_questions(run_dir, SETS, "test")}
    predictions = open_run(run_dir).predictions("test", decoding=decoding)
    return {texts[prediction.question]: prediction.text for prediction in predictions}


def test_the_program_of_the_card_gives_the_measured_answers(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stored = stored_answers(run_dir)
    ask = program_of(run_dir, monkeypatch)
    assert len(stored) > 15 and len(set(stored.values())) > 1
    assert {question: ask(question) for question in stored} == stored


@pytest.mark.parametrize("kind", ["t5", "causal"])
def test_the_program_stops_at_the_answer_if_the_evaluation_did(
    kind: str, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up to white space at the end: the evaluation keeps whole tokens."""
    steps = "train.steps=60"  # after twice as many, the causal student ends its texts itself on some processors
    run_dir = make(kind, world, tmp_path, "evaluate.stop_at_answer=true", "evaluate.max_tokens=40", steps)
    stored = stored_answers(run_dir)
    ask = program_of(run_dir, monkeypatch)
    assert {question: ask(question).rstrip() for question in stored} == {q: text.rstrip() for q, text in stored.items()}
    stops = {prediction.stop for prediction in open_run(run_dir).predictions("test")}
    assert kind == "t5" or "cut" in stops  # the tiny T5 ends its texts itself


def test_a_pipeline_with_one_message_gives_the_measured_answers(run_dir: Path) -> None:
    from transformers import AutoTokenizer, pipeline

    student, chat = run_dir / "student", models.read_family(run_dir / "student") == "causal"
    marked = chat and query_files.TEMPLATE_MARK in (student / "chat_template.jinja").read_text()
    assert marked == ("one message" in card_of(run_dir))
    if not marked:
        return
    assert not models.auto_uses_chat_template(student)
    answer = pipeline("text-generation", str(student), dtype="float32")
    for question, text in stored_answers(run_dir).items():
        [made] = answer([{"role": "user", "content": question}])
        assert made["generated_text"][-1] == {"role": "assistant", "content": text}
    tokenizer = AutoTokenizer.from_pretrained(student)
    with pytest.raises(Exception, match="one question"):
        tokenizer.apply_chat_template([{"role": "user", "content": "1"}, {"role": "assistant", "content": "2"}])


def test_the_metadata_is_what_the_library_reads(run_dir: Path) -> None:
    card = ModelCard.load(run_dir / "student" / "README.md")
    data, run = card.data, open_run(run_dir)
    family = models.read_family(run_dir / "student")
    assert data.library_name == "transformers"  # type: ignore[attr-defined]
    assert data.pipeline_tag == {"t5": "text2text-generation", "causal": "text-generation"}[family]  # type: ignore[attr-defined]
    assert data.license == "unknown" and data.get("base_model") is None and data.get("language") is None  # type: ignore[attr-defined]
    chosen = {(s.set, s.format, s.decoding): s for s in run.scores("test") if s.checkpoint == run.choice}
    results = {
        (result.dataset_name, result.metric_args["format"], result.metric_args["decoding"]): result
        for result in data.eval_results  # type: ignore[attr-defined]
    }
    assert results.keys() == chosen.keys()
    for key, result in results.items():
        assert result.metric_value == round(100 * chosen[key].accuracy, 2)
        assert result.metric_args["n"] == chosen[key].n and result.dataset_split == "test"
    assert "| sums | training | MIT | not stated |" in card.text and "| other | evaluation | unknown |" in card.text
    assert "| more | evaluation | our terms |" in card.text


def test_the_settings_are_those_of_the_evaluation(run_dir: Path) -> None:
    settings = query_settings.read_settings(run_dir / "student")
    recipe, table = open_run(run_dir).recipe, run_questions.read_task_prompts(run_dir)
    student = open_run(run_dir).student()
    for format in recipe.evaluate.formats:
        for question in run_questions.read_questions(run_dir, SETS, "test"):
            prompt = run_questions.evaluation_prompt(question, prompts.FORMATS[format], table)
            before, after = settings.prompt(format, question.task)
            assert before + question.text + after == student.render(prompt)
    config = json.loads((run_dir / "student" / "generation_config.json").read_text())
    assert config["max_new_tokens"] == settings.max_tokens == 20 and config["do_sample"] is False


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("Q: ", "\nLet's think step by step"),
        ("", ""),
        ('{"a": 1}\n' * 20 + "Q: ", " A:"),
        ("One {x}\n" * 30 + 'He says "{', '}"\n\n\n'),
        ("\u202e\u200b\\n é 語 " * 12, "\n" * 5),
        ("\n\n" * 60, "\nend"),
    ],
)
def test_a_prompt_as_python_is_the_prompt(before: str, after: str) -> None:
    question = 'How "many" {are}\nthere?\\n'
    assert eval(format_f_string(before, after), {"question": question}) == before + question + after


def test_licences_are_identifiers_of_the_hub_or_named() -> None:
    assert hub.licence_fields("CC BY-NC 4.0") == {"license": "cc-by-nc-4.0"}
    assert hub.licence_fields("Gemma") == {"license": "gemma"}
    assert hub.licence_fields("Our own", "https://example.org") == {
        "license": "other",
        "license_name": "our-own",
        "license_link": "https://example.org",
    }
    assert hub.licence_fields(None) == hub.licence_fields("unknown") == {"license": "unknown"}
