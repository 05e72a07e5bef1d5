"""Students from folders, from a recipe, and with random weights; interpolation between two students.

    >>> from potstill.models import Shape
    >>> from potstill import demo, tokenization
    >>> tokenizer = tokenization.load_tokenizer(demo.DATA / "models" / "student")
    >>> shape = Shape("t5", d_model=8, layers=1, heads=2, d_ff=16, d_kv=4, vocabulary=tokenizer.size)
    >>> student, other = (random_student(shape, tokenizer, seed) for seed in (1, 2))
    >>> interpolate_weights(student, random_student(shape, tokenizer, 1), 0.25)     # between a student and itself
    >>> torch.equal(student.head.weight, random_student(shape, tokenizer, 1).head.weight)
    True

A folder has the files that Hugging Face tools write: config.json, *.safetensors, and the tokenizer's files. potstill
refuses weights that are pickled, quantized, not finite, or incomplete (transformers would draw missing weights at random,
and only warn). `check_weights` finds all of these faults before a run costs anything.

The base student of a recipe is step 0 of its run. It comes from a folder (`model_folder`), or has random weights that are
a function of the recipe's shape and seed, so it is never stored.
"""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any, Final

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, GenerationConfig

from potstill import storage, tokenization
from potstill.errors import UserError
from potstill.models import adapter_files, causal, lora, t5, weight_files
from potstill.models.chat_template import (
    ChatSetting,
    ChatSettings,
    ChatTemplate,
    has_chat_template,
    open_chat_template,
)
from potstill.models.sources import NOT_DOWNLOADED, ModelSource, find_model, require_weights
from potstill.models.student import SHAPES, DType, Family, Shape, Student, count_parameters, quiet_transformers
from potstill.models.weight_files import FIX_CONFIG, StoredDType, TensorHeader
from potstill.recipe import Recipe, find_path
from potstill.tokenization import Tokenizer

TESTED_TYPES: Final = (*t5.MODEL_TYPES, *causal.MODEL_TYPES)
MAX_SIZE_ERROR: Final = 0.1  # of the number of parameters that follows from config.json
FAMILY_MODULES: Final[dict[Family, Any]] = {"t5": t5, "causal": causal}


def open_student(
    folder: Path | str,
    *,
    family: Family | None = None,
    dropout: float | None = None,
    dtype: DType = "float32",
    trust_remote_code: bool = False,
    chat_template: ChatSetting | ChatSettings = False,
    weights: bool = True,
) -> Student:
    """The student in a folder, in evaluation mode, on the CPU.

    family             "t5" or "causal": the required family; None: the family in config.json
    dropout            dropout probability in training; None: the value in config.json
    trust_remote_code  whether to run model code from the folder
    chat_template      whether prompts use the folder's chat template ("auto", True or False), or all settings of prompts
    weights            False: load everything except the weights, for a caller that reads them from `Student.folder`. They
                       may then be quantized

    Raises UserError if the folder, config.json or the weights are missing, truncated, pickled, quantized, incomplete or not
    finite, if the model is not supported, or if the weights do not fit the tokenizer.
    """
    folder = Path(folder)
    tensors = _check_folder(folder, trust_remote_code, may_be_quantized=not weights)
    tokenizer = tokenization.load_tokenizer(folder)
    try:
        with quiet_transformers():
            config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=trust_remote_code)
        detected = _detect_family(config, folder, family)
        if config.model_type in TESTED_TYPES:
            weight_files.check_layer_count(config, folder, tensors)
        settings = chat_template if isinstance(chat_template, ChatSettings) else ChatSettings(chat_template)
        chat = open_chat_template(folder, settings, detected)
        own_end = tokenizer.eos
        if chat is not None and chat.end_of_turn is not None:
            tokenizer = tokenization.replace_end_token(tokenizer, chat.end_of_turn)
        FAMILY_MODULES[detected].prepare_config(config, tokenizer, dropout)
        load = _load_with_weights if weights else _build_without_weights
        model = load(folder, config, dtype, trust_remote_code)
        if tokenizer.eos != own_end:
            _add_end_tokens(model, own_end, tokenizer.eos)
        student: Student = FAMILY_MODULES[detected].STUDENT(model, tokenizer).eval()
    except UserError as error:
        if error.where != "student":
            raise
        raise UserError(error.what, code=error.code, where=folder, found=error.found, hint=error.hint) from None
    except Exception as error:  # the library raises errors of many types for a faulty file
        lines = [line.strip() for line in str(error).strip().splitlines()[:2]] or [type(error).__name__]
        found = " ".join(lines)[:300]
        raise UserError(
            "the model cannot be loaded", code="E-model-unreadable", where=folder, found=found, hint=FIX_CONFIG
        ) from error
    student.chat, student.folder = chat, None if weights else folder
    if weights and config.model_type not in TESTED_TYPES:
        _check_logits(student, folder)
    return student


def check_weights(folder: Path | str, *, trust_remote_code: bool = False) -> None:
    """Make the checks of `open_student` without building the model, so that faulty weights stop a run before it costs
    anything.

    Takes as long as reading the weights once. Raises UserError as `open_student` does, with the folder as place.
    """
    folder = Path(folder)
    require_weights(folder)
    try:
        tensors = _check_folder(folder, trust_remote_code)
        model = open_student(folder, trust_remote_code=trust_remote_code, weights=False).model
        if model.config.model_type in TESTED_TYPES:
            weight_files.check_all_tensors_stored(model, folder, tensors)
        weight_files.check_finite(folder)
    except UserError as error:
        if str(folder) in error.where:
            raise
        raise UserError(error.what, code=error.code, where=folder, found=error.found, hint=error.hint) from None


def random_student(
    shape: Shape, tokenizer: Tokenizer, seed: int, *, dropout: float = 0.0, dtype: DType = "float32"
) -> Student:
    """A student with random weights, which depend only on shape and seed (on the same machine).

    Raises UserError if the vocabulary is too small for the tokenizer.
    """
    assert dropout >= 0, f"dropout {dropout}"
    family = FAMILY_MODULES[shape.family]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = family.build_random_model(shape, tokenizer, dropout).to(getattr(torch, dtype))
    return family.STUDENT(model, tokenizer).eval()


def interpolate_weights(student: Student, base: Student, share: float) -> None:
    """Replace each weight of `student` with share * weight + (1 - share) * base weight, in place (Wortsman et al. 2022).

    Raises UserError if the models have different shapes.
    """
    assert 0 <= share <= 1, f"a share of {share}"
    weights, base_weights = (dict(model.named_parameters()) for model in (student.model, base.model))
    if {name: value.shape for name, value in weights.items()} != {n: v.shape for n, v in base_weights.items()}:
        raise UserError(
            "the checkpoint does not have the base student's shape",
            code="E-evaluate-different-shapes",
            where="evaluate.interpolate",
            hint="train again (--redo train)",
        )
    with torch.no_grad():
        for name, value in weights.items():
            value.lerp_(base_weights[name].to(value), 1 - share)


@torch.no_grad()
def round_weights(student: Student, dtype: StoredDType) -> None:
    """Round the weights to a dtype, in place, without a change of their dtype.

    Raises UserError if a weight becomes infinite.
    """
    target = getattr(torch, dtype)
    for name, value in student.model.named_parameters():
        rounded = value.to(target)
        if not rounded.isfinite().all():
            raise UserError(
                f"a weight is too large for {dtype}, in which the base is stored",
                code="E-model-dtype-overflow",
                where="student.model",
                found=name,
                hint="lower train.learning_rate, or convert the base to bfloat16 or float32",
            )
        value.copy_(rounded)


def _check_folder(folder: Path, trust_remote_code: bool, *, may_be_quantized: bool = False) -> dict[str, TensorHeader]:
    """The headers of the tensors in a folder, after all checks of its files that need no model."""
    settings = weight_files.read_config(folder)
    if settings.get("auto_map") and not trust_remote_code:
        raise UserError(
            "this model needs code from its own folder",
            code="E-model-remote-code",
            where=folder,
            hint="read the code; then set student.trust_remote_code: true",
        )
    is_untied_t5 = settings.get("model_type") in t5.MODEL_TYPES and settings.get("tie_word_embeddings") is False
    tensors = weight_files.list_checked_tensors(folder, settings, t5.UNTIED_TENSORS if is_untied_t5 else ())
    if not may_be_quantized:
        weight_files.refuse_quantized(folder, settings, tensors)
    return tensors


def _load_with_weights(folder: Path, config: Any, dtype: DType, trust_remote_code: bool) -> Any:
    with quiet_transformers():
        model, report = _auto_class(config).from_pretrained(
            folder,
            config=config,
            dtype=getattr(torch, dtype),
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
        )
    if report["missing_keys"]:
        raise weight_files.missing_tensors_error(folder, report["missing_keys"])
    weight_files.refuse_non_finite(folder, model.named_parameters())
    # transformers 5 computes with the head of the weights, transformers 4 and vLLM with the embedding.
    tied_key = "scale_decoder_outputs" if config.model_type in t5.MODEL_TYPES else "tie_word_embeddings"
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if getattr(model.config, tied_key, False) and head.weight is not embedding.weight:
        raise UserError(
            "config.json ties the head to the embedding, but the weights contain a different head",
            code="E-model-tied-head",
            where=folder,
            hint='set "tie_word_embeddings": false if the head is untied (T5 v1.1, FlanT5), or remove lm_head.weight',
        )
    return model


def _build_without_weights(folder: Path, config: Any, dtype: DType, trust_remote_code: bool) -> Any:
    """The model in a folder; its weights have shapes, but no values."""
    with quiet_transformers(), torch.device("meta"):
        model = _auto_class(config).from_config(config, trust_remote_code=trust_remote_code)
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
    return model


def _add_end_tokens(model: Any, *tokens: int) -> None:
    """Set the end tokens in the generation config, so that every tool that opens the saved folder stops at them."""
    named = model.generation_config.eos_token_id
    ids = named if isinstance(named, list) else [] if named is None else [named]
    model.generation_config.eos_token_id = [*ids, *(token for token in tokens if token not in ids)]


def _auto_class(config: Any) -> Any:
    return AutoModelForSeq2SeqLM if config.model_type in t5.MODEL_TYPES else AutoModelForCausalLM


def _detect_family(config: Any, folder: Path, required: Family | None) -> Family:
    where, family = folder / "config.json", _family_of_type(config.model_type)
    if family != "t5" and getattr(config, "is_encoder_decoder", False):
        raise UserError(
            "this kind of encoder-decoder model is not supported",
            code="E-model-unsupported",
            where=where,
            found=config.model_type,
            hint=f"use one of {', '.join(t5.MODEL_TYPES)}, or a decoder-only model",
        )
    if required not in (None, family):
        what, found = f"the folder must contain a {required} model", f"{config.model_type} ({family})"
        raise UserError(what, code="E-model-wrong-family", where=where, found=found)
    return family


def _family_of_type(model_type: object) -> Family:
    return "t5" if model_type in t5.MODEL_TYPES else "causal"


def _check_logits(student: Student, folder: Path) -> None:
    """For a model type that no test covers, compare the logits of potstill's head with those of the model.

    Some models scale logits in a way that their config does not show.
    """
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

    weights  False: without weights, if they would come from a folder; see `open_student`
    """
    section = recipe.student
    if section.model is not None:
        folder = model_folder(recipe)
        check_tokenizer(recipe, folder)
        return from_checkpoint(recipe, folder, weights=weights)
    tokenizer = tokenization.load_tokenizer(tokenizer_folder(recipe))
    return random_student(shape_from_recipe(recipe, tokenizer.size), tokenizer, recipe.seed, dropout=section.dropout)


def from_checkpoint(recipe: Recipe, folder: Path, *, weights: bool = True) -> Student:
    """The student in a folder, with the recipe's settings. The folder is the recipe's model, or a checkpoint of its run.

    The adapter of a checkpoint is merged into the base, which is always opened with weights. Raises UserError as
    `open_student` and `adapter_files.merge_adapter` do, and if the base is not that of the adapter.
    """
    if adapter_files.is_adapter(folder):
        student = open_adapter_base(recipe, folder)
        adapter_files.merge_adapter(student.model, folder)
        return student
    section = recipe.student
    chat = False if section.model is None else ChatSettings.from_section(section, "student")
    settings: Any = {"dropout": section.dropout, "trust_remote_code": section.trust_remote_code, "chat_template": chat}
    return open_student(folder, weights=weights, **settings)


def open_adapter_base(recipe: Recipe, folder: Path) -> Student:
    """The student to whose weights the adapter in a folder is added: the base, or the base rounded to 4 bits.

    Raises UserError as `from_recipe` does, and if the base is not the one of the adapter's training.
    """
    student = from_recipe(recipe)
    adapter_files.check_base(folder, adapter_base(recipe, student))
    if adapter_files.read_base(folder).rounding is not None:
        lora.round_layers(student.model)
    return student


def adapter_base(recipe: Recipe, student: Student) -> adapter_files.AdapterBase:
    """The base student of a recipe as the base of adapters. student: the base, with weights."""
    section = recipe.student
    rounding = (lora.QUANTIZATION, lora.bitsandbytes_version()) if recipe.train.load_in_4bit else (None, None)
    if section.model is None:
        digests = {"student.shape": adapter_files.digest_weights(student.model)}
        return adapter_files.AdapterBase(None, None, digests, *rounding)
    source = _model_source(recipe)
    revision = section.revision if source.commit is None else source.commit
    return adapter_files.AdapterBase(section.model, revision, source.identity("student.model"), *rounding)


def model_folder(recipe: Recipe) -> Path:
    """The folder of `student.model`, which is downloaded or converted if necessary."""
    return _model_source(recipe).folder


def _model_source(recipe: Recipe) -> ModelSource:
    assert recipe.student.model is not None, "the recipe has a model"
    return find_model(recipe, recipe.student.model, "student.model", recipe.student.revision)


def base_dtype(recipe: Recipe) -> StoredDType:
    """The dtype of the base's stored weights, which is also that of the finished student's weights."""
    return "float32" if recipe.student.model is None else weight_files.read_stored_dtype(model_folder(recipe))


def tokenizer_folder(recipe: Recipe) -> Path:
    """The folder of the student's tokenizer: `student.tokenizer`, or the model's folder."""
    named = recipe.student.tokenizer
    return model_folder(recipe) if named is None else find_path(recipe, named, "student.tokenizer")


def check_tokenizer(recipe: Recipe, folder: Path) -> None:
    """Raise UserError if the recipe names another tokenizer than that of the model in `folder`.

    Prompts would be encoded with one tokenizer, and targets with the other.
    """
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


def chat_template_from_recipe(recipe: Recipe, folder: Path) -> ChatTemplate | None:
    """The chat template of the student in a folder; None for plain prompts. Reads no weights."""
    return open_chat_template(folder, ChatSettings.from_section(recipe.student, "student"), read_family(folder))


def tokenizer_from_recipe(recipe: Recipe) -> Tokenizer:
    """The student's tokenizer, with the end token of its chat template if it uses one. Reads no weights."""
    tokenizer = tokenization.load_tokenizer(tokenizer_folder(recipe))
    if recipe.student.model is None:
        return tokenizer
    end = _find_end_of_turn(model_folder(recipe), recipe.student.chat)
    return tokenizer if end is None else tokenization.replace_end_token(tokenizer, end)


def end_of_turn_identity(folder: Path, settings: ChatSettings) -> dict[str, str]:
    """Recipe key -> end token of the chat template in a folder; empty if it is the tokenizer's end token.

    For the identities of stages.
    """
    end = _find_end_of_turn(folder, settings.template)
    return {} if end is None else {f"{settings.section}.chat (end of turn)": str(end)}


def _find_end_of_turn(folder: Path, setting: ChatSetting) -> int | None:
    """The end token of the chat template in a folder.

    None if prompts do not use the template, or if it is the tokenizer's end token.
    """
    if setting is False or not auto_uses_chat_template(folder):
        return None
    return _read_end_of_turn(folder, storage.folder_fingerprint(folder))


@functools.lru_cache(maxsize=16)
def _read_end_of_turn(folder: Path, fingerprint: str) -> int | None:
    chat = open_chat_template(folder, ChatSettings(True), "causal")
    end = None if chat is None else chat.end_of_turn
    return None if end == tokenization.load_tokenizer(folder).eos else end


def auto_uses_chat_template(folder: Path) -> bool:
    """Whether `student.chat: auto` uses the chat template of the model in a folder."""
    return (folder / "config.json").is_file() and read_family(folder) == "causal" and has_chat_template(folder)


def read_family(folder: Path) -> Family:
    """The family of the model in a folder, according to its config.json."""
    return _family_of_type(weight_files.read_config(folder).get("model_type"))


def weights_identity(recipe: Recipe) -> dict[str, str]:
    """Recipe key -> digest, for everything from which the base student is built."""
    if recipe.student.model is None:
        return {"student.tokenizer": tokenization.load_tokenizer(tokenizer_folder(recipe)).digest}
    source, settings = _model_source(recipe), ChatSettings.from_section(recipe.student, "student")
    digests = source.identity("student.model") | settings.identity | end_of_turn_identity(source.folder, settings)
    # Only the folder determines the meaning of `auto`.
    chat = recipe.student.chat
    return digests if chat == "auto" else digests | {"student.chat": str(chat).lower()}


def shape_from_recipe(recipe: Recipe, vocabulary: int) -> Shape:
    """The size of a student with random weights. Raises UserError for an unknown name."""
    shape = recipe.student.shape
    assert shape is not None, "a student without weights has a shape"
    if isinstance(shape, str):
        if shape not in SHAPES:
            hint = f"use one of {', '.join(SHAPES)}"
            raise UserError(
                "there is no such shape", code="E-model-unknown-shape", where="student.shape", found=shape, hint=hint
            )
        return SHAPES[shape]
    d_kv = shape.d_kv or shape.d_model // shape.heads
    return Shape(shape.family, shape.d_model, shape.layers, shape.heads, shape.d_ff, d_kv, vocabulary)


def count_stored_parameters(folder: Path) -> int:
    """The number of parameters of the model in a folder, from the headers of its weight files.

    Raises UserError if its weights have not been downloaded.
    """
    require_weights(folder)
    return sum(math.prod(tensor.shape) for tensor in weight_files.list_tensors(folder).values())


def read_shape(folder: Path) -> Shape | None:
    """The size of the model in a folder, from its config.json. None for an architecture whose matrices a `Shape` does not
    describe, such as a mixture of experts: the number of parameters then differs from that of the stored weights. Without
    the weights (see `without_weights`), only the architectures in TESTED_TYPES have a size."""
    try:
        with quiet_transformers():
            config: Any = AutoConfig.from_pretrained(folder, local_files_only=True)
        shape = _shape_of_config(config)
    except (OSError, ValueError, AttributeError, TypeError):  # unreadable, custom code, or other names of the sizes
        return None
    try:
        stored = count_stored_parameters(folder)
    except UserError as fault:
        if fault.code != NOT_DOWNLOADED:
            raise
        return shape if config.model_type in TESTED_TYPES else None
    return shape if abs(count_parameters(shape) - stored) < MAX_SIZE_ERROR * stored else None


def _shape_of_config(config: Any) -> Shape:
    if _family_of_type(config.model_type) == "t5":
        sizes = (
            config.d_model,
            config.num_decoder_layers,
            config.num_heads,
            config.d_ff,
            config.d_kv,
            config.vocab_size,
        )
        return Shape("t5", *sizes, config.num_layers, gated=config.is_gated_act, tied=config.scale_decoder_outputs)
    text = config.get_text_config()
    heads, d_model = text.num_attention_heads, text.hidden_size
    d_kv, kv_heads = getattr(text, "head_dim", None) or d_model // heads, getattr(text, "num_key_value_heads", None)
    sizes = (d_model, text.num_hidden_layers, heads, text.intermediate_size, d_kv, text.vocab_size)
    return Shape("causal", *sizes, kv_heads=kv_heads, tied=text.tie_word_embeddings)
