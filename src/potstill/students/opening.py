"""Students from folders and from nothing.

A folder holds what Hugging Face tools write: config.json, *.safetensors, and the tokenizer's files. Pickled weights
are refused, and so are weights that do not fill the model: transformers would draw the missing ones at random and say
so in a warning.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, GenerationConfig

from potstill import tokenizers
from potstill.errors import UserError
from potstill.loss import Mass
from potstill.students import causal, chat, t5
from potstill.students.shape import Family, Shape
from potstill.students.student import DType, Student, quiet
from potstill.tokenizers import Tokenizer


def open(
    folder: Path | str,
    *,
    kind: Family | None = None,
    mass: Mass = "raw",
    dropout: float | None = None,
    dtype: DType = "float32",
    trust_remote_code: bool = False,
    chat_template: chat.Asked = False,
    weights: bool = True,
) -> Student:
    """The student in a folder, in evaluation mode, on the CPU.

    kind               "t5" or "causal" if the folder must hold such a one; None for what config.json says
    mass               how the loss treats a kept mass under 1
    dropout            while training; None for what config.json says
    trust_remote_code  run model code that lies in the folder
    chat_template      prompts in the folder's own template: auto, True or False
    weights            False: everything but the weights, for who reads them himself in `Student.folder`

    Raises UserError where the folder, config.json or the weights are missing, torn, pickled, incomplete, of an
    unsupported kind, or do not fit the tokenizer.
    """
    folder = Path(folder)
    settings = _settings(folder)
    if settings.get("auto_map") and not trust_remote_code:
        raise UserError(
            "this model brings code of its own", where=folder, do="read it; then set student.trust_remote_code: true"
        )
    _weights(folder)
    tokenizer = tokenizers.open(folder)
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=trust_remote_code)
        family = _family(config, folder, kind)
        spoken = chat.open(folder, chat_template, family)
        (t5 if family == "t5" else causal).prepare(config, tokenizer, dropout)
        auto: Any = AutoModelForSeq2SeqLM if family == "t5" else AutoModelForCausalLM
        if not weights:
            return _bare(auto, config, tokenizer, folder, trust_remote_code, spoken)
        with quiet():
            model, found = auto.from_pretrained(
                folder,
                config=config,
                dtype=getattr(torch, dtype),
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=trust_remote_code,
                output_loading_info=True,
            )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(
            "the model cannot be loaded", where=folder, found=lines[0], do="get the folder again"
        ) from error
    if found["missing_keys"]:
        names = sorted(found["missing_keys"])
        raise UserError(
            "the weights do not fill the model",
            where=folder,
            found=f"{len(names)} missing, first {names[0]}",
            do="get the folder again, or correct config.json",
        )
    try:
        if family == "t5":
            return t5.T5(t5.open_model(model, folder), tokenizer, mass=mass).eval()
        student = causal.Causal(model, tokenizer, mass=mass).eval()
        student.chat = spoken
    except UserError as error:
        raise UserError(error.what, where=folder, found=error.args[2], do=error.args[3]) from None
    if config.model_type not in causal.KINDS:
        _probe(student, folder)
    return student


def initialise(
    shape: Shape, tokenizer: Tokenizer, seed: int, *, mass: Mass = "raw", dropout: float = 0.0, dtype: DType = "float32"
) -> Student:
    """A student with random weights, a function of shape and seed alone (on one machine). Raises UserError if the
    vocabulary is too small for the tokenizer."""
    assert dropout >= 0, f"dropout {dropout}"
    family: Any = t5 if shape.family == "t5" else causal
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = family.make(shape, tokenizer, dropout).to(getattr(torch, dtype))
    student = (t5.T5 if shape.family == "t5" else causal.Causal)(model, tokenizer, mass=mass)
    return student.eval()


def _bare(
    auto: Any, config: Any, tokenizer: Tokenizer, folder: Path, trust_remote_code: bool, spoken: chat.Chat | None
) -> Student:
    """The student in a folder with weights that have shapes and no values."""
    with torch.device("meta"):
        model = auto.from_config(config, trust_remote_code=trust_remote_code)
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
    student = (t5.T5 if config.model_type in t5.KINDS else causal.Causal)(model, tokenizer).eval()
    student.chat, student.folder = spoken, folder
    return student


def _settings(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise UserError("there is no such folder", where=folder, do="give the folder of a Hugging Face model")
    path = folder / "config.json"
    if not path.is_file():
        raise UserError("the folder has no config.json", where=folder, do="give the folder of a Hugging Face model")
    try:
        settings = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise UserError("not JSON", where=path, found=error, do="get the file again") from None
    if not isinstance(settings, dict):
        raise UserError("not a JSON object", where=path, do="get the file again")
    return settings


def _weights(folder: Path) -> None:
    if any((folder / name).is_file() for name in ("model.safetensors", "model.safetensors.index.json")):
        return
    pickled = sorted(path.name for path in folder.glob("*.bin")) + sorted(path.name for path in folder.glob("*.pt*"))
    if pickled:
        raise UserError(
            "the weights are a pickle, which runs code when it is read",
            where=folder / pickled[0],
            do="convert them to safetensors in a place where that may happen",
        )
    raise UserError("the folder has no model.safetensors", where=folder, do="give the folder of a Hugging Face model")


def _family(config: Any, folder: Path, kind: Family | None) -> Family:
    if config.model_type in t5.KINDS:
        family: Family = "t5"
    elif getattr(config, "is_encoder_decoder", False):
        raise UserError(
            "this kind of encoder-decoder model is not supported",
            where=folder / "config.json",
            found=config.model_type,
            do=f"use one of {', '.join(t5.KINDS)}, or a decoder-only model",
        )
    else:
        family = "causal"
    if kind not in (None, family):
        raise UserError(
            f"a {kind} model was asked for", where=folder / "config.json", found=f"{config.model_type} ({family})"
        )
    return family


def _probe(student: Student, folder: Path) -> None:
    """A kind without a test of its own must show that its head is one that we compute: some scale logits where nobody
    looks."""
    row = student.filler()
    with torch.no_grad():
        theirs = student.model(input_ids=row.input_ids, attention_mask=row.input_mask).logits.flatten(0, 1)[
            row.positions
        ]
        ours = student.head.logits(student.hidden(row))
    if not torch.allclose(ours, theirs, rtol=1e-3, atol=1e-3):
        raise UserError(
            "this kind of model computes its logits in a way that is not known here",
            where=folder / "config.json",
            found=student.model.config.model_type,
            do=f"use one of {', '.join(causal.KINDS)}",
        )
