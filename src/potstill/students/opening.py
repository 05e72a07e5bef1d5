"""Students from folders and from nothing.

A folder holds what Hugging Face tools write: config.json, *.safetensors, and the tokenizer's files. Pickled and
quantized weights are refused, and so are weights that are not finite or do not fill the model: transformers would draw
the missing ones at random and say so in a warning. `check_weights` finds all of that before anything is paid for.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, GenerationConfig

from potstill import tokenizers
from potstill.errors import UserError
from potstill.loss import Mass
from potstill.students import causal, chat, t5, weight_files
from potstill.students.shape import Family, Shape
from potstill.students.student import DType, Student, quiet
from potstill.students.weight_files import refuse_infinite, refuse_quantized
from potstill.tokenizers import Tokenizer

CORRECT: Final = "get the folder again, or correct config.json"
# What transformers makes room or builds modules for before it looks at the weights.
LAYERS: Final = ("num_layers", "num_hidden_layers", "num_encoder_layers", "num_decoder_layers", "n_layer", "n_layers")
LAYER: Final = re.compile(r"^(?:model\.|(?P<side>encoder|decoder)\.)?(?:layers|block)\.(?P<number>\d{1,9})\.")
LABELS: Final = 100_000
LARGEST: Final = 2**40


def open(
    folder: Path | str,
    *,
    kind: Family | None = None,
    mass: Mass = "raw",
    dropout: float | None = None,
    dtype: DType = "float32",
    trust_remote_code: bool = False,
    chat_template: chat.Asked = False,
    chat_key: str = "student.chat",
    weights: bool = True,
) -> Student:
    """The student in a folder, in evaluation mode, on the CPU.

    kind               "t5" or "causal" if the folder must hold such a one; None for what config.json says
    mass               how the loss treats a kept mass under 1
    dropout            while training; None for what config.json says
    trust_remote_code  run model code that lies in the folder
    chat_template      prompts in the folder's own template: auto, True or False
    chat_key           the key of the recipe that says so, for messages
    weights            False: everything but the weights, for who reads them himself in `Student.folder`; then they may
                       be quantized

    Raises UserError where the folder, config.json or the weights are missing, cut off, pickled, quantized, incomplete,
    not finite, of an unsupported kind, or do not fit the tokenizer.
    """
    folder = Path(folder)
    settings = _settings(folder)
    if settings.get("auto_map") and not trust_remote_code:
        raise UserError(
            "this model brings code of its own", where=folder, do="read it; then set student.trust_remote_code: true"
        )
    stored = _stored(folder, settings)
    if weights:
        refuse_quantized(folder, settings, stored)
    tokenizer = tokenizers.open(folder)
    try:
        with quiet():
            config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=trust_remote_code)
        family = _family(config, folder, kind)
        if config.model_type in (*t5.KINDS, *causal.KINDS):
            _deep_enough(config, folder, stored)
        spoken = chat.open(folder, chat_template, family, chat_key)
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
    except UserError:
        raise
    except Exception as error:  # the library raises of all kinds where a file is not what it expects
        lines = [line.strip() for line in str(error).strip().splitlines()[:2]] or [type(error).__name__]
        raise UserError("the model cannot be loaded", where=folder, found=" ".join(lines)[:300], do=CORRECT) from error
    if found["missing_keys"]:
        raise _unfilled(folder, sorted(found["missing_keys"]))
    refuse_infinite(folder, model.named_parameters())
    try:
        if family == "t5":
            return t5.T5(t5.open_model(model, folder), tokenizer, mass=mass).eval()
        causal.check_head(model)
        student = causal.Causal(model, tokenizer, mass=mass).eval()
        student.chat = spoken
    except UserError as error:
        raise UserError(error.what, where=folder, found=error.args[2], do=error.args[3]) from None
    if config.model_type not in causal.KINDS:
        _probe(student, folder)
    return student


def check_weights(folder: Path | str, *, trust_remote_code: bool = False) -> None:
    """Read a model's folder as `open` would, without building the model: what would stop a run at its training stops it
    before a teacher is asked. Takes as long as reading the weights once.

    Raises UserError as `open` does.
    """
    folder = Path(folder)
    settings = _settings(folder)
    stored = _stored(folder, settings)
    refuse_quantized(folder, settings, stored)
    student = open(folder, trust_remote_code=trust_remote_code, weights=False)
    if student.model.config.model_type in (*t5.KINDS, *causal.KINDS):
        _fill(student, folder, stored)
    weight_files.check_finite(folder)


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
    with quiet(), torch.device("meta"):
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
    generation = folder / "generation_config.json"
    if generation.is_file():
        _object(generation)  # transformers passes over one that it cannot read, and with it the tokens that end a text
    return _object(path)


def _object(path: Path) -> dict[str, Any]:
    try:
        read = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError("not JSON", where=path, found=error, do="get the file again") from None
    if not isinstance(read, dict):
        raise UserError("not a JSON object", where=path, do="get the file again")
    return read


def _stored(folder: Path, settings: Mapping[str, Any]) -> dict[str, weight_files.Tensor]:
    """The tensors of a folder, checked as far as config.json and the headers of the files allow."""
    stored = weight_files.tensors(folder)
    for section in (settings, *(value for value in settings.values() if isinstance(value, dict))):
        for key, value in section.items():
            most = LARGEST if key != "num_labels" else LABELS
            if key in LAYERS:  # one has several tensors
                most = len(stored)
            if type(value) is int and value > most:
                found = f"{key[:40]}: {str(value)[:20]}, the weights have {len(stored)} tensors"
                raise UserError("config.json is not of this model", where=folder, found=found, do=CORRECT)
    if settings.get("model_type") in t5.KINDS and settings.get("tie_word_embeddings") is False:
        # Of a head and an embedding that are two, transformers 5 takes the one for the other where a file lacks it.
        for names in t5.OWN:
            if not stored.keys() & names:
                raise _unfilled(folder, [names[0]])
    return stored


def _deep_enough(config: Any, folder: Path, stored: Mapping[str, weight_files.Tensor]) -> None:
    """Raises UserError where the files hold more layers than config.json has: transformers leaves them out."""
    for name in stored:
        if numbered := LAYER.search(name):
            own = "num_decoder_layers" if numbered["side"] == "decoder" else "num_hidden_layers"
            if int(numbered["number"]) >= getattr(config, own):
                found = f"{name}, by config.json {getattr(config, own)} layers"
                raise UserError("the model has fewer layers than its weights", where=folder, found=found, do=CORRECT)


def _fill(student: Student, folder: Path, stored: Mapping[str, weight_files.Tensor]) -> None:
    """Raises UserError unless the tensors of a folder are those of a model that has no values yet."""
    prefix = f"{student.model.base_model_prefix}."
    names: dict[int, list[str]] = {}  # tied parameters are one, and one name is enough
    shapes: dict[str, tuple[int, ...]] = {}
    for name, value in student.model.named_parameters(remove_duplicate=False):
        names.setdefault(id(value), []).append(name)
        shapes[name] = tuple(value.shape)
    missing = []
    for own in names.values():
        held = {name: stored.get(name) or stored.get(name.removeprefix(prefix)) for name in own}
        if not any(held.values()):
            missing.append(own[0])
        for name, tensor in held.items():
            if tensor is not None and tensor.shape != shapes[name]:
                found = f"{name} of {list(tensor.shape)}, by config.json {list(shapes[name])}"
                raise UserError("the weights do not fit config.json", where=folder, found=found, do=CORRECT)
    if missing:
        raise _unfilled(folder, sorted(missing))


def _unfilled(folder: Path, names: list[str]) -> UserError:
    found = f"{len(names)} missing, first {names[0]}"
    return UserError("the weights do not fill the model", where=folder, found=found, do=CORRECT)


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
