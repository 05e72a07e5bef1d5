"""A whole run small enough for tests: a few sums, a teacher that has memorised them, and an untrained student."""

from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path

from potstill import models, prompts, runner, stages, tokenization, training
from potstill.alignment.cross_tokenizer import transfer
from potstill.models import Example, Shape
from potstill.recipe import Recipe, parse_recipe
from potstill.records import Chain
from tools.toy_models.tokenizer_training import train_bpe, train_unigram

UNDIGESTED = ("log.jsonl", "train/speed.jsonl", ".lock", "recipe.yaml", "report/time.html", "report/time.csv")
SETS = {"sums": 12, "other": 12, "more": 12}
RECIPE = """
name: tiny
seed: 3
sets:
  sums: {file: sets/sums.jsonl, task: number}
  other: {file: sets/other.jsonl, task: number}
  more: {file: sets/more.jsonl, task: number}
questions:
  train: [sums]
  in_distribution: [sums]
  out_of_distribution: [other]
  generic: [more]
  validation: 0.3
  test: 0.3
teacher: {kind: local, model: teacher, samples: 3, temperature: 1.0, max_tokens: 24, top_logprobs: 3, batch_tokens: 400}
student: {shape: {family: t5, d_model: 16, layers: 1, heads: 2, d_ff: 32}, tokenizer: student-tokenizer}
train:
  formats: {zero-shot-rationale: 2, zero-shot-answer: 1, few-shot-rationale: 1, few-shot-answer: 1}
  demonstrations: 2
  steps: 4
  prompts_per_step: 5
  batch_tokens: 400
  checkpoint_every: 2
  learning_rate: 1e-2
evaluate: {formats: [zero-shot-rationale, few-shot-answer], max_tokens: 6, batch_tokens: 400}
report: {examples: 3}
"""

SERVER = "teacher={kind: openai, model: m, samples: 3, temperature: 1.0, max_tokens: 24, top_logprobs: 3}"
REPLAY = "train.replay={share: 0.2, sets: [more]}"
ON_POLICY = (
    "on_policy={sets: [more], steps: 3, prompts_per_step: 3, max_tokens: 6, checkpoint_every: 2, top_logprobs: 4, samples: 2,"
    " learning_rate: 1e-2, warmup_steps: 1, keep: 0.3}"
)

# The demo in a minute: the same models and stages, fewer questions and steps. Such a student keeps no ability, so no bound.
DEMO = (
    "select.retain=null",
    "questions.limit={train: 40, validation: 20, test: 20}",
    "train.steps=4",
    "train.checkpoint_every=2",
    "train.warmup_steps=1",
)


def rows(name: str, n: int) -> list[dict[str, str]]:
    """n sums with their solutions; each set has wording of its own."""
    asks = {
        "sums": "Tom has {a} pens and gets {b} more. How many has he?",
        "other": "What do {a} and {b} make?",
        "more": "Add {b} to {a}.",
    }
    made = []
    for i in range(n):
        a, b = 1 + i % 5, 1 + i // 5
        made.append(
            {
                "id": str(i),
                "question": asks[name].format(a=a, b=b),
                "answer": str(a + b),
                "rationale": f"{a} + {b} = {a + b}.",
            }
        )
    return made


@functools.cache
def _models() -> dict[str, bytes]:
    """The files of the teacher and of the student's tokenizer, made once a process."""
    import tempfile

    texts = [
        row["question"] + " " + prompts.format_solution(row["rationale"], row["answer"])
        for name in SETS
        for row in rows(name, 25)
    ]
    texts += ["Question: Q: A: Let's think step by step", "The answer is 1"] * 10
    folder = Path(tempfile.mkdtemp())
    student = train_unigram(texts, 120)
    teacher = _teacher(train_bpe(texts, 320))
    (folder / "teacher").mkdir()
    (folder / "student-tokenizer").mkdir()
    teacher.save(folder / "teacher")
    for name, content in student.files.items():
        (folder / "student-tokenizer" / name).write_bytes(content)
    made = {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
    shutil.rmtree(folder)
    return made


def _teacher(tokenizer: tokenization.Tokenizer) -> models.Student:
    """A causal model that has learnt the solutions of the first set by heart, with the house's own loop."""
    teacher = models.random_student(Shape("causal", 32, 2, 2, 64, 16, tokenizer.size), tokenizer, 0)
    examples = []
    for row in rows("sums", SETS["sums"]):
        prompt = prompts.build_prompt(
            row["question"], prompts.FORMATS["zero-shot-rationale"], style=prompts.TEACHER_STYLE
        )
        text = prompts.format_solution(row["rationale"], row["answer"])
        target = transfer(Chain.from_text("", 0, text, source="human"), tokenizer, "one-hot")
        examples.append(Example(tuple(teacher.encode(teacher.render(prompt))), target))
    optimizer = training.build_optimizer(teacher, rate=5e-3)
    schedule = training.Schedule("constant", 5e-3, 5)
    for _ in training.train_steps(
        teacher, optimizer, lambda step: [examples], first=1, last=80, schedule=schedule, seed=0
    ):
        pass
    return teacher


def world(folder: Path) -> Path:
    """The data folder of the tiny run, made under `folder`."""
    data = folder / "data"
    for name, n in SETS.items():
        path = data / "sets" / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows(name, n)))
    for name, content in _models().items():
        path = data / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return data


def recipe(data: Path, *changes: str) -> Recipe:
    return parse_recipe(RECIPE, "tiny.yaml", [f"data={data}", *changes])


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a run that a digest covers, and the manifests."""
    found = {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
    return {name: content for name, content in found.items() if name not in UNDIGESTED}


def make(data: Path, folder: Path, *changes: str, until: str = "report") -> Path:
    return runner.run(recipe(data, *changes), run_dir=folder, until=until)


__all__ = ["DEMO", "ON_POLICY", "REPLAY", "contents", "make", "recipe", "rows", "world"]


def belongs(name: str, stage: str) -> bool:
    """Whether a stage makes the file of this name; the student's folder is made by `report`."""
    return name.startswith(f"{stage}/") or (stage == "report" and name.startswith("student/"))


def before(whole: Path, run_dir: Path, stage: str) -> Path:
    """A copy of the whole run as it was before a stage began."""
    later = stages.stages_from(stage)

    def left_out(folder: str, names: list[str]) -> list[str]:
        return [name for name in names if folder == str(whole) and (name in later or name == "student")]

    return Path(shutil.copytree(whole, run_dir, ignore=left_out))
