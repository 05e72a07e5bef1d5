"""Units of recipe keys, and meanings of keys that the schema does not describe. Prefer a description in the schema, and
delete the entry here once the schema has one.
"""

from __future__ import annotations

from typing import Final

# Keyed by the complete key, or by its last part. A field may have its own unit: json_schema_extra={"unit": "tokens"}.
UNITS: Final = {
    "timeout": "seconds",
    "patience": "seconds",
    "max_tokens": "tokens",
    "batch_tokens": "tokens",
    "teacher.vllm.length": "tokens",
    "evaluate.vllm.length": "tokens",
    "memory": "share of a device's memory",
    "gpus": "devices",
    "teacher.budget.tokens": "tokens",
    "teacher.budget.money": "the currency of the prices",
    "teacher.budget.prices.prompt": "money per million tokens",
    "teacher.budget.prices.completion": "money per million tokens",
    "train.on_policy.scorers.NAME.budget.tokens": "tokens",
    "train.on_policy.scorers.NAME.budget.money": "the currency of the prices",
    "train.on_policy.scorers.NAME.budget.prices.prompt": "money per million tokens",
    "train.on_policy.scorers.NAME.budget.prices.completion": "money per million tokens",
    "refresh_every": "optimizer steps",
    "train.on_policy.samples": "texts per question",
    "steps": "optimizer steps",
    "warmup_steps": "optimizer steps",
    "on_policy.warmup_steps": "optimizer steps",
    "stable_steps": "optimizer steps",
    "checkpoint_every": "optimizer steps",
    "train.checkpoints": "optimizer steps",
    "select.retain": "points (hundredths) of accuracy",
    "early_stopping_patience": "checkpoints",
    "peak_flops": "operations per second",
    "prompts_per_step": "prompts",
    "chains_per_prompt": "chains",
    "min_chars": "characters",
    "max_chars": "characters",
    "max_per_question": "chains per question",
    "teacher.samples": "chains per question",
    "on_policy.samples": "answers per question",
    "samples_per_request": "chains per request",
    "concurrency": "requests",
    "demonstrations": "",
    "train.demonstrations": "demonstrations",
    "near_duplicate_threshold": "share of 5-word runs",
    "contamination_threshold": "share of 8-word runs",
    "min_coverage": "share of positions",
    "min_probability": "probability",
}

MEANINGS: Final = {
    "questions": "The training and evaluation sets, by name.",
    "teacher": "The source of the chains of thought: a model, a server, a file, the sets' solutions, or none.",
    "teacher.vllm": "How vLLM runs the teacher. Only for `teacher.kind: vllm`.",
    "teacher.server": "The server and how requests are sent. Only for `teacher.kind: openai`.",
    "teacher.budget": "Spending limits of a run, over all of its processes.",
    "teacher.budget.prices": "The server's prices. The plan and `teacher.budget.money` use them.",
    "train.on_policy.scorers.NAME.budget.prices": "The server's prices, for `budget.money`.",
    "filter": "Rules that drop chains after grading. A chain that is not right is always dropped.",
    "transfer": "How the teacher's probabilities become targets for the student.",
    "student": "The model to train. `student: FOLDER` is short for `student: {model: FOLDER}`.",
    "train": "How the student is trained.",
    "evaluate": "How answers are generated for validation and test.",
    "evaluate.vllm": "How vLLM runs the student. Only for `evaluate.engine: vllm`.",
    "select": "How the checkpoint is selected.",
    "report": "The report page and the student's model card.",
}
