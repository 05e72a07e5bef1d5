"""The model card of a student: `README.md` of its folder, with metadata for the Hugging Face hub.

    >>> data = ReportData("demo", student="tiny", teacher="local", groups={}, recipe="seed: 1")
    >>> card = render_card(data, CardFacts("t5"))
    >>> card.splitlines()[:2], "license: unknown" in card
    (['---', 'library_name: transformers'], True)
    >>> print(format_f_string("Q: ", "\\nA {} B\\n"))
    f"Q: {question}\\nA {{}} B\\n"

Texts from outside (the recipe, prompts, notes) are in code blocks or plain sentences. The section "How to query it" has a
program that needs only transformers. A test runs this program and compares its answers with the answers of the run.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from potstill import hub, prompts
from potstill.errors import escape_hidden
from potstill.evaluation.decoding import parse_decoding
from potstill.evaluation.query_settings import QuerySettings
from potstill.report import label_views, summary
from potstill.report.licences import BaseModel, SetSource
from potstill.report.model import ONE_SEED_NOTE, ReportData, licence_note
from potstill.report.sentences import controls_sentence, describe_rule, own_texts_sentence, summary_sentence

VERSION: Final = 2  # of the card and the other files about queries; stored in the manifest of the stage `report`
PIPELINE_TAGS: Final = {"t5": "text2text-generation", "causal": "text-generation"}
MODEL_CLASSES: Final = {"t5": "AutoModelForSeq2SeqLM", "causal": "AutoModelForCausalLM"}
MAX_LINE: Final = 100  # characters of a line of the program, before a long prompt is split


@dataclass(frozen=True, slots=True)
class CardFacts:
    """The facts on the card that are not part of the report.

    family              t5 or causal
    base                the base model; None for random weights
    sets                the data sets of the run
    settings            settings of the evaluation; None if the prompt is not the question between two fixed texts
    tokenizer_class     class of transformers that gives the student's own token ids; None if no class does
    has_template        whether the folder's chat template is the trained prompt
    end_tokens          names of the tokens that end a text
    thought_tags        names of the special tokens that are tags of thoughts, which texts contain
    has_rationales      whether the student was trained on rationales, and not only on bare answers
    has_teacher_chains  whether these are a teacher's chains
    weights_dtype       dtype of the weights in the folder
    adapter_base        base of the LoRA adapter in the folder; None if the folder has no adapter
    """

    family: str
    base: BaseModel | None = None
    sets: tuple[SetSource, ...] = ()
    settings: QuerySettings | None = None
    tokenizer_class: str | None = None
    has_template: bool = False
    end_tokens: tuple[str, ...] = ()
    thought_tags: tuple[str, ...] = ()
    has_rationales: bool = True
    has_teacher_chains: bool = False
    weights_dtype: str = "float32"
    adapter_base: str | None = None


def render_card(data: ReportData, facts: CardFacts) -> str:
    """The card as Markdown text with front matter."""
    stated = [(item.name, item.licence) for item in facts.sets]
    stated += (
        [(name, facts.base.licence) for name in (facts.base.name, Path(facts.base.name).name)] if facts.base else []
    )
    in_table = {licence_note(name, licence) for name, licence in stated if licence}
    parts = [f"# {data.name}", summary_sentence(data)]
    if data.choice:
        parts.append(
            f"Step {summary.checkpoint_label(data.choice.checkpoint)} of a training run, chosen by"
            f" {describe_rule(data.choice)} on validation questions. Student: {data.student}. Teacher: {data.teacher}."
        )
    parts += [note for note in data.notes if note not in in_table]
    parts += _query_section(facts)
    parts += _test_section(data)
    parts += _own_texts_section(data)
    parts += _sources_section(facts)
    parts += ["## Recipe", _fence(data.recipe.rstrip(), "yaml")]
    text = escape_hidden("\n\n".join(parts)) + "\n"
    return hub.write_model_card(
        _metadata(facts), data.name, _card_scores(data, facts), PIPELINE_TAGS[facts.family], text
    )


# Metadata


def _metadata(facts: CardFacts) -> dict[str, Any]:
    """The fields of ModelCardData. Unknown fields are left out."""
    base, trained = facts.base, [item for item in facts.sets if item.use != "evaluation"]
    fields: dict[str, Any] = {"library_name": "transformers"}
    fields |= hub.licence_fields(base.licence, base.link) if base else hub.licence_fields(None)
    if base is not None and base.hub_id is not None and hub.is_repository_name(base.hub_id):
        fields |= {"base_model": base.hub_id, "base_model_relation": "finetune"}
    if datasets := [item.hub_id for item in trained if item.hub_id]:
        fields["datasets"] = datasets
    languages = {item.language for item in trained}
    if trained and None not in languages:
        fields["language"] = sorted(language for language in languages if language)
    taught = ["chain-of-thought", *(["distillation"] if facts.has_teacher_chains else [])]
    fields["tags"] = ["potstill", *(taught if facts.has_rationales else [])]
    return fields


def _card_scores(data: ReportData, facts: CardFacts) -> list[hub.CardScore]:
    hub_ids = {item.name: item.hub_id for item in facts.sets}
    return [
        hub.CardScore(
            row.chosen.set,
            round(100 * row.chosen.accuracy, 2),
            f"accuracy in percent, {row.chosen.format}, {row.chosen.decoding}, n = {row.chosen.n}",
            {"n": row.chosen.n, "format": row.chosen.format, "decoding": row.chosen.decoding},
            hub_ids.get(row.chosen.set),
        )
        for row in data.comparisons
    ]


# How to query it


def _query_section(facts: CardFacts) -> list[str]:
    settings = facts.settings
    if settings is None:
        return [
            "## How to query it",
            "The chat template of this student changes the text of a question, so the card cannot show the prompt."
            " `potstill show RUN` shows rendered prompts.",
        ]
    before, after = settings.prompt(settings.format, settings.task)
    rendered = "It is rendered in the model's own chat template. " if settings.is_chat else ""
    parts = [
        "## How to query it",
        "This student was trained and measured with one prompt. It answers worse with any other prompt."
        f" {rendered}The question replaces `{{question}}`; the prompt ends in {_describe_end(after)}:",
        _fence(f"{before}{{question}}{after}".rstrip("\n"), "text"),
        _describe_decoding(facts, settings),
    ]
    if facts.tokenizer_class is None:
        parts.append(
            "No tokenizer class of transformers gives this student's own token ids. Ask it with potstill:"
            " `potstill ask FOLDER`."
        )
    else:
        measured = "greedy" in settings.decodings
        parts += [
            "These lines need only transformers and torch."
            + (
                f" They give the measured answers ({settings.format}, greedy):"
                if measured
                else " They decode greedily, which was not measured; the figures below are of"
                f" {', '.join(settings.decodings)}:"
            ),
            _fence(render_program(facts, settings), "python"),
        ]
    if facts.has_template:
        parts.append(
            "The folder's chat template puts the same prompt around one user message, so"
            ' `pipeline("text-generation")` with one message `{"role": "user", "content": question}` gives the same prompt.'
            " The template refuses other conversations."
        )
    if facts.adapter_base is not None:
        parts.append(
            "The folder `adapter` contains the LoRA adapter alone, for peft:"
            f' `PeftModel.from_pretrained(base_model, folder, subfolder="adapter")` with the base {facts.adapter_base}. The'
            " figures are for the merged weights, which differ from the base with the adapter by rounding."
        )
    parts.append(
        '`potstill ask FOLDER "question"` reads the settings from `potstill.json`, which also has the prompts of other'
        " formats and tasks." + _other_decodings(settings)
    )
    return parts


def _describe_end(after: str) -> str:
    if after.endswith("\n"):
        return "a line break"
    return "a space" if after.endswith(" ") else "its last visible character, without a line break"


def _describe_decoding(facts: CardFacts, settings: QuerySettings) -> str:
    ends = " or ".join(f"`{token}`" for token in facts.end_tokens)
    stop = f"A text ends with {ends}" if ends else "A text ends with the end token"
    if settings.stop_at_answer:
        stop += ', or after the first complete sentence with "answer is"'
    if settings.stop_repeats:
        stop += ", or when it repeats itself (which the lines below do not do: they go on to the limit)"
    if settings.dtype != "float32":
        stop += f". Other programs round differently in {settings.dtype}, and a few texts may differ"
    if facts.weights_dtype != "float32":
        stop += (
            f". The weights are stored in {facts.weights_dtype}, the dtype of the base, and measured with this rounding"
        )
    return (
        f"Decoding: {', '.join(settings.decodings)}; computed in {settings.dtype}; at most"
        f" {summary.format_count(settings.max_tokens)} new tokens. {stop}. `generation_config.json` has these settings"
        " for greedy decoding."
    )


def _other_decodings(settings: QuerySettings) -> str:
    """The commands for decodings that transformers does not have."""
    options = []
    for name in settings.decodings:
        decoding = parse_decoding(name)
        vote = f" --vote {decoding.samples}" if decoding.choice == "vote" else ""
        calculator = " --calculator" if decoding.calculator else ""
        if decoding.choice != "best" and (vote or calculator):
            options.append(f"`{name}` is `potstill ask FOLDER{calculator}{vote}`")
    return f" {'; '.join(options)}." if options else ""


def render_program(facts: CardFacts, settings: QuerySettings) -> str:
    """A Python program of about ten lines that asks the student with transformers alone."""
    before, after = settings.prompt(settings.format, settings.task)
    model, tokenizer = MODEL_CLASSES[settings.family], facts.tokenizer_class
    special = ", add_special_tokens=False" if settings.is_chat else ""
    text = "output[0]" if settings.family == "t5" else 'output[0, inputs["input_ids"].shape[1] :]'
    prepare, decode = decoding_code(facts.thought_tags)
    lines = [
        *(["import re", ""] if settings.stop_at_answer else []),
        f"from transformers import {', '.join(sorted([model, str(tokenizer)]))}",
        "",
        'folder = "."  # this folder, or its name on the hub',
        f"tokenizer = {tokenizer}.from_pretrained(folder)",
        f'model = {model}.from_pretrained(folder, dtype="{settings.dtype}").eval()',
        "",
        "",
        "def ask(question):",
        f"    prompt = {format_f_string(before, after)}",
        f'    inputs = tokenizer(prompt{special}, return_tensors="pt")',
        f"    output = model.generate(**inputs)  # greedy, at most {settings.max_tokens} tokens",
        f"    text = {text}",
        *(f"    {line}" for line in prepare),
    ]
    if settings.stop_at_answer:
        sentence = prompts.ANSWER_SENTENCE
        lines += [
            f"    text = {decode}",
            f"    end = re.search({sentence.pattern!r}, text, re.IGNORECASE)",
            "    return text[: end.end()] if end else text",
        ]
    else:
        lines.append(f"    return {decode}")
    return "\n".join([*lines, "", "", 'print(ask("Your question"))'])


def decoding_code(thought_tags: Sequence[str]) -> tuple[list[str], str]:
    """Statements that change the token ids `text`, and the expression of their text. Special tokens are left out, except tags
    of thoughts."""
    if not thought_tags:
        return [], "tokenizer.decode(text, skip_special_tokens=True, clean_up_tokenization_spaces=False)"
    tags = json.dumps(list(thought_tags), ensure_ascii=True)
    lines = [
        "names = {token: str(name) for token, name in tokenizer.added_tokens_decoder.items() if name.special}",
        f"hidden = {{token for token, name in names.items() if name not in {tags}}}",
        "text = [token for token in text.tolist() if token not in hidden]",
    ]
    return lines, "tokenizer.decode(text, skip_special_tokens=False, clean_up_tokenization_spaces=False)"


def format_f_string(before: str, after: str, indent: int = 4) -> str:
    """The prompt with the variable `question` as a Python f-string. A long prompt has one string for each of its lines."""
    whole = f'f"{_literal(before)}{{question}}{_literal(after)}"'
    if len(whole) <= MAX_LINE:
        return whole
    *head, start = before.split("\n")
    end, *tail = after.split("\n")
    end, lines = end + ("\n" if tail else ""), [f'"{_literal(line + chr(10), braces=False)}"' for line in head]
    lines.append(f'f"{_literal(start)}{{question}}{_literal(end)}"')
    lines += [
        f'"{_literal(line + (chr(10) if number < len(tail) else ""), braces=False)}"'
        for number, line in enumerate(tail, 1)
        if line or number < len(tail)
    ]
    space = " " * indent
    return "(\n" + "".join(f"{space}    {line}\n" for line in lines) + f"{space})"


def _literal(text: str, *, braces: bool = True) -> str:
    """A text as the content of a Python string in double quotes. Invisible characters are escaped, because the card would
    show them as code points."""
    quoted = json.dumps(text, ensure_ascii=escape_hidden(text) != text)[1:-1]
    return quoted.replace("{", "{{").replace("}", "}}") if braces else quoted


# Tables


def _test_section(data: ReportData) -> list[str]:
    if not data.comparisons:
        return []
    rows = ["| set | group | format | n | before | after | difference |", "|---|---|---|---|---|---|---|"]
    for row in data.comparisons:
        score = row.chosen
        before, after = summary.format_percent(row.base.accuracy), summary.format_percent(score.accuracy)
        cells = (score.set, data.groups[score.set], f"{score.format}, {score.decoding}", str(score.n), before, after)
        rows.append(_table_row((*cells, summary.format_change(row.difference))))
    parts = ["## Test", "\n".join(rows), "All intervals are 95 % intervals over the questions, for one seed."]
    parts += [label_views.baseline_sentence(table) for table, _ in label_views.main_tables(data)]
    return parts + ([f"{controls_sentence(data)} {ONE_SEED_NOTE}"] if data.controls else [])


def _own_texts_section(data: ReportData) -> list[str]:
    """How much of its training the student wrote itself, who scored it, what the grader's verdicts changed, and numbers."""
    if data.own_texts is None or data.choice is None:
        return []
    numbers = own_texts_sentence(data.own_texts.steps, data.choice.checkpoint.step)
    return ["## Its own texts", " ".join([*data.own_texts.about, numbers])]


def _sources_section(facts: CardFacts) -> list[str]:
    """The base and the data sets with their licences."""
    base, parts = facts.base, ["## Base model and data"]
    if base is None:
        parts.append("The student started from random weights, so no licence of a base model applies.")
    else:
        commit = f", commit {base.commit}" if base.commit else ""
        licence = f"licence {base.licence} (as stated in {base.told_by})" if base.licence else "licence unknown"
        parts.append(f"Base model: {base.name}{commit}; {licence}.")
    if facts.sets:
        rows = ["| data set | use | licence | source |", "|---|---|---|---|"]
        rows += [
            _table_row((item.name, item.use, item.licence or "unknown", item.source or "not stated"))
            for item in facts.sets
        ]
        parts.append("\n".join(rows))
    return parts


def _table_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _fence(text: str, language: str) -> str:
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}{language}\n{text}\n{fence}"
