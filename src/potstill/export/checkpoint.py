"""`potstill export RUN --as merged` and `--as adapter`: one checkpoint of a run as a folder.

    model.safetensors, config.json, tokenizer.json, ...    merged: a model that every Hugging Face tool loads
    adapter_model.safetensors, adapter_config.json         adapter: a LoRA adapter for peft
    export.json                                            the checkpoint, and the parity figure

Merged weights are those with which the checkpoint was evaluated: base plus adapter, interpolated if the checkpoint is an
interpolation, in the dtype of the base. A run without LoRA has them in its checkpoints already. The adapter of an
interpolation is scaled. Both folders are read back and compared with the checkpoint.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, cast

from potstill import models, storage
from potstill.errors import UserError
from potstill.evaluation import checkpoint as checkpoints
from potstill.export.parity import not_equal
from potstill.export.source import ExportedRun, new_folder
from potstill.models import StoredDType, adapter_files
from potstill.records import Checkpoint
from potstill.run_reader import open_run

MOST_MOVED: Final = 1e-5  # of the largest weight of a tensor, between an interpolation and a scaled adapter on the base


def export_merged(run: ExportedRun, folder: Path, name: str | None, weights: str | None) -> list[str]:
    """Write a checkpoint as a whole model. Returns its parity figure, and how a recipe names the folder.

    name     the checkpoint, such as `500` or `500-0.3`; None: the selected one
    weights  dtype of the weights; None: that of the base

    Raises UserError if there is no such checkpoint, if its base is missing or another one, or if a weight is too large.
    """
    chosen = find_checkpoint(run, name)
    dtype = cast(StoredDType, weights or models.base_dtype(run.recipe))
    student = checkpoints.open_checkpoint(run.run_dir, run.recipe, chosen, rounded=False)
    models.round_weights(student, dtype)
    with new_folder(folder, "merged", run.run_dir) as (partial, about):
        student.save(partial, dtype=dtype)
        total = len(student.weights())
        moved = adapter_files.compare_weights(student.weights(), models.from_checkpoint(run.recipe, partial).weights())
        if moved:
            raise not_equal("the merged weights are read back as others", f"differences up to {moved:.2g}")
        sentence = f"weights: {total} of {total} tensors read back as merged, {dtype}"
        about |= {"checkpoint": chosen.json_value, "weights": dtype, "parity": {"sentences": [sentence]}}
    return [sentence, f"student: {{model: {folder}}}"]


def export_adapter(run: ExportedRun, folder: Path, name: str | None) -> list[str]:
    """Write the adapter of a checkpoint as a folder of peft. Returns its parity figure, and the code that loads it.

    Raises UserError as `export_merged` does, and if the checkpoint has no adapter.
    """
    chosen = find_checkpoint(run, name)
    student = checkpoints.open_checkpoint(run.run_dir, run.recipe, chosen, rounded=False)
    with new_folder(folder, "adapter", run.run_dir) as (partial, about):
        checkpoints.copy_adapter(run.run_dir, chosen, partial)
        own = checkpoints.weights_dir(run.run_dir, chosen)
        # Adapters of earlier versions, beside merged weights, do not name their base.
        base = models.open_adapter_base(run.recipe, own) if models.is_adapter(own) else models.from_recipe(run.recipe)
        adapter_files.merge_adapter(base.model, partial)
        total = len(student.weights())
        moved = adapter_files.compare_weights(student.weights(), base.weights())
        if moved > (0 if chosen.share == 1 else MOST_MOVED):
            raise not_equal("base and adapter have other weights than the checkpoint", f"differences up to {moved:.2g}")
        sentence = f"weights: {total} of {total} tensors of base and adapter are those of the checkpoint"
        if chosen.share != 1:
            sentence += f", up to {moved:.2g} of the largest of a tensor"
        about |= {"checkpoint": chosen.json_value, "parity": {"sentences": [sentence]}}
    return [sentence, f"PeftModel.from_pretrained(base, {str(folder)!r})"]


def find_checkpoint(run: ExportedRun, name: str | None) -> Checkpoint:
    """The checkpoint with a name; without a name the selected one. Raises UserError if there is none."""
    if name is None:
        return open_run(run.run_dir).choice
    try:
        return Checkpoint.parse(name)
    except ValueError:
        saved = storage.list_saved_steps(run.run_dir / "train" / "checkpoints")
        raise UserError(
            "this is not the name of a checkpoint",
            code="E-export-checkpoint",
            where="--checkpoint",
            found=name,
            hint=f"write a step, such as 500, or 500-0.3 for an interpolation; saved steps: {saved}",
        ) from None
