"""Prompts: from a question, a format and demonstrations to the turns that a model is shown.

    >>> prompt = build_prompt("What is 1 + 1?", PromptFormat(few_shot=False, rationale=True))
    >>> prompt.plain
    "Q: What is 1 + 1?\\nLet's think step by step"
    >>> shots = [Demonstration("What is 2 + 2?", "4", "2 + 2 = 4.")]
    >>> print(build_prompt("What is 1 + 1?", PromptFormat(few_shot=True, rationale=True), shots).plain)
    Q: What is 2 + 2?
    Let's think step by step
    2 + 2 = 4.
    The answer is 4
    <BLANKLINE>
    Q: What is 1 + 1?
    Let's think step by step

The four formats and their bytes are those of Fu et al. 2023 (PAPER style). A prompt never ends in white space: what
stands between it and its answer is its `lead`, which a plain causal model needs and T5 and chat models do not.
Pure: no tokenizer, no file.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from potstill.records import Prompt, Turn

VERSION: Final = 1  # of the bytes that this module makes; stored in the manifests of the stages that use it


@dataclass(frozen=True, slots=True, order=True)
class PromptFormat:
    """With or without demonstrations, with or without a chain of thought: a value, not four datasets."""

    few_shot: bool
    rationale: bool

    @property
    def name(self) -> str:
        return f"{'few' if self.few_shot else 'zero'}-shot-{'rationale' if self.rationale else 'answer'}"


FORMATS: Final = {
    format.name: format
    for format in (
        PromptFormat(False, False),
        PromptFormat(False, True),
        PromptFormat(True, False),
        PromptFormat(True, True),
    )
}


@dataclass(frozen=True, slots=True)
class Demonstration:
    """A solved example. `rationale` is the solution in words without its answer sentence, empty if it has none."""

    question: str
    answer: str
    rationale: str = ""


@dataclass(frozen=True, slots=True)
class PromptStyle:
    """The wording around a question, an answer and a rationale.

    `ask_*` ends where the reply begins (no white space at its end), `lead_*` is the white space between the two.
    """

    ask_rationale: str
    ask_answer: str
    ask_answer_alone: str
    reply_rationale: str
    reply_answer: str
    lead_rationale: str = "\n"
    lead_answer: str = " "
    after: str = "\n\n"


PAPER_STYLE: Final = PromptStyle(
    ask_rationale="Q: {question}\nLet's think step by step",
    ask_answer="Q: {question}\nA:",
    ask_answer_alone="Q: {question} A:",
    reply_rationale="{rationale}\nThe answer is {answer}",
    reply_answer="The answer is {answer}",
)
TEACHER_STYLE: Final = PromptStyle(
    ask_rationale="Question: {question}\nLet's think step by step",
    ask_answer="Question: {question}\nThe answer is",
    ask_answer_alone="Question: {question}\nThe answer is",
    reply_rationale="{rationale}\nThe answer is {answer}",
    reply_answer="{answer}",
)
BBH_STYLE: Final = PromptStyle(
    ask_rationale="Q: {question}\nA: Let's think step by step.",
    ask_answer="Q: {question}\nA:",
    ask_answer_alone="Q: {question}\nA:",
    reply_rationale="{rationale} So the answer is {answer}.",
    reply_answer="{answer}",
)


def build_prompt(
    question: str,
    format: PromptFormat,
    demonstrations: Sequence[Demonstration] = (),
    *,
    style: PromptStyle = PAPER_STYLE,
    instruction: str = "",
) -> Prompt:
    """The prompt of one question.

    demonstrations  shown in this order if the format is few-shot, ignored otherwise
    instruction     stands before everything, set off by a blank line (the description of a BBH task)
    """
    turns: list[Turn] = []
    lead = style.lead_rationale if format.rationale else style.lead_answer
    shown = demonstrations if format.few_shot else ()
    assert shown or not format.few_shot, "a few-shot prompt without demonstrations"
    ask = style.ask_rationale if format.rationale else style.ask_answer if format.few_shot else style.ask_answer_alone
    reply = style.reply_rationale if format.rationale else style.reply_answer
    before = f"{instruction}\n\n" if instruction else ""
    for shot in shown:
        turns.append(Turn("user", before + _fill_template(ask, question=shot.question)))
        answer = _fill_template(reply, rationale=shot.rationale, answer=shot.answer)
        turns.append(Turn("assistant", lead + answer + style.after))
        before = ""
    turns.append(Turn("user", before + _fill_template(ask, question=question)))
    return Prompt(tuple(turns), lead)


def format_solution(rationale: str, answer: str) -> str:
    """A rationale and its answer sentence as one chain of thought, as students are taught it."""
    return (
        _fill_template(PAPER_STYLE.reply_rationale, rationale=rationale, answer=answer)
        if rationale
        else format_answer(answer)
    )


def restore_answer_line(text: str) -> str:
    """A solution of one line with its answer sentence on a line of its own, as `solution` writes it and a tokenizer
    without line breaks has lost it.

    >>> restore_answer_line("1 + 1 = 2. The answer is 2"), restore_answer_line("1 + 1 = 2.\\nSo 2. The answer is 2")
    ('1 + 1 = 2.\\nThe answer is 2', '1 + 1 = 2.\\nSo 2. The answer is 2')
    """
    at = -1 if "\n" in text else text.find(" The answer is ")
    return text if at < 0 else f"{text[:at]}\n{text[at + 1 :]}"


def format_answer(answer: str) -> str:
    """The target of the answer-only formats."""
    return _fill_template(PAPER_STYLE.reply_answer, answer=answer)


# A byte is as good as a character here: what is looked for is ASCII.
_ANSWER_SENTENCE: Final = re.compile(
    r"answer is\b(?!\s+not\b)[\s:]*[^\s:][^\n]*?(?:[.!?][\"')\]*]*(?=\s)|(?=\n|\s+(?:Q|Question)\s?:))", re.IGNORECASE
)


def find_answer_end(text: str) -> int | None:
    """Where sampling cuts a text: the end of the first line that holds "answer is", None if no line does.

    The newline itself is not part of the text (PAPER section 2).
    """
    at = text.lower().find("answer is")
    if at < 0:
        return None
    newline = text.find("\n", at)
    return len(text) if newline < 0 else newline


def find_answer_sentence_end(text: str) -> int | None:
    """Where the first sentence that holds "answer is" and says one has ended: white space follows its period, its line
    ends, or another question begins. None as long as it may go on.

    >>> text = "Half is 4.5. The answer is 4.50. Q: How many?"
    >>> text[: find_answer_sentence_end(text)], find_answer_sentence_end("The answer is 4."), find_answer_sentence_end("answer is\\n4")
    ('Half is 4.5. The answer is 4.50.', None, None)
    """
    match = _ANSWER_SENTENCE.search(text)
    return None if match is None else match.end()


def _fill_template(template: str, **values: str) -> str:
    # str.format would read braces that stand in a question; each value is put in once, and never read again.
    parts = []
    for piece in template.split("{"):
        name, closed, rest = piece.partition("}")
        parts.append(values[name] + rest if closed else piece)
    return "".join(parts)
