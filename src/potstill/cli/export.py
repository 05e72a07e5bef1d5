"""`potstill export`: writes kept chains as lines for other trainers, and exports for other programs as folders.

    potstill export runs/demo --as messages > chat.jsonl
    potstill export runs/demo --as gguf --to exported
    potstill export runs/demo --as merged --checkpoint 500 --to exported

The package `potstill.export` writes the folders.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from potstill import models, prompts, storage
from potstill.data import labels, run_questions
from potstill.errors import UserError
from potstill.recipe import Recipe
from potstill.records import Prompt
from potstill.run_reader import open_run
from potstill.serialization import to_json
from potstill.storage import manifest

WEIGHTS: Final = {
    "gguf": ("F32", "F16", "BF16", "Q8_0"),
    "ctranslate2": ("float32", "int8"),
    "merged": ("float32", "bfloat16", "float16"),
}
OF_CHECKPOINTS: Final = ("merged", "adapter")  # all other exports are of the student


def export_rows(run_dir: Path, form: str) -> Iterator[bytes]:
    """The kept chains, one JSON line per chain. form: `messages` (chat rows) or `jsonl` (whole chain records)."""
    run = open_run(run_dir)
    if manifest.read_finished(run_dir / "filter") is None:
        hint = f"run `potstill filter {run_dir}` first; `potstill show {run_dir}` shows chains without verdicts"
        raise UserError("the chains have no verdicts yet", code="E-cli-no-verdicts", where=run_dir, hint=hint)
    sets = run.recipe.questions.train
    chat = _chat_template(run.recipe) if form == "messages" else None
    questions = {question.id: question for question in run_questions.read_questions(run_dir, sets, "train")}
    instructions = labels.instructions(run.recipe)
    for chain, _ in run.chains(kept=True):
        if form == "messages":
            asked, zero_shot = questions[chain.question], prompts.FORMATS["zero-shot-rationale"]
            prompt = prompts.build_prompt(asked.text, zero_shot, instruction=instructions.get(asked.task, ""))
            if chat is not None:
                prompt = Prompt((*chat.system, *prompt.turns))
            row: dict[str, Any] = {"messages": [*prompt.messages, {"role": "assistant", "content": chain.text}]}
            if chat is not None and chat.settings.kwargs:
                row["chat_template_kwargs"] = dict(chat.settings.kwargs)  # the name that TRL reads
        else:
            row = to_json(chain)
        yield storage.encode_json_line(row)


def _chat_template(recipe: Recipe) -> models.ChatTemplate | None:
    """The student's chat template, if the recipe sets its arguments or a system message; otherwise None."""
    section = recipe.student
    if section.chat_template_kwargs is None and section.system_prompt is None:
        return None
    return models.chat_template_from_recipe(recipe, models.model_folder(recipe))


def export_folder(
    run_dir: Path,
    form: str,
    folder: Path,
    weights: str | None,
    questions: int,
    pairs: int,
    checkpoint: str | None = None,
) -> list[str]:
    """Write an export as a folder. Returns sentences with its parity figures, and a command that uses it."""
    from potstill.export.source import open_exported_run

    allowed = WEIGHTS.get(form, ())
    if weights is not None and weights not in allowed:
        raise UserError(
            f"{form} has no such type of weights" if allowed else f"{form} has no weights",
            code="E-cli-export-weights",
            where="--weights",
            found=weights,
            hint=f"use one of {', '.join(allowed)}" if allowed else "remove --weights",
        )
    if checkpoint is not None and form not in OF_CHECKPOINTS:
        what, hint = f"{form} exports the student of the run", "remove --checkpoint"
        raise UserError(what, code="E-export-checkpoint", where="--checkpoint", found=checkpoint, hint=hint)
    run = open_exported_run(run_dir)
    if form in OF_CHECKPOINTS:
        from potstill.export import checkpoint as one_checkpoint

        if form == "merged":
            return one_checkpoint.export_merged(run, folder, checkpoint, weights)
        return one_checkpoint.export_adapter(run, folder, checkpoint)
    if form == "gguf":
        from potstill.export import gguf

        return [*gguf.export_gguf(run, folder, weights, questions), f"ollama create NAME -f {folder / 'Modelfile'}"]
    if form == "ctranslate2":
        from potstill.export import ctranslate2

        return ctranslate2.export_ctranslate2(run, folder, weights or "float32", questions)
    if form == "preference":
        from potstill.export import preference

        return preference.export_preferences(run, folder, pairs)
    from potstill.export import lm_eval

    return lm_eval.export_tasks(run, folder)
