"""`potstill export`: kept chains for other trainers, and questions as tasks of lm-evaluation-harness."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from potstill import models, progress, prompts, stages, storage
from potstill.data import run_questions
from potstill.errors import UserError
from potstill.recipe import Recipe
from potstill.records import Prompt, Split
from potstill.run_reader import open_run
from potstill.serialization import to_json
from potstill.storage import manifest


def export_rows(run_dir: Path, form: str) -> Iterator[bytes]:
    """The kept chains, one JSON line per chain. form: `messages` (chat rows) or `jsonl` (whole chain records)."""
    run = open_run(run_dir)
    if manifest.read_finished(run_dir / "filter") is None:
        hint = f"run `potstill filter {run_dir}` first; `potstill show {run_dir}` shows chains without verdicts"
        raise UserError("the chains have no verdicts yet", code="E-cli-no-verdicts", where=run_dir, hint=hint)
    sets = run.recipe.questions.train
    chat = _chat_template(run.recipe) if form == "messages" else None
    texts = {question.id: question.text for question in run_questions.read_questions(run_dir, sets, "train")}
    for chain, _ in run.chains(kept=True):
        if form == "messages":
            prompt = prompts.build_prompt(texts[chain.question], prompts.FORMATS["zero-shot-rationale"])
            if chat is not None:
                prompt = Prompt((*chat.system, *prompt.turns))
            row: dict[str, Any] = {"messages": [*prompt.messages, {"role": "assistant", "content": chain.text}]}
            if chat is not None and chat.settings.kwargs:
                row["chat_template_kwargs"] = dict(chat.settings.kwargs)  # the name that TRL reads
        else:
            row = to_json(chain)
        yield storage.encode_json_line(row)


def _chat_template(recipe: Recipe) -> models.ChatTemplate | None:
    """The student's chat template, if the recipe sets more than whether it is used."""
    section = recipe.student
    if section.chat_template_kwargs is None and section.system_prompt is None:
        return None
    return models.chat_template_from_recipe(recipe, models.model_folder(recipe))


def export_tasks(run_dir: Path, out: Path) -> None:
    """Write the questions of a run as tasks of lm-evaluation-harness into `out`, one task per set and format.

    A run that only evaluates exports its test questions. Any other run exports its validation questions, so that the test
    split has no influence on the choice of a checkpoint. The harness uses the prompt in the document byte for byte. For a
    decoder-only student, the prompt ends with the white space before the answer, or is in the student's chat template.
    The harness decodes greedily, without a stop string.
    """
    recipe = open_run(run_dir).recipe
    section = recipe.questions
    split: Split = "test" if stages.recipe_stages(recipe) == stages.EVALUATION_STAGES else "validation"
    task_prompts, student = run_questions.read_task_prompts(run_dir), models.from_recipe(recipe)
    names = []
    for set_name in dict.fromkeys([*section.in_distribution, *section.out_of_distribution, *section.generic]):
        questions = run_questions.read_questions(run_dir, [set_name], split)
        for format in recipe.evaluate.formats:
            names.append(name := f"potstill_{set_name}_{format}".replace("-", "_"))
            rows = []
            for question in questions:
                prompt = run_questions.evaluation_prompt(question, prompts.FORMATS[format], task_prompts)
                row = {"id": question.id, "prompt": student.render(prompt)}
                rows.append({**row, "potstill_gold": question.gold, "potstill_task": question.task})
            documents = out / f"{name}.jsonl"
            storage.write_jsonl(documents, rows)
            text = TASK_YAML.format(name=name, path=documents.resolve(), max_tokens=recipe.evaluate.max_tokens)
            storage.write_file(out / f"{name}.yaml", text.encode())
    progress.print_line(f"lm_eval --include_path {out} --tasks {','.join(names)} --log_samples ...")


TASK_YAML: Final = """\
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
