"""`potstill export RUN --as lm-eval`: the questions of a run as tasks of lm-evaluation-harness, whose table then shows the
score that potstill reports.

    potstill_SET_FORMAT.yaml     one task per set and format
    potstill_SET_FORMAT.jsonl    the documents of the task: exact prompt, gold answer, task of the grader
    potstill_tasks.py            loads the documents, and grades answers with potstill's grader
    tokenizer/                   shows which answers reached the token limit
    export.json                  the parity figures

A finished run, and a run that only evaluates, export their test questions. Before the stage `test`, a run exports its
validation questions, so that the test split has no influence on the choice of a checkpoint.

    >>> task_name("multi-arith", "zero-shot-rationale")
    'potstill_multi_arith_zero_shot_rationale'
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from potstill import models, prompts, stages, storage
from potstill.data import run_questions
from potstill.evaluation import checkpoint, query_settings
from potstill.export.parity import not_equal
from potstill.export.source import EXPORT_FILE, ExportedRun
from potstill.records import BASE, Checkpoint, Question, Split
from potstill.storage import manifest

if TYPE_CHECKING:
    from potstill.models import Student

TASKS_FILE: Final = "potstill_tasks.py"


def task_name(set_name: str, format: str) -> str:
    return f"potstill_{set_name}_{format}".replace("-", "_")


def export_tasks(run: ExportedRun, folder: Path) -> list[str]:
    """Write the tasks into the folder, next to existing files. Returns the parity figures and the command that runs them.

    The harness uses the prompt in the document byte for byte. For a decoder-only student, the prompt ends with the white
    space before the answer, or is in the student's chat template. Raises UserError if the exported grader gives another
    verdict on an answer of the run.
    """
    recipe, section = run.recipe, run.recipe.questions
    only_evaluates = stages.recipe_stages(recipe) == stages.EVALUATION_STAGES
    is_tested = manifest.read_finished(run.run_dir / "test") is not None
    split: Split = "test" if only_evaluates or is_tested else "validation"
    is_shipped = (run.student_folder / "config.json").is_file()
    student = run.open_student() if is_shipped else models.from_recipe(recipe)
    for name, content in student.tokenizer.files.items():
        storage.write_file(folder / "tokenizer" / name, content)
    storage.write_file(folder / TASKS_FILE, TASKS_CODE.encode())
    names = []
    for set_name in dict.fromkeys([*section.in_distribution, *section.out_of_distribution, *section.generic]):
        questions = run_questions.read_questions(run.run_dir, [set_name], split)
        for format in recipe.evaluate.formats:
            names.append(name := task_name(set_name, format))
            rows = [_document(run, student, question, format) for question in questions]
            storage.write_jsonl(folder / f"{name}.jsonl", rows)
            text = TASK_YAML.format(name=name, max_tokens=recipe.evaluate.max_tokens)
            storage.write_file(folder / f"{name}.yaml", text.encode())
    graded = _load_grader(folder)
    sentences, parity = [], {}
    if split == "test" and is_tested and "greedy" in checkpoint.list_decodings(recipe, "test"):
        answered = BASE if only_evaluates else checkpoint.read_choice(run.run_dir).checkpoint
        parity = _compare_verdicts(run, folder, answered, graded)
        sentences = [f"{name}: {row['sentence']}" for name, row in parity.items()]
    storage.write_json(
        folder / EXPORT_FILE, {"form": "lm-eval", "run": run.run_dir.resolve().name, "split": split, "parity": parity}
    )
    dtype = query_settings.measured_dtype(recipe)
    model = f"pretrained={run.student_folder if is_shipped else 'FOLDER'},dtype={dtype}{_add_bos(student)}"
    command = f"lm_eval run --model hf --model_args {model} --include_path {folder} --tasks {','.join(names)}"
    return [*sentences, command + " --batch_size 1"]


def _add_bos(student: Student) -> str:
    """The argument that tells the harness whether to add a BOS token. A chat template already contains it."""
    if student.family == "t5":
        return ""
    return f",add_bos_token={student.chat is None and bool(student.tokenizer.prefix)}"


def _document(run: ExportedRun, student: Student, question: Question, format: str) -> dict[str, Any]:
    prompt = run_questions.evaluation_prompt(question, prompts.FORMATS[format], run.task_prompts)
    return {
        "id": question.id,
        "prompt": student.render(prompt),
        "potstill_gold": question.gold,
        "potstill_task": question.task,
        "potstill_max_tokens": run.recipe.evaluate.max_tokens,
        "potstill_stop_at_answer": run.recipe.evaluate.stop_at_answer,
        "potstill_opens_thought": student.opens_thought,
    }


def _load_grader(folder: Path) -> Callable[[Mapping[str, Any], list[str]], dict[str, float]]:
    """The function `process_results` of the written file, loaded as the harness loads it."""
    spec = importlib.util.spec_from_file_location("potstill_exported_tasks", folder / TASKS_FILE)
    assert spec is not None and spec.loader is not None, "the file was just written"
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.process_results


def _compare_verdicts(
    run: ExportedRun, folder: Path, answered: Checkpoint, graded: Callable[..., dict[str, float]]
) -> dict[str, dict[str, Any]]:
    """Grade the run's greedy answers to its test questions with the exported grader. Raises UserError if a verdict differs.

    Returns the parity figures per task.
    """
    # In bfloat16 the harness rounds differently, so that a few answers may differ.
    expected = "must be" if query_settings.measured_dtype(run.recipe) == "float32" else "must be close to"
    found = {}
    for format in run.recipe.evaluate.formats:
        by_set: dict[str, list[tuple[bool, bool]]] = {}
        documents: dict[str, dict[str, Any]] = {}
        for prediction in checkpoint.read_predictions(run.run_dir / "test", answered, format, "greedy"):
            if prediction.set not in by_set:
                rows = storage.read_jsonl(folder / f"{task_name(prediction.set, format)}.jsonl")
                documents |= {row["id"]: row for _, row in rows}
            verdict = graded(documents[prediction.question], [prediction.text])["acc"] == 1
            by_set.setdefault(prediction.set, []).append((prediction.grade == "right", verdict))
        for set_name, pairs in by_set.items():
            equal, right = sum(own == theirs for own, theirs in pairs), sum(own for own, _ in pairs)
            if equal < len(pairs):
                raise not_equal(
                    "the exported grader gives other verdicts", f"{set_name}: {equal} of {len(pairs)} are equal"
                )
            sentence = f"{equal} of {len(pairs)} verdicts equal; acc {expected} {right / len(pairs):.4f}"
            counts = {"questions": len(pairs), "equal": equal, "right": right, "accuracy": right / len(pairs)}
            found[task_name(set_name, format)] = {**counts, "sentence": sentence}
    return found


TASKS_CODE: Final = '''\
"""Tasks of potstill for lm-evaluation-harness: their documents, and potstill's grader (pip install potstill)."""

from pathlib import Path

from potstill import grading, prompts, tokenization

FOLDER = Path(__file__).parent
TOKENIZER = tokenization.load_tokenizer(FOLDER / "tokenizer")


def load_documents(documents, **_):
    import datasets

    return datasets.load_dataset("json", data_files={"test": str(FOLDER / documents)})


def process_results(doc, results):
    """Grade an answer. If it reached the token limit, it counts only if it has a marked answer."""
    text = results[0]
    ran_out = len(TOKENIZER.encode(text).ids) >= doc["potstill_max_tokens"]
    end = prompts.find_answer_sentence_end(text) if doc["potstill_stop_at_answer"] else None
    if end is not None:
        text, ran_out = text[:end], False
    gold, task, stop = doc["potstill_gold"], doc["potstill_task"], "length" if ran_out else "end"
    verdict = grading.grade(text, gold, task, stop, opened=doc["potstill_opens_thought"])
    return {"acc": float(verdict.grade == "right")}
'''
TASK_YAML: Final = """\
# Documents and prompts of potstill, graded by potstill's grader: `acc` is the share of right answers.
task: {name}
custom_dataset: !function potstill_tasks.load_documents
dataset_kwargs:
  documents: {name}.jsonl
test_split: test
output_type: generate_until
doc_to_text: "{{{{prompt}}}}"
doc_to_target: "{{{{potstill_gold}}}}"
target_delimiter: ""
process_results: !function potstill_tasks.process_results
generation_kwargs:
  until: []
  do_sample: false
  max_gen_toks: {max_tokens}
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
metadata:
  version: 2.0
"""
