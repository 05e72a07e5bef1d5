"""The bridge to lm-evaluation-harness: its logged samples as rows to grade, our sets as tasks of its own.

    >>> sample = {"doc": {"answer": "6 x 3 = 18\\n#### 18"}, "target": "6 x 3 = 18\\n#### 18", "resps": [["It is 18."]]}
    >>> as_row(sample, "samples.jsonl line 1")
    {'text': 'It is 18.', 'gold': '18'}

Its samples say neither how a text ended nor how it is to be graded: `--task` says the latter, or the documents of
tasks that `exported` made. Of several responses to one document the first is read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from potstill.errors import UserError
from potstill.records import Prompt, Question


def is_sample(row: Mapping[str, Any]) -> bool:
    """Whether a row is a sample that lm-evaluation-harness logged (`--log_samples`)."""
    return "resps" in row and "doc" in row and "text" not in row


def as_row(sample: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Text, gold answer and, where its document has them, task of a sample. Raises UserError where it has no text."""
    text = sample["resps"]
    while isinstance(text, list) and text:
        text = text[0]
    if not isinstance(text, str):
        do = "grade samples of generate_until tasks; scores of given choices need no grader"
        raise UserError("a sample without a text", where=where, found=json.dumps(sample["resps"])[:80], do=do)
    doc = sample["doc"] if isinstance(sample["doc"], dict) else {}
    gold = doc.get("potstill_gold", sample.get("target"))
    # the target of its GSM8K is the whole reference solution
    row = {"text": text, "gold": gold.rpartition("#### ")[2] if isinstance(gold, str) else gold}
    return {**row, "task": doc["potstill_task"]} if "potstill_task" in doc else row


def exported(
    name: str, asked: Sequence[tuple[Question, Prompt]], max_tokens: int, causal: bool
) -> Iterator[tuple[str, str]]:
    """The files of one task, as (name, content): its documents and the YAML that `--include_path FOLDER` finds.

    causal  whether the prompts end in the white space that a plain decoder-only model needs before its answer
    The prompt is the document's own text, byte for byte; what follows it is written greedily, without a stop string.
    """
    rows = [
        {
            "id": question.id,
            "prompt": prompt.plain + (prompt.lead if causal else ""),
            "potstill_gold": question.gold,
            "potstill_task": question.task,
        }
        for question, prompt in asked
    ]
    yield f"{name}.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    yield f"{name}.yaml", _YAML.format(name=name, max_tokens=max_tokens)


_YAML = """\
# Documents and prompts of potstill. Its own exact match is only a placeholder: grade the logged samples with
# `potstill grade samples.jsonl --out graded.jsonl`.
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {name}.jsonl
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
