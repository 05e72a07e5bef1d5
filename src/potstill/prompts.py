"""Builds prompts, as turns of a dialogue, from a question, a format and demonstrations.

    >>> build_prompt("What is 1 + 1?", PromptFormat(few_shot=False, rationale=True)).plain
    "Q: What is 1 + 1?\\nLet's think step by step"
    >>> demonstrations = [Demonstration("What is 2 + 2?", "4", "2 + 2 = 4.")]
    >>> print(build_prompt("What is 1 + 1?", PromptFormat(few_shot=True, rationale=True), demonstrations).plain)
    Q: What is 2 + 2?
    Let's think step by step
    2 + 2 = 4.
    The answer is 4
    <BLANKLINE>
    Q: What is 1 + 1?
    Let's think step by step

The four formats and their bytes are those of Fu et al. 2023 (PAPER_STYLE). A prompt never ends in whitespace. Its `lead`
is the whitespace between the prompt and its answer: it is used for causal models without a chat template, but not for
T5 and chat models. All functions are pure, and use no tokenizer and no file.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from potstill.records import Prompt, Turn

VERSION: Final = 1  # of the bytes of prompts; stored in the manifests of the stages that use them


@dataclass(frozen=True, slots=True, order=True)
class PromptFormat:
    """Whether a prompt has demonstrations (`few_shot`), and whether its answer has a chain of thought (`rationale`)."""

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
    """A solved example. `rationale` is the solution without its answer sentence, and may be empty."""

    question: str
    answer: str
    rationale: str = ""


@dataclass(frozen=True, slots=True)
class PromptStyle:
    """The templates of a question and its reply, with the fields {question}, {rationale} and {answer}.

    ask_rationale      the question, if a rationale is expected. No `ask_*` ends in whitespace
    ask_answer         the question in a few-shot prompt without rationales
    ask_answer_alone   the question in a zero-shot prompt without a rationale
    reply_*            the reply of a demonstration
    lead_*             the whitespace between a question and its reply
    after              the text between a demonstration and the next question
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

    demonstrations  a few-shot format uses them in this order; a zero-shot format ignores them
    instruction     text at the start of the prompt, followed by a blank line (the description of a BBH task)
    """
    demonstrations = demonstrations if format.few_shot else ()
    assert demonstrations or not format.few_shot, "a few-shot prompt without demonstrations"
    if format.rationale:
        ask, lead, reply = style.ask_rationale, style.lead_rationale, style.reply_rationale
    else:
        ask = style.ask_answer if format.few_shot else style.ask_answer_alone
        lead, reply = style.lead_answer, style.reply_answer
    turns: list[Turn] = []
    for demonstration in demonstrations:
        answer = _fill_template(reply, rationale=demonstration.rationale, answer=demonstration.answer)
        turns.append(Turn("user", _fill_template(ask, question=demonstration.question)))
        turns.append(Turn("assistant", lead + answer + style.after))
    turns.append(Turn("user", _fill_template(ask, question=question)))
    if instruction:
        turns[0] = Turn("user", f"{instruction}\n\n{turns[0].text}")
    return Prompt(tuple(turns), lead)


def label_instruction(labels: Sequence[str]) -> str:
    """The start of a prompt that lists the labels of a classification.

    >>> label_instruction(["billing", "bug"]), label_instruction(["news, sports", "other"])
    ('The answer is one of these labels: billing, bug', 'The answer is one of these labels: news, sports; other')
    """
    comma = ";" if any("," in label for label in labels) else ","
    return f"The answer is one of these labels: {f'{comma} '.join(labels)}"


def format_solution(rationale: str, answer: str) -> str:
    """A rationale and its answer sentence as one text, which is the training target of the rationale formats."""
    reply = PAPER_STYLE.reply_rationale if rationale else PAPER_STYLE.reply_answer
    return _fill_template(reply, rationale=rationale, answer=answer)


def restore_answer_line(text: str) -> str:
    """A solution of one line with its answer sentence on a separate line, as `format_solution` writes it. A text that has
    a newline is returned unchanged.

    T5 needs this, because its tokenizer drops newlines.
    """
    space = -1 if "\n" in text else text.find(" The answer is ")
    return text if space < 0 else f"{text[:space]}\n{text[space + 1 :]}"


def format_answer(answer: str) -> str:
    """The answer sentence, which is the training target of the answer-only formats."""
    return _fill_template(PAPER_STYLE.reply_answer, answer=answer)


ANSWER_SENTENCE: Final = re.compile(
    r"answer is\b(?!\s+not\b)[\s:]*[^\s:][^\n]*?(?:[.!?][\"')\]*]*(?=\s)|(?=\n|\s+(?:Q|Question)\s?:))", re.IGNORECASE
)


def find_answer_end(text: str) -> int | None:
    """The end of the first line with "answer is", without its newline; None if there is no such line. Sampling cuts texts
    there."""
    start = text.lower().find("answer is")
    if start < 0:
        return None
    newline = text.find("\n", start)
    return len(text) if newline < 0 else newline


def find_answer_sentence_end(text: str) -> int | None:
    """The end of the first complete sentence with "answer is"; None as long as the sentence may continue.

    A sentence is complete if whitespace follows its period, if its line has ended, or if another question begins.

    >>> text = "Half is 4.5. The answer is 4.50. Q: How many?"
    >>> text[: find_answer_sentence_end(text)]
    'Half is 4.5. The answer is 4.50.'
    """
    match = ANSWER_SENTENCE.search(text)
    return None if match is None else match.end()


_ANSWER_PHRASE: Final = re.compile(r"answer is(?!\w|\s+not\W)", re.IGNORECASE)


def find_open_answer_line(text: str) -> int:
    """The first position that `find_answer_end` must read again if a text without a complete answer line has grown.

    >>> find_open_answer_line("So the answer is not 4"), find_open_answer_line("It is an answ")
    (7, 5)
    """
    start = text.lower().find("answer is")
    return max(0, len(text) - len("answer is") + 1) if start < 0 else start


def find_open_answer_sentence(text: str) -> int:
    """The first position that `find_answer_sentence_end` must read again if a text for which it returns None has grown.

    >>> find_open_answer_sentence("The answer is not 4. The answer is 5"), find_open_answer_sentence("It is an answ")
    (25, 5)
    """
    match = _ANSWER_PHRASE.search(text)
    return max(0, len(text) - len("answer is") + 1) if match is None else match.start()


def _fill_template(template: str, **values: str) -> str:
    # Values are inserted unchanged, even if they contain braces.
    return re.sub(r"\{(\w+)\}", lambda field: values[field[1]], template)
