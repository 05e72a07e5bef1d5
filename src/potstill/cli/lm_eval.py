"""The bridge to lm-evaluation-harness: converts its logged samples to rows, and a run's questions to its tasks.

    >>> sample = {"doc": {"answer": "6 x 3 = 18\\n#### 18"}, "target": "6 x 3 = 18\\n#### 18", "resps": [["It is 18."]]}
    >>> sample_to_row(sample, "samples.jsonl line 1")
    {'text': 'It is 18.', 'gold': '6 x 3 = 18\\n#### 18'}

Its samples contain neither the stop reason nor the task. `--task` gives the task; documents that `export_tasks` wrote have
it. Of several responses to one document the first is read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from potstill import progress, prompts, storage
from potstill.cli.run_folder import read_run_recipe
from potstill.data import run_questions
from potstill.errors import UserError
from potstill.records import Question, Split


def is_logged_sample(row: Mapping[str, Any]) -> bool:
    """Whether a row is a sample that lm-evaluation-harness logged (`--log_samples`)."""
    return "resps" in row and "doc" in row and "text" not in row


def deduplicate_filters(
    rows: Sequence[tuple[str, dict[str, Any]]],
) -> tuple[list[tuple[str, dict[str, Any]]], list[str]]:
    """Each document once, in the order of the file, and the names of the filters that it was logged for.

    A filter selects a response or extracts a part of it; the responses are the same. Raises UserError if they are not.
    """
    by_document: dict[str, dict[str, tuple[str, Any]]] = {}  # document -> filter -> (position, responses)
    kept = []
    for where, row in rows:
        if is_logged_sample(row) and isinstance(row.get("filter"), str):
            document = json.dumps([row.get("doc_id"), row.get("doc_hash"), row["doc"]], sort_keys=True, default=str)
            filters = by_document.setdefault(document, {})
            if filters and row["filter"] not in filters:
                other, responses = next(iter(filters.values()))
                if responses != row["resps"]:
                    raise UserError(
                        "two filters have different responses",
                        code="E-grade-filters",
                        where=where,
                        found=f"see {other}",
                        hint="grade the samples of each filter in a file of their own",
                    )
                filters[row["filter"]] = (where, responses)
                continue
            filters[row["filter"]] = (where, row["resps"])
        kept.append((where, row))
    return kept, list(dict.fromkeys(name for filters in by_document.values() for name in filters))


def sample_to_row(sample: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The text, gold answer and task (if its document has one) of a sample. Raises UserError if it has no text."""
    text = sample["resps"]
    while isinstance(text, list) and text:
        text = text[0]
    if not isinstance(text, str):
        raise UserError(
            "a sample without a text",
            code="E-grade-sample-text",
            where=where,
            found=json.dumps(sample["resps"])[:80],
            hint="grade samples of generate_until tasks; multiple-choice tasks need no grader",
        )
    document = sample["doc"] if isinstance(sample["doc"], dict) else {}
    row = {"text": text, "gold": document.get("potstill_gold", sample.get("target"))}
    return {**row, "task": document["potstill_task"]} if "potstill_task" in document else row


def export_tasks(run_dir: Path, out: Path) -> None:
    """Writes the questions of a run as tasks of lm-evaluation-harness into `out`, one per set and format.

    A run that only evaluates exports its test questions; any other run its validation questions, so that the test split
    has no influence on the choice of a checkpoint. The prompt is the document's own text, byte for byte: for a
    decoder-only student it ends in the white space before the answer, or is in the student's chat template. The harness
    decodes greedily, without a stop string.
    """
    from potstill import models, stages  # they load torch, which `grade` does not need

    recipe = read_run_recipe(run_dir)
    section = recipe.questions
    split: Split = "test" if stages.recipe_stages(recipe) == stages.EVALUATION_STAGES else "validation"
    task_prompts, student = run_questions.read_task_prompts(run_dir), models.from_recipe(recipe)
    names = []
    for set_name in dict.fromkeys([*section.in_distribution, *section.out_of_distribution, *section.generic]):
        questions = run_questions.read_questions(run_dir, [set_name], split)
        for format in recipe.evaluate.formats:
            name = f"potstill_{set_name}_{format}".replace("-", "_")
            rows = []
            for question in questions:
                prompt = run_questions.evaluation_prompt(question, prompts.FORMATS[format], task_prompts)
                rows.append(_document(question, student.render(prompt)))
            documents = out / f"{name}.jsonl"
            storage.write_jsonl(documents, rows)
            text = _TASK_YAML.format(name=name, path=documents.resolve(), max_tokens=recipe.evaluate.max_tokens)
            storage.write_file(out / f"{name}.yaml", text.encode())
            names.append(name)
    progress.print_line(f"lm_eval --include_path {out} --tasks {','.join(names)} --log_samples ...")


def _document(question: Question, prompt: str) -> dict[str, str]:
    return {"id": question.id, "prompt": prompt, "potstill_gold": question.gold, "potstill_task": question.task}


_TASK_YAML = """\
# Documents and prompts of potstill. Its own exact match is only a placeholder: grade the logged samples with
# `potstill grade samples.jsonl --out graded.jsonl`.
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {path}
test_split: test
output_type: generate_until
doc_to_text: "{{{{prompt}}}}"
doc_to_target: "{{{{potstill_gold}}}}"
target_delimiter: ""
generation_kwargs:
  until: []
  do_sample: false
  max_gen_toks: {max_tokens}
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
metadata:
  version: 1.0
"""
