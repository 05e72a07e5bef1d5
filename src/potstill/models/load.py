"""Weights between two students (Wortsman et al. 2022): what training changed, taken in part.

>>> from potstill.models import Shape
>>> from potstill.tokenization import train_unigram
>>> tokenizer = train_unigram(["2 + 2 = 4", "The answer is 4"], 60)
>>> shape = Shape("t5", d_model=8, layers=1, heads=2, d_ff=16, d_kv=4, vocabulary=tokenizer.size)
>>> one, other = (random_student(shape, tokenizer, seed) for seed in (1, 2))
>>> interpolate_weights(one, random_student(shape, tokenizer, 1), 0.25)   # a student mixed with itself is itself
>>> torch.equal(one.head.weight, random_student(shape, tokenizer, 1).head.weight)
True

Students from folders and from nothing.

A folder holds what Hugging Face tools write: config.json, *.safetensors, and the tokenizer's files. Pickled and
quantized weights are refused, and so are weights that are not finite or do not fill the model: transformers would draw
the missing ones at random and say so in a warning. `check_weights` finds all of that before anything is paid for.

The student that a recipe names, before any training: step 0 of a run.

Opened from a folder, or made of random weights as a function of the recipe's shape and seed, so that it never has to
be stored.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, GenerationConfig

from potstill import storage, tokenization
from potstill.errors import UserError
from potstill.losses import MissingProbability
from potstill.models import causal, chat_template, t5, weight_files
from potstill.models.chat_template import ChatTemplate, open_chat_template
from potstill.models.shape import SHAPES, Family, Shape
from potstill.models.student import DType, Student, quiet_transformers
from potstill.models.weight_files import refuse_non_finite, refuse_quantized
from potstill.recipe import Recipe, find_path
from potstill.tokenization import Tokenizer


def interpolate_weights(student: Student, base: Student, share: float) -> None:
    """Move the weights of a student in place: `share` of its own and the rest of the base's, weight by weight.

    Raises UserError where the two are not of one shape.
    """
    assert 0 <= share <= 1, f"a share of {share}"
    theirs = dict(base.model.named_parameters())
    own = dict(student.model.named_parameters())
    if {name: value.shape for name, value in own.items()} != {name: value.shape for name, value in theirs.items()}:
        raise UserError(
            "the checkpoint is not of the base student's shape",
            where="evaluate.interpolate",
            hint="train again (--redo train)",
        )
    with torch.no_grad():
        for name, value in own.items():
            value.lerp_(theirs[name].to(value), 1 - share)


FIX_CONFIG: Final = "get the folder again, or correct config.json"
# What transformers makes room or builds modules for before it looks at the weights.
LAYER_COUNT_KEYS: Final = (
    "num_layers",
    "num_hidden_layers",
    "num_encoder_layers",
    "num_decoder_layers",
    "n_layer",
    "n_layers",
)
LAYER_NAME: Final = re.compile(r"^(?:model\.|(?P<side>encoder|decoder)\.)?(?:layers|block)\.(?P<number>\d{1,9})\.")
MAX_LABELS: Final = 100_000
MAX_CONFIG_INTEGER: Final = 2**40


def open_student(
    folder: Path | str,
    *,
    kind: Family | None = None,
    mass: MissingProbability = "raw",
    dropout: float | None = None,
    dtype: DType = "float32",
    trust_remote_code: bool = False,
    chat_template: chat_template.ChatSetting = False,
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
    settings = _read_config(folder)
    if settings.get("auto_map") and not trust_remote_code:
        raise UserError(
            "this model brings code of its own", where=folder, hint="read it; then set student.trust_remote_code: true"
        )
    stored = _list_checked_tensors(folder, settings)
    if weights:
        refuse_quantized(folder, settings, stored)
    tokenizer = tokenization.load_tokenizer(folder)
    try:
        with quiet_transformers():
            config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=trust_remote_code)
        family = _detect_family(config, folder, kind)
        if config.model_type in (*t5.MODEL_TYPES, *causal.MODEL_TYPES):
            _check_layer_count(config, folder, stored)
        spoken = open_chat_template(folder, chat_template, family, chat_key)
        (t5 if family == "t5" else causal).prepare_config(config, tokenizer, dropout)
        auto: Any = AutoModelForSeq2SeqLM if family == "t5" else AutoModelForCausalLM
        if not weights:
            return _build_without_weights(auto, config, tokenizer, folder, trust_remote_code, spoken)
        with quiet_transformers():
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
        raise UserError(
            "the model cannot be loaded", where=folder, found=" ".join(lines)[:300], hint=FIX_CONFIG
        ) from error
    if found["missing_keys"]:
        raise _missing_tensors_error(folder, sorted(found["missing_keys"]))
    refuse_non_finite(folder, model.named_parameters())
    try:
        if family == "t5":
            return t5.T5Student(t5.check_tied_head(model, folder), tokenizer, mass=mass).eval()
        causal.check_tied_head(model)
        student = causal.CausalStudent(model, tokenizer, mass=mass).eval()
        student.chat = spoken
    except UserError as error:
        raise UserError(error.what, where=folder, found=error.found, hint=error.hint) from None
    if config.model_type not in causal.MODEL_TYPES:
        _check_logits(student, folder)
    return student


def check_weights(folder: Path | str, *, trust_remote_code: bool = False) -> None:
    """Read a model's folder as `open` would, without building the model: what would stop a run at its training stops it
    before a teacher is asked. Takes as long as reading the weights once.

    Raises UserError as `open` does.
    """
    folder = Path(folder)
    settings = _read_config(folder)
    stored = _list_checked_tensors(folder, settings)
    refuse_quantized(folder, settings, stored)
    student = open_student(folder, trust_remote_code=trust_remote_code, weights=False)
    if student.model.config.model_type in (*t5.MODEL_TYPES, *causal.MODEL_TYPES):
        _check_all_tensors_stored(student, folder, stored)
    weight_files.check_finite(folder)


def random_student(
    shape: Shape,
    tokenizer: Tokenizer,
    seed: int,
    *,
    mass: MissingProbability = "raw",
    dropout: float = 0.0,
    dtype: DType = "float32",
) -> Student:
    """A student with random weights, a function of shape and seed alone (on one machine). Raises UserError if the
    vocabulary is too small for the tokenizer."""
    assert dropout >= 0, f"dropout {dropout}"
    family: Any = t5 if shape.family == "t5" else causal
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = family.build_random_model(shape, tokenizer, dropout).to(getattr(torch, dtype))
    student = (t5.T5Student if shape.family == "t5" else causal.CausalStudent)(model, tokenizer, mass=mass)
    return student.eval()


def _build_without_weights(
    auto: Any,
    config: Any,
    tokenizer: Tokenizer,
    folder: Path,
    trust_remote_code: bool,
    spoken: chat_template.ChatTemplate | None,
) -> Student:
    """The student in a folder with weights that have shapes and no values."""
    with quiet_transformers(), torch.device("meta"):
        model = auto.from_config(config, trust_remote_code=trust_remote_code)
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
    student = (t5.T5Student if config.model_type in t5.MODEL_TYPES else causal.CausalStudent)(model, tokenizer).eval()
    student.chat, student.folder = spoken, folder
    return student


def _read_config(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise UserError("there is no such folder", where=folder, hint="give the folder of a Hugging Face model")
    path = folder / "config.json"
    if not path.is_file():
        raise UserError("the folder has no config.json", where=folder, hint="give the folder of a Hugging Face model")
    generation = folder / "generation_config.json"
    if generation.is_file():
        _read_json_object(
            generation
        )  # transformers passes over one that it cannot read, and with it the tokens that end a text
    return _read_json_object(path)


def _read_json_object(path: Path) -> dict[str, Any]:
    try:
        read = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError("not JSON", where=path, found=error, hint="get the file again") from None
    if not isinstance(read, dict):
        raise UserError("not a JSON object", where=path, hint="get the file again")
    return read


def _list_checked_tensors(folder: Path, settings: Mapping[str, Any]) -> dict[str, weight_files.TensorHeader]:
    """The tensors of a folder, checked as far as config.json and the headers of the files allow."""
    stored = weight_files.list_tensors(folder)
    for section in (settings, *(value for value in settings.values() if isinstance(value, dict))):
        for key, value in section.items():
            most = MAX_CONFIG_INTEGER if key != "num_labels" else MAX_LABELS
            if key in LAYER_COUNT_KEYS:  # one has several tensors
                most = len(stored)
            if type(value) is int and value > most:
                found = f"{key[:40]}: {str(value)[:20]}, the weights have {len(stored)} tensors"
                raise UserError("config.json is not of this model", where=folder, found=found, hint=FIX_CONFIG)
    if settings.get("model_type") in t5.MODEL_TYPES and settings.get("tie_word_embeddings") is False:
        # Of a head and an embedding that are two, transformers 5 takes the one for the other where a file lacks it.
        for names in t5.UNTIED_TENSORS:
            if not stored.keys() & names:
                raise _missing_tensors_error(folder, [names[0]])
    return stored


def _check_layer_count(config: Any, folder: Path, stored: Mapping[str, weight_files.TensorHeader]) -> None:
    """Raises UserError where the files hold more layers than config.json has: transformers leaves them out."""
    for name in stored:
        if numbered := LAYER_NAME.search(name):
            own = "num_decoder_layers" if numbered["side"] == "decoder" else "num_hidden_layers"
            if int(numbered["number"]) >= getattr(config, own):
                found = f"{name}, by config.json {getattr(config, own)} layers"
                raise UserError(
                    "the model has fewer layers than its weights", where=folder, found=found, hint=FIX_CONFIG
                )


def _check_all_tensors_stored(student: Student, folder: Path, stored: Mapping[str, weight_files.TensorHeader]) -> None:
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
                raise UserError("the weights do not fit config.json", where=folder, found=found, hint=FIX_CONFIG)
    if missing:
        raise _missing_tensors_error(folder, sorted(missing))


def _missing_tensors_error(folder: Path, names: list[str]) -> UserError:
    found = f"{len(names)} missing, first {names[0]}"
    return UserError("the weights do not fill the model", where=folder, found=found, hint=FIX_CONFIG)


def _detect_family(config: Any, folder: Path, kind: Family | None) -> Family:
    if config.model_type in t5.MODEL_TYPES:
        family: Family = "t5"
    elif getattr(config, "is_encoder_decoder", False):
        raise UserError(
            "this kind of encoder-decoder model is not supported",
            where=folder / "config.json",
            found=config.model_type,
            hint=f"use one of {', '.join(t5.MODEL_TYPES)}, or a decoder-only model",
        )
    else:
        family = "causal"
    if kind not in (None, family):
        raise UserError(
            f"a {kind} model was asked for", where=folder / "config.json", found=f"{config.model_type} ({family})"
        )
    return family


def _check_logits(student: Student, folder: Path) -> None:
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
            hint=f"use one of {', '.join(causal.MODEL_TYPES)}",
        )


def from_recipe(recipe: Recipe, *, weights: bool = True) -> Student:
    """The untrained student, its loss set as the recipe says. Raises UserError as `open` and `initialise` do.

    weights  False: without them, if they lie in a folder; see `open`
    """
    asked = recipe.student
    if asked.model is not None:
        folder = find_path(recipe, asked.model, "student.model")
        check_tokenizer(recipe, folder)
        return from_checkpoint(recipe, folder, weights=weights)
    tokenizer = tokenization.load_tokenizer(tokenizer_folder(recipe))
    return random_student(
        shape_from_recipe(recipe, tokenizer.size),
        tokenizer,
        recipe.seed,
        mass=recipe.train.missing_probability,
        dropout=asked.dropout,
    )


def from_checkpoint(recipe: Recipe, folder: Path, *, weights: bool = True) -> Student:
    """The student in a folder, the recipe's model or a checkpoint of its training, as the recipe asks for it."""
    asked = recipe.student
    return open_student(
        folder,
        mass=recipe.train.missing_probability,
        dropout=asked.dropout,
        trust_remote_code=asked.trust_remote_code,
        chat_template=False if asked.model is None else asked.chat,
        weights=weights,
    )


def chat_template_from_recipe(recipe: Recipe, folder: Path) -> ChatTemplate | None:
    """How the student in a folder is spoken to, without its weights: None for plain prompts."""
    settings = storage.read_json(folder / "config.json")
    family = "t5" if settings.get("model_type") in t5.MODEL_TYPES else "causal"
    return chat_template.open_chat_template(folder, recipe.student.chat, family)


def auto_uses_chat_template(folder: Path) -> bool:
    """Whether `auto` would speak to the model in a folder in its own chat template."""
    settings = storage.read_json(folder / "config.json") if (folder / "config.json").is_file() else None
    return (
        isinstance(settings, dict)
        and settings.get("model_type") not in t5.MODEL_TYPES
        and chat_template.has_chat_template(folder)
    )


def read_family(folder: Path) -> Family:
    """The family of the model in a folder, by its config.json alone."""
    settings = storage.read_json(folder / "config.json")
    return "t5" if isinstance(settings, dict) and settings.get("model_type") in t5.MODEL_TYPES else "causal"


def check_tokenizer(recipe: Recipe, folder: Path) -> None:
    """Raises UserError where the recipe names a tokenizer that does not give a text the same ids as that of the model
    in `folder`: the model would be asked with the one and taught with the other."""
    if recipe.student.tokenizer is None:
        return
    if tokenization.load_tokenizer(folder).digest != tokenization.load_tokenizer(tokenizer_folder(recipe)).digest:
        raise UserError(
            "is not the tokenizer of the model",
            where="student.tokenizer",
            found=f"{recipe.student.tokenizer}, and another one in {folder}",
            hint="leave student.tokenizer out: the model's folder brings its own",
        )


def weights_identity(recipe: Recipe) -> dict[str, str]:
    """Digests of what the base student is made from, by recipe key."""
    if recipe.student.model is not None:
        found = {"student.model": storage.folder_fingerprint(find_path(recipe, recipe.student.model, "student.model"))}
        # What `auto` comes to is told by the folder.
        return found if recipe.student.chat == "auto" else found | {"student.chat": str(recipe.student.chat).lower()}
    return {"student.tokenizer": tokenization.load_tokenizer(tokenizer_folder(recipe)).digest}


def tokenizer_folder(recipe: Recipe) -> Path:
    """Where the student's tokenizer lies: its own key, else the model's folder."""
    if recipe.student.tokenizer is not None:
        return find_path(recipe, recipe.student.tokenizer, "student.tokenizer")
    assert recipe.student.model is not None, "the recipe has a model or a tokenizer"
    return find_path(recipe, recipe.student.model, "student.model")


def shape_from_recipe(recipe: Recipe, vocabulary: int) -> Shape:
    """The size of a student with random weights. Raises UserError for an unknown name."""
    asked = recipe.student.shape
    assert asked is not None, "a student without weights has a shape"
    if isinstance(asked, str):
        if asked not in SHAPES:
            raise UserError("no such shape", where="student.shape", found=asked, hint=f"one of {', '.join(SHAPES)}")
        return SHAPES[asked]
    return Shape(
        asked.family,
        asked.d_model,
        asked.layers,
        asked.heads,
        asked.d_ff,
        asked.d_kv or asked.d_model // asked.heads,
        vocabulary,
    )


def count_stored_parameters(folder: Path) -> int:
    """The number of parameters of a model in a folder, from the headers of its weights, which are not loaded. Raises
    UserError as `weight_files.tensors` does."""
    return sum(math.prod(tensor.shape) for tensor in weight_files.list_tensors(folder).values())
