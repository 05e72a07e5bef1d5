"""Prompts, byte for byte as the paper's authors wrote them (PAPER sections 2, 3 and 7)."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potstill import prompts
from potstill.data import read_demonstrations
from potstill.prompts import FORMATS, Demonstration, build_prompt

SHOTS = (
    Demonstration("q1?", "1", "cot one.\nmore."),
    Demonstration("q2?", "2", "cot two."),
    Demonstration("q3?", "3", "cot three."),
    Demonstration("q4?", "4", "cot four."),
)
GOLDEN = {
    "zero-shot-answer": "Q: asked? A:",
    "zero-shot-rationale": "Q: asked?\nLet's think step by step",
    "few-shot-answer": (
        "Q: q1?\nA: The answer is 1\n\nQ: q2?\nA: The answer is 2\n\nQ: q3?\nA: The answer is 3\n\n"
        "Q: q4?\nA: The answer is 4\n\nQ: asked?\nA:"
    ),
    "few-shot-rationale": (
        "Q: q1?\nLet's think step by step\ncot one.\nmore.\nThe answer is 1\n\n"
        "Q: q2?\nLet's think step by step\ncot two.\nThe answer is 2\n\n"
        "Q: q3?\nLet's think step by step\ncot three.\nThe answer is 3\n\n"
        "Q: q4?\nLet's think step by step\ncot four.\nThe answer is 4\n\n"
        "Q: asked?\nLet's think step by step"
    ),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_the_four_formats(name: str) -> None:
    assert build_prompt("asked?", FORMATS[name], SHOTS).plain == GOLDEN[name]


def test_the_targets() -> None:
    assert prompts.format_answer("72") == "The answer is 72"
    assert prompts.format_solution("48/2 = 24.\n48+24 = 72.", "72") == "48/2 = 24.\n48+24 = 72.\nThe answer is 72"


def test_turns_are_the_same_prompt_as_messages() -> None:
    prompt = build_prompt("asked?", FORMATS["few-shot-answer"], SHOTS[:1])
    assert prompt.messages == [
        {"role": "user", "content": "Q: q1?\nA:"},
        {"role": "assistant", "content": "The answer is 1"},
        {"role": "user", "content": "Q: asked?\nA:"},
    ]


def test_the_authors_evaluation_prompt(data: Path) -> None:
    """Their file, then "\\nQ: {q}\\nLet's think step by step\\n" (PAPER section 7)."""
    path = data / "prompts" / "prompt_simple_4_cases.txt"
    prompt = build_prompt("asked?", FORMATS["few-shot-rationale"], read_demonstrations(path))
    assert prompt.plain + prompt.lead == path.read_text("utf-8") + "\nQ: asked?\nLet's think step by step\n"


@given(st.sampled_from(sorted(FORMATS)), st.text(max_size=30), st.text(max_size=10), st.text(max_size=30))
def test_texts_stand_in_a_prompt_as_they_are(name: str, question: str, answer: str, rationale: str) -> None:
    """Braces, percent signs, line ends: nothing in a text is read as a template."""
    prompt = build_prompt(question, FORMATS[name], [Demonstration(question, answer, rationale)], instruction=rationale)
    assert prompt.plain.count(question) >= (2 if FORMATS[name].few_shot else 1)
    assert prompt.plain.startswith(f"{rationale}\n\n" if rationale else "Q: ")
    assert prompt.plain == "".join(turn.text for turn in prompt.turns)


@given(st.text(max_size=60), st.text(max_size=20))
def test_the_answer_line_ends_where_sampling_cuts(before: str, after: str) -> None:
    text = f"{before}\nSo the answer is 7.\n{after}"
    end = prompts.find_answer_end(text)
    assert end is not None and text[end] == "\n"
    assert "answer is" in text[:end].lower() and "\n" not in text[text.lower().find("answer is") : end]


def test_a_text_without_an_answer_line_is_not_cut() -> None:
    assert prompts.find_answer_end("no such line\n") is None
    assert prompts.find_answer_end("The answer is 7") == len("The answer is 7")


def test_few_shot_without_demonstrations_is_our_fault() -> None:
    with pytest.raises(AssertionError):
        build_prompt("asked?", FORMATS["few-shot-answer"])
