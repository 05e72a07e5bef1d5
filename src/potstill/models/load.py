"""Students from folders, from a recipe, and with random weights; interpolation between two students.

    >>> from potstill.models import Shape
    >>> from potstill.tokenization import train_unigram
    >>> tokenizer = train_unigram(["2 + 2 = 4", "The answer is 4"], 60)
    >>> shape = Shape("t5", d_model=8, layers=1, heads=2, d_ff=16, d_kv=4, vocabulary=tokenizer.size)
    >>> student, other = (random_student(shape, tokenizer, seed) for seed in (1, 2))
    >>> interpolate_weights(student, random_student(shape, tokenizer, 1), 0.25)     # between a student and itself
    >>> torch.equal(student.head.weight, random_student(shape, tokenizer, 1).head.weight)
    True

A folder holds what Hugging Face tools write: config.json, *.safetensors, and the tokenizer's files. Refused are pickled
and quantized weights, weights that are not finite, and weights that do not fill the model: transformers would draw the
missing ones at random and only warn. `check_weights` finds all of that before a run costs anything.

The base student of a recipe, step 0 of its run, comes from a folder, or has random weights that are a function of the
recipe's shape and seed, so it is never stored.
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
from potstill.models import causal, t5, weight_files
from potstill.models.chat_template import ChatSetting, ChatTemplate, has_chat_template, open_chat_template
from potstill.models.shape import SHAPES, Family, Shape
from potstill.models.student import DType, Student, quiet_transformers
from potstill.models.weight_files import (
    FIX_CONFIG,
    GIVE_MODEL_FOLDER,
    TensorHeader,
    refuse_non_finite,
    refuse_quantized,
)
from potstill.recipe import Recipe, find_path
from potstill.tokenization import Tokenizer

# Settings for which transformers allocates memory or builds modules before it reads the weights.
LAYER_COUNT_KEYS: Final = [
    "num_layers",
    "num_hidden_layers",
    "num_encoder_layers",
    "num_decoder_layers",
    "n_layer",
    "n_layers",
]
LAYER_NAME: Final = re.compile(r"^(?:model\.|(?P<side>encoder|decoder)\.)?(?:layers|block)\.(?P<number>\d{1,9})\.")
MAX_LABELS: Final = 100_000
MAX_CONFIG_INTEGER: Final = 2**40


def open_student(
    folder: Path | str,
    *,
    family: Family | None = None,
    dropout: float | None = None,
    dtype: DType = "float32",
    trust_remote_code: bool = False,
    chat_template: ChatSetting = False,
    chat_key: str = "student.chat",
    weights: bool = True,
) -> Student:
    """The student in a folder, in evaluation mode, on the CPU.

    family             "t5" or "causal" if the folder must hold such a model; None for what config.json says
    dropout            while training; None for what config.json says
    trust_remote_code  run model code from the folder
    chat_template      whether prompts use the folder's own template: auto, True or False
    chat_key           the recipe's key of that setting, for messages
    weights            False: everything but the weights, for a caller that reads them from `Student.folder`; then they
                       may be quantized

    Raises UserError if the folder, config.json or the weights are missing, truncated, pickled, quantized, incomplete,
    not finite, of an unsupported kind, or do not fit the tokenizer.
    """
    folder = Path(folder)
    settings = _read_config(folder)
    if settings.get("auto_map") and not trust_remote_code:
        raise UserError(
            "this model needs code from its own folder",
            code="E-model-remote-code",
            where=folder,
            hint="read the code; then set student.trust_remote_code: true",
        )
    tensors = _list_checked_tensors(folder, settings)
    if weights:
        refuse_quantized(folder, settings, tensors)
    tokenizer = tokenization.load_tokenizer(folder)
    try:
        with quiet_transformers():
            config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=trust_remote_code)
        detected = _detect_family(config, folder, family)
        if config.model_type in (*t5.MODEL_TYPES, *causal.MODEL_TYPES):
            _check_layer_count(config, folder, tensors)
        chat = open_chat_template(folder, chat_template, detected, chat_key)
        (t5 if detected == "t5" else causal).prepare_config(config, tokenizer, dropout)
        auto_class: Any = AutoModelForSeq2SeqLM if detected == "t5" else AutoModelForCausalLM
        if not weights:
            return _build_without_weights(auto_class, config, tokenizer, folder, trust_remote_code, chat)
        with quiet_transformers():
            model, report = auto_class.from_pretrained(
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
    except Exception as error:  # the library raises errors of many types for a faulty file
        lines = [line.strip() for line in str(error).strip().splitlines()[:2]] or [type(error).__name__]
        raise UserError(
            "the model cannot be loaded",
            code="E-model-unreadable",
            where=folder,
            found=" ".join(lines)[:300],
            hint=FIX_CONFIG,
        ) from error
    if report["missing_keys"]:
        raise _missing_tensors_error(folder, sorted(report["missing_keys"]))
    refuse_non_finite(folder, model.named_parameters())
    (t5 if detected == "t5" else causal).check_tied_head(model, folder)
    try:
        student = (t5.T5Student if detected == "t5" else causal.CausalStudent)(model, tokenizer).eval()
    except UserError as error:
        raise UserError(error.what, code=error.code, where=folder, found=error.found, hint=error.hint) from None
    student.chat = chat
    if config.model_type not in (*t5.MODEL_TYPES, *causal.MODEL_TYPES):
        _check_logits(student, folder)
    return student


def check_weights(folder: Path | str, *, trust_remote_code: bool = False) -> None:
    """Make the checks of `open_student` without building the model, so that faulty weights stop a run before it costs
    anything and not at its training. Takes as long as reading the weights once.

    Raises UserError as `open_student` does.
    """
    folder = Path(folder)
    settings = _read_config(folder)
    tensors = _list_checked_tensors(folder, settings)
    refuse_quantized(folder, settings, tensors)
    student = open_student(folder, trust_remote_code=trust_remote_code, weights=False)
    if student.model.config.model_type in (*t5.MODEL_TYPES, *causal.MODEL_TYPES):
        _check_all_tensors_stored(student, folder, tensors)
    weight_files.check_finite(folder)


def random_student(
    shape: Shape, tokenizer: Tokenizer, seed: int, *, dropout: float = 0.0, dtype: DType = "float32"
) -> Student:
    """A student with random weights, a function of shape and seed alone (on one machine). Raises UserError if the
    vocabulary is too small for the tokenizer."""
    assert dropout >= 0, f"dropout {dropout}"
    family: Any = t5 if shape.family == "t5" else causal
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = family.build_random_model(shape, tokenizer, dropout).to(getattr(torch, dtype))
    return (t5.T5Student if shape.family == "t5" else causal.CausalStudent)(model, tokenizer).eval()


def interpolate_weights(student: Student, base: Student, share: float) -> None:
    """Replace each weight by share * its own value + (1 - share) * the base's, in place (Wortsman et al. 2022).

    Raises UserError if the two have different shapes.
    """
    assert 0 <= share <= 1, f"a share of {share}"
    base_weights = dict(base.model.named_parameters())
    weights = dict(student.model.named_parameters())
    shapes = ({name: value.shape for name, value in values.items()} for values in (weights, base_weights))
    if next(shapes) != next(shapes):
        raise UserError(
            "the checkpoint does not have the base student's shape",
            code="E-evaluate-different-shapes",
            where="evaluate.interpolate",
            hint="train again (--redo train)",
        )
    with torch.no_grad():
        for name, value in weights.items():
            value.lerp_(base_weights[name].to(value), 1 - share)


def _build_without_weights(
    auto_class: Any,
    config: Any,
    tokenizer: Tokenizer,
    folder: Path,
    trust_remote_code: bool,
    chat: ChatTemplate | None,
) -> Student:
    """The student in a folder, its weights with shapes but without values."""
    with quiet_transformers(), torch.device("meta"):
        model = auto_class.from_config(config, trust_remote_code=trust_remote_code)
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
    is_t5 = config.model_type in t5.MODEL_TYPES
    student = (t5.T5Student if is_t5 else causal.CausalStudent)(model, tokenizer).eval()
    student.chat, student.folder = chat, folder
    return student


def _read_config(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise UserError("the folder does not exist", code="E-model-no-folder", where=folder, hint=GIVE_MODEL_FOLDER)
    path = folder / "config.json"
    if not path.is_file():
        raise UserError("the folder has no config.json", code="E-model-no-config", where=folder, hint=GIVE_MODEL_FOLDER)
    generation = folder / "generation_config.json"
    if generation.is_file():
        _read_json_object(generation)  # transformers skips an unreadable one, and with it the tokens that end a text
    return _read_json_object(path)


def _read_json_object(path: Path) -> dict[str, Any]:
    hint = "download the file again"
    try:
        value = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(
            "the file is not valid JSON", code="E-model-bad-json", where=path, found=error, hint=hint
        ) from None
    if not isinstance(value, dict):
        raise UserError("the file is not a JSON object", code="E-model-bad-json", where=path, hint=hint)
    return value


def _list_checked_tensors(folder: Path, settings: Mapping[str, Any]) -> dict[str, TensorHeader]:
    """The tensors of a folder, checked as far as config.json and the headers of the files allow."""
    tensors = weight_files.list_tensors(folder)
    for section in (settings, *(value for value in settings.values() if isinstance(value, dict))):
        for key, value in section.items():
            most = MAX_CONFIG_INTEGER if key != "num_labels" else MAX_LABELS
            if key in LAYER_COUNT_KEYS:  # each layer has several tensors
                most = len(tensors)
            if type(value) is int and value > most:
                raise UserError(
                    "config.json belongs to another model",
                    code="E-model-bad-config",
                    where=folder,
                    found=f"{key[:40]}: {str(value)[:20]}, the weights have {len(tensors)} tensors",
                    hint=FIX_CONFIG,
                )
    if settings.get("model_type") in t5.MODEL_TYPES and settings.get("tie_word_embeddings") is False:
        # If one of an untied head and embedding is missing, transformers 5 silently uses the other in its place.
        for names in t5.UNTIED_TENSORS:
            if not tensors.keys() & names:
                raise _missing_tensors_error(folder, [names[0]])
    return tensors


def _check_layer_count(config: Any, folder: Path, tensors: Mapping[str, TensorHeader]) -> None:
    """Raises UserError if the files hold more layers than config.json has, because transformers ignores them."""
    for name in tensors:
        if layer := LAYER_NAME.search(name):
            key = "num_decoder_layers" if layer["side"] == "decoder" else "num_hidden_layers"
            if int(layer["number"]) >= getattr(config, key):
                raise UserError(
                    "the model has fewer layers than its weights",
                    code="E-model-bad-config",
                    where=folder,
                    found=f"{name}, by config.json {getattr(config, key)} layers",
                    hint=FIX_CONFIG,
                )


def _check_all_tensors_stored(student: Student, folder: Path, tensors: Mapping[str, TensorHeader]) -> None:
    """Raises UserError unless the files hold every parameter of a model without values, in its shape."""
    prefix = f"{student.model.base_model_prefix}."
    aliases: dict[int, list[str]] = {}  # tied parameters are one object, and one stored name is enough
    shapes: dict[str, tuple[int, ...]] = {}
    for name, value in student.model.named_parameters(remove_duplicate=False):
        aliases.setdefault(id(value), []).append(name)
        shapes[name] = tuple(value.shape)
    missing = []
    for names in aliases.values():
        stored = {name: tensors.get(name) or tensors.get(name.removeprefix(prefix)) for name in names}
        if not any(stored.values()):
            missing.append(names[0])
        for name, tensor in stored.items():
            if tensor is not None and tensor.shape != shapes[name]:
                raise UserError(
                    "the weights do not fit config.json",
                    code="E-model-bad-config",
                    where=folder,
                    found=f"{name} of {list(tensor.shape)}, by config.json {list(shapes[name])}",
                    hint=FIX_CONFIG,
                )
    if missing:
        raise _missing_tensors_error(folder, sorted(missing))


def _missing_tensors_error(folder: Path, names: list[str]) -> UserError:
    return UserError(
        "the weights do not fill the model",
        code="E-model-weights-incomplete",
        where=folder,
        found=f"{len(names)} missing, first {names[0]}",
        hint=FIX_CONFIG,
    )


def _detect_family(config: Any, folder: Path, required: Family | None) -> Family:
    if config.model_type in t5.MODEL_TYPES:
        family: Family = "t5"
    elif getattr(config, "is_encoder_decoder", False):
        raise UserError(
            "this kind of encoder-decoder model is not supported",
            code="E-model-unsupported",
            where=folder / "config.json",
            found=config.model_type,
            hint=f"use one of {', '.join(t5.MODEL_TYPES)}, or a decoder-only model",
        )
    else:
        family = "causal"
    if required not in (None, family):
        raise UserError(
            f"the folder must hold a {required} model",
            code="E-model-wrong-family",
            where=folder / "config.json",
            found=f"{config.model_type} ({family})",
        )
    return family


def _check_logits(student: Student, folder: Path) -> None:
    """For a model type that no test covers, compare the logits of our head with the model's own: some models scale them
    in a way that their config does not show."""
    batch = student.filler_batch()
    with torch.no_grad():
        output = student.model(input_ids=batch.input_ids, attention_mask=batch.input_mask)
        expected = output.logits.flatten(0, 1)[batch.positions]
        logits = student.head.logits(student.hidden(batch))
    if not torch.allclose(logits, expected, rtol=1e-3, atol=1e-3):
        raise UserError(
            "this kind of model computes its logits in an unknown way",
            code="E-model-unsupported",
            where=folder / "config.json",
            found=student.model.config.model_type,
            hint=f"use one of {', '.join(causal.MODEL_TYPES)}",
        )


def from_recipe(recipe: Recipe, *, weights: bool = True) -> Student:
    """The untrained student of a recipe. Raises UserError as `open_student` and `random_student` do.

    weights  False: without weights, if they come from a folder; see `open_student`
    """
    section = recipe.student
    if section.model is not None:
        folder = find_path(recipe, section.model, "student.model")
        check_tokenizer(recipe, folder)
        return from_checkpoint(recipe, folder, weights=weights)
    tokenizer = tokenization.load_tokenizer(tokenizer_folder(recipe))
    return random_student(shape_from_recipe(recipe, tokenizer.size), tokenizer, recipe.seed, dropout=section.dropout)


def from_checkpoint(recipe: Recipe, folder: Path, *, weights: bool = True) -> Student:
    """The student in a folder (the recipe's model, or a checkpoint of its training) with the recipe's settings."""
    section = recipe.student
    return open_student(
        folder,
        dropout=section.dropout,
        trust_remote_code=section.trust_remote_code,
        chat_template=False if section.model is None else section.chat,
        weights=weights,
    )


def chat_template_from_recipe(recipe: Recipe, folder: Path) -> ChatTemplate | None:
    """The chat template of the student in a folder, without its weights; None for plain prompts."""
    return open_chat_template(folder, recipe.student.chat, read_family(folder))


def auto_uses_chat_template(folder: Path) -> bool:
    """Whether `student.chat: auto` takes the chat template of the model in a folder."""
    config = storage.read_json(folder / "config.json") if (folder / "config.json").is_file() else None
    is_causal = isinstance(config, dict) and config.get("model_type") not in t5.MODEL_TYPES
    return is_causal and has_chat_template(folder)


def read_family(folder: Path) -> Family:
    """The family of the model in a folder, by its config.json alone."""
    config = storage.read_json(folder / "config.json")
    return "t5" if isinstance(config, dict) and config.get("model_type") in t5.MODEL_TYPES else "causal"


def check_tokenizer(recipe: Recipe, folder: Path) -> None:
    """Raises UserError if the recipe names a tokenizer other than that of the model in `folder`: prompts would be
    encoded with one and targets with the other."""
    if recipe.student.tokenizer is None:
        return
    named = tokenization.load_tokenizer(tokenizer_folder(recipe))
    if tokenization.load_tokenizer(folder).digest != named.digest:
        raise UserError(
            "student.tokenizer is not the tokenizer of the model",
            code="E-model-other-tokenizer",
            where="student.tokenizer",
            found=f"{recipe.student.tokenizer}, and another one in {folder}",
            hint="remove student.tokenizer: the model's folder has its own",
        )


def weights_identity(recipe: Recipe) -> dict[str, str]:
    """Digests of what the base student is built from, by recipe key."""
    if recipe.student.model is None:
        return {"student.tokenizer": tokenization.load_tokenizer(tokenizer_folder(recipe)).digest}
    folder = find_path(recipe, recipe.student.model, "student.model")
    digests = {"student.model": storage.folder_fingerprint(folder)}
    # The folder alone decides what `auto` means.
    chat = recipe.student.chat
    return digests if chat == "auto" else digests | {"student.chat": str(chat).lower()}


def tokenizer_folder(recipe: Recipe) -> Path:
    """The folder of the student's tokenizer: `student.tokenizer`, else the model's folder."""
    if recipe.student.tokenizer is not None:
        return find_path(recipe, recipe.student.tokenizer, "student.tokenizer")
    assert recipe.student.model is not None, "the recipe has a model or a tokenizer"
    return find_path(recipe, recipe.student.model, "student.model")


def shape_from_recipe(recipe: Recipe, vocabulary: int) -> Shape:
    """The size of a student with random weights. Raises UserError for an unknown name."""
    shape = recipe.student.shape
    assert shape is not None, "a student without weights has a shape"
    if isinstance(shape, str):
        if shape not in SHAPES:
            raise UserError(
                "there is no such shape",
                code="E-model-unknown-shape",
                where="student.shape",
                found=shape,
                hint=f"use one of {', '.join(SHAPES)}",
            )
        return SHAPES[shape]
    d_kv = shape.d_kv or shape.d_model // shape.heads
    return Shape(shape.family, shape.d_model, shape.layers, shape.heads, shape.d_ff, d_kv, vocabulary)


def count_stored_parameters(folder: Path) -> int:
    """The number of parameters of the model in a folder, from the headers of its weights. Raises UserError as
    `weight_files.list_tensors` does."""
    return sum(math.prod(tensor.shape) for tensor in weight_files.list_tensors(folder).values())
