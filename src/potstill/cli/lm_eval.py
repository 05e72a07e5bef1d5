"""The bridge to lm-evaluation-harness: its logged samples as rows to grade, our sets as tasks of its own.

    >>> sample = {"doc": {"answer": "6 x 3 = 18\\n#### 18"}, "target": "6 x 3 = 18\\n#### 18", "resps": [["It is 18."]]}
    >>> sample_to_row(sample, "samples.jsonl line 1")
    {'text': 'It is 18.', 'gold': '6 x 3 = 18\\n#### 18'}

Its samples say neither how a text ended nor how it is to be graded: `--task` says the latter, or the documents of
tasks that `export` made. Of several responses to one document the first is read.
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
    """Each document once where samples were logged for several filters, in the order of the file; and the filters.

    A filter chooses from the responses, or cuts something out of them; the responses are the same. Raises UserError
    where they are not.
    """
    first: dict[str, dict[str, tuple[str, Any]]] = {}  # document -> filter -> where, responses
    kept = []
    for where, row in rows:
        if is_logged_sample(row) and isinstance(row.get("filter"), str):
            document = json.dumps([row.get("doc_id"), row.get("doc_hash"), row["doc"]], sort_keys=True, default=str)
            seen = first.setdefault(document, {})
            if seen and row["filter"] not in seen:
                other, responses = next(iter(seen.values()))
                if responses != row["resps"]:
                    hint = "grade the samples of each filter in a file of their own"
                    raise UserError(
                        "two filters have different responses", where=where, found=f"see {other}", hint=hint
                    )
                seen[row["filter"]] = (where, responses)
                continue
            seen[row["filter"]] = (where, row["resps"])
        kept.append((where, row))
    return kept, list(dict.fromkeys(name for seen in first.values() for name in seen))


def sample_to_row(sample: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Text, gold answer and, where its document has them, task of a sample. Raises UserError where it has no text."""
    text = sample["resps"]
    while isinstance(text, list) and text:
        text = text[0]
    if not isinstance(text, str):
        hint = "grade samples of generate_until tasks; scores of given choices need no grader"
        raise UserError("a sample without a text", where=where, found=json.dumps(sample["resps"])[:80], hint=hint)
    doc = sample["doc"] if isinstance(sample["doc"], dict) else {}
    row = {"text": text, "gold": doc.get("potstill_gold", sample.get("target"))}
    return {**row, "task": doc["potstill_task"]} if "potstill_task" in doc else row


def export_tasks(folder: Path, out: Path) -> None:
    """Write the questions of a run as tasks of lm-evaluation-harness, one for every set and format, into `out`.

    Of a run that trains nothing its test questions, of any other those of validation: which checkpoint is chosen must
    not hang on the test split. The prompt is the document's own text, byte for byte; for a student that is no T5 it
    ends in the white space before the answer, or stands in the student's chat template. What follows it is
    written greedily, without a stop string.
    """
    from potstill import models, stages  # torch, which nobody needs who grades

    recipe = read_run_recipe(folder)
    asked = recipe.questions
    sets = dict.fromkeys([*asked.in_distribution, *asked.out_of_distribution, *asked.generic])
    split: Split = "test" if stages.recipe_stages(recipe) == stages.EVALUATION_STAGES else "validation"
    table = run_questions.read_task_prompts(folder)
    student = models.from_recipe(recipe)
    names = []
    for each in sets:
        questions = run_questions.read_questions(folder, [each], split)
        for format in recipe.evaluate.formats:
            name = f"potstill_{each}_{format}".replace("-", "_")
            rows = [
                _document(q, student.render(run_questions.evaluation_prompt(q, prompts.FORMATS[format], table)))
                for q in questions
            ]
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
