"""Text generation: the protocol `Engine` (in `engine`), implemented with transformers, CTranslate2 and vLLM.

    engine = open_engine("models/qwen")
    texts = engine.generate([Request(("q1", 0), engine.encode(prompt))], Decode(max_tokens=256, temperature=0.7))

Model libraries are imported only when `open_engine` is called. To add an engine, write a module with a class that has
`encode` and `generate`, and add a name to `EngineKind`, a branch to `open_engine`, and the name to the recipe's
`evaluate.engine`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, overload

from potstill.inference.engine import (
    Decode,
    Engine,
    EngineKind,
    Generation,
    Request,
    SampleKey,
    ScoredText,
    ScoringEngine,
    StopUnit,
    batch_requests,
    check_decoder_only,
    check_installed,
    draw_uniform,
)

__all__ = [
    "VERSION",
    "Decode",
    "Engine",
    "EngineKind",
    "Generation",
    "Request",
    "SampleKey",
    "ScoredText",
    "ScoringEngine",
    "StopUnit",
    "batch_requests",
    "check_decoder_only",
    "check_installed",
    "draw_uniform",
    "open_engine",
]

if TYPE_CHECKING:
    from potstill.models import ChatSettings, Student
    from potstill.models.student import DType
    from potstill.recipe import VllmSection

VERSION: Final = 2  # version of `draw_uniform`, `batch_requests` and the engines' sampling; stored with sampled texts
CTRANSLATE2_VERSION: Final = 2  # version of the batches of the engine ctranslate2, on which its samples depend


def engine_identity(kind: EngineKind) -> dict[str, str]:
    """Name in manifests -> version, for an engine with a version of its own; empty for the others."""
    return {"version of ctranslate2": str(CTRANSLATE2_VERSION)} if kind.startswith("ctranslate2") else {}


@overload
def open_engine(
    source: Student | Path | str,
    kind: Literal["transformers"] = "transformers",
    *,
    trust_remote_code: bool = False,
    chat_template: ChatSettings | Literal["auto"] | bool = False,
    dtype: DType = "float32",
) -> ScoringEngine: ...
@overload
def open_engine(
    source: Student | Path | str,
    kind: EngineKind,
    *,
    trust_remote_code: bool = False,
    chat_template: ChatSettings | Literal["auto"] | bool = False,
    dtype: DType = "float32",
    vllm: VllmSection | None = None,
) -> Engine: ...
def open_engine(
    source: Student | Path | str,
    kind: EngineKind = "transformers",
    *,
    trust_remote_code: bool = False,
    chat_template: ChatSettings | Literal["auto"] | bool = False,
    dtype: DType = "float32",
    vllm: VllmSection | None = None,
) -> Engine:
    """An engine for a student, or for the model in a folder in Hugging Face format.

    kind           transformers computes on the device of the student. A model that is opened here is moved to
                   `models.default_device()`
    chat_template  for a folder: whether prompts use its chat template (see `models.open_student`)
    dtype          for a folder that transformers opens: type of its weights
    vllm           settings of vLLM. Without its dtype, vLLM computes a folder in the dtype of its weights, and a student in
                   float32, as the other engines do. vLLM reads the weights of a student that was opened without weights

    Raises UserError if the folder contains no supported model; if CTranslate2 is not installed, does not support the
    model, or would change its scores; and if vLLM is not installed or does not start.
    """
    from potstill import models  # torch

    is_vllm = kind == "vllm"
    if is_vllm:
        from potstill.inference import vllm as vllm_engine

        vllm_engine.import_vllm()  # before any file is read, because it may fail
    student, vllm_dtype = source, "float32"
    if isinstance(student, Path | str):
        settings: Any = {"chat_template": chat_template, "dtype": dtype, "weights": not is_vllm}
        student = models.open_student(student, trust_remote_code=trust_remote_code, **settings)
        vllm_dtype = str(student.model.dtype).removeprefix("torch.")
        if kind == "transformers":
            student = student.to(models.default_device())
    if is_vllm:
        from potstill.recipe import VllmSection

        section = vllm or VllmSection()
        return vllm_engine.VllmEngine(
            student, section, dtype=section.dtype or vllm_dtype, trust_remote_code=trust_remote_code
        )
    if kind == "transformers":
        from potstill.inference import transformers

        return transformers.TransformersEngine(student)
    from potstill.inference import ctranslate2

    return ctranslate2.CTranslate2Engine(student, int8=kind == "ctranslate2-int8")
