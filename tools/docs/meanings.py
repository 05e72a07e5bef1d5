"""Units of recipe keys, and meanings of keys that the schema does not describe. A description in the schema is better:
delete the entry here once the schema has it."""

from __future__ import annotations

from typing import Final

# By the whole key, or by its last part. A field of the schema may bring its own: json_schema_extra={"unit": "tokens"}.
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
    "teacher.budget.prices.prompt": "money for a million tokens",
    "teacher.budget.prices.completion": "money for a million tokens",
    "steps": "optimizer steps",
    "warmup_steps": "optimizer steps",
    "on_policy.warmup_steps": "optimizer steps",
    "stable_steps": "optimizer steps",
    "checkpoint_every": "optimizer steps",
    "early_stopping_patience": "checkpoints",
    "peak_flops": "operations a second",
    "prompts_per_step": "prompts",
    "chains_per_prompt": "chains",
    "min_chars": "characters",
    "max_chars": "characters",
    "max_per_question": "chains a question",
    "teacher.samples": "chains a question",
    "on_policy.samples": "answers a question",
    "samples_per_request": "chains a request",
    "concurrency": "requests",
    "demonstrations": "",
    "train.demonstrations": "demonstrations",
    "near_duplicate_threshold": "share of 5-word runs",
    "contamination_threshold": "share of 8-word runs",
    "min_coverage": "share of positions",
    "min_probability": "probability",
}

MEANINGS: Final = {
    "questions": "The sets that are trained on and measured, by name.",
    "teacher": "The source of the chains of thought: a model, a server, a file, the sets' own solutions, or none.",
    "teacher.vllm": "How vLLM holds the teacher. Only for `teacher.kind: vllm`.",
    "teacher.server": "The server and how it is asked. Only for `teacher.kind: openai`.",
    "teacher.budget": "Ceilings that a run does not pass, counted over all of its processes.",
    "teacher.budget.prices": "The server's prices. The plan and `teacher.budget.money` use them.",
    "filter": "Rules that drop chains after grading. A chain that is not right is always dropped.",
    "transfer": "How the teacher's probabilities are turned into targets for the student.",
    "student": "The model that is trained. `student: FOLDER` is short for `student: {model: FOLDER}`.",
    "train": "How the student learns.",
    "evaluate": "How answers are generated for validation and test.",
    "evaluate.vllm": "How vLLM holds the student. Only for `evaluate.engine: vllm`.",
    "select": "How the checkpoint is chosen.",
    "report": "The report page and the student's model card.",
}
