"""Wherever the score of a base is shown, a warning says that it spends its tokens on thinking."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_chat_arguments import THINKING

import tiny
from chat_model import save_chat_model
from potstill import dry_run, models
from potstill.cli import results, status
from potstill.cut_thoughts import is_cut_in_thought, read_warnings
from potstill.models import ChatSettings
from potstill.records import Prediction, StopReason
from potstill.storage import manifest
from potstill.thoughts import CUT_KEY, SWITCH_KEY, ends_in_thought

# It opens the thought in the prompt, as DeepSeek-R1 and Qwen3-Thinking do, unless thinking is off.
OPENS = THINKING.replace("{% if enable", "{% if enable_thinking is not defined %}<think>\n{% endif %}{% if enable", 1)


@pytest.mark.parametrize(
    ("text", "opened", "inside"),
    [
        ("<think>2 + 2", False, True),
        ("<think>2 + 2</think>The answer", False, False),
        ("<think>a</think>b<think>c", False, True),
        ("2 + 2", True, True),
        ("2 + 2</think>The answer", True, False),
        ("2 + 2", False, False),
        ("[THINK]2 + 2", False, True),
        ("<|channel|>analysis<|message|>2 + 2", False, True),
        ("<|channel|>analysis<|message|>2 + 2<|end|>", False, False),
        ("<|channel|>final<|message|>4", False, False),
        ("◁think▷2◁/think▷", False, False),
        ("a < b and a </b>", False, False),
    ],
)
def test_the_last_tag_decides(text: str, opened: bool, inside: bool) -> None:
    assert ends_in_thought(text, opened=opened) is inside


@pytest.mark.parametrize(
    ("text", "stop", "opened", "cut"),
    [
        ("<think>2", "length", False, True),
        ("<think>2", "cut", False, True),
        ("<think>2", "end", False, False),  # it ended by itself: no budget would help
        ("2 + 2", "length", True, True),
        ("The answer is 4", "cut", True, False),  # a student that answers at once in an opened thought
    ],
)
def test_only_texts_that_a_limit_ended_count(text: str, stop: StopReason, opened: bool, cut: bool) -> None:
    prediction = Prediction("s/1", "s", "number", text, stop, "wrong", None)
    assert is_cut_in_thought(prediction, opened=opened) is cut


def test_templates_that_open_a_thought(tmp_path: Path) -> None:
    folder = save_chat_model(tmp_path / "m", OPENS)
    for kwargs, opens, switch in (({}, True, "enable_thinking"), ({"enable_thinking": False}, False, None)):
        chat = models.open_chat_template(folder, ChatSettings(True, kwargs), "causal")
        assert chat is not None and (chat.opens_thought, chat.thinking_switch) == (opens, switch)


def test_a_run_with_a_thinking_base_says_so_everywhere(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save_chat_model(tmp_path / "thinker", OPENS)
    changes = (f"student={{model: {folder}}}", "train.steps=1", "train.checkpoint_every=1")
    assert "the template opens a thought" in dry_run.describe_run(tiny.recipe(world, *changes))
    run_dir = tiny.make(world, tmp_path / "run", *changes)
    assert "inside a thought" in capsys.readouterr().err, "while it is evaluated"
    counts = manifest.read_manifest(run_dir / "test" / "0" / manifest.MANIFEST_FILE).counts
    cut, total = counts[CUT_KEY]["zero-shot-rationale.greedy"]
    assert 0 < cut <= total == counts["questions"] and counts[SWITCH_KEY] == "enable_thinking"
    base, *_ = read_warnings(run_dir)
    assert f"{cut} of {total} answers of the base" in base and "looks larger than it is" in base
    assert "student.chat_template_kwargs: {enable_thinking: false}" in base
    status.print_status(run_dir)
    results.print_summary(run_dir)
    assert capsys.readouterr().out.count("answers of the base") >= 2
    for page in (run_dir / "report" / "index.html", run_dir / "student" / "README.md"):
        assert "were cut inside a thought" in page.read_text()

    off = f"student={{model: {folder}, chat_template_kwargs: {{enable_thinking: false}}}}"
    assert "thought" not in dry_run.describe_run(tiny.recipe(world, *changes, off))
    quiet = tiny.make(world, tmp_path / "quiet", *changes[1:], off)
    assert not list(read_warnings(quiet)) and "thought" not in (quiet / "report" / "index.html").read_text()
    assert set(manifest.read_manifest(quiet / "test" / "0" / manifest.MANIFEST_FILE).counts) == {"questions"}


def test_a_base_that_is_only_evaluated_is_warned_about(world: Path, tmp_path: Path) -> None:
    folder = save_chat_model(tmp_path / "thinker", THINKING)
    recipe = tiny.recipe(world, f"student={{model: {folder}}}", "teacher={kind: none}")
    assert "lets the model think" in dry_run.describe_run(recipe)
    assert not list(read_warnings(tmp_path))
