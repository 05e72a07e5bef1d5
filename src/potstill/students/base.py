"""The student that a recipe names, before any training: step 0 of a run.

Opened from a folder, or made of random weights as a function of the recipe's shape and seed, so that it never has to
be stored.
"""

from __future__ import annotations

import math
from pathlib import Path

from potstill import files, recipe, tokenizers
from potstill.errors import UserError
from potstill.recipe import Recipe
from potstill.students import chat, t5, weight_files
from potstill.students.chat import Chat
from potstill.students.opening import initialise, open
from potstill.students.shape import SHAPES, Family, Shape
from potstill.students.student import Student


def base(plan: Recipe, *, weights: bool = True) -> Student:
    """The untrained student, its loss set as the recipe says. Raises UserError as `open` and `initialise` do.

    weights  False: without them, if they lie in a folder; see `open`
    """
    asked = plan.student
    if asked.model is not None:
        folder = recipe.find(plan, asked.model, "student.model")
        check_tokenizer(plan, folder)
        return at(plan, folder, weights=weights)
    tokenizer = tokenizers.open(tokenizer_folder(plan))
    return initialise(shape(plan, tokenizer.size), tokenizer, plan.seed, mass=plan.train.mass, dropout=asked.dropout)


def at(plan: Recipe, folder: Path, *, weights: bool = True) -> Student:
    """The student in a folder, the recipe's model or a checkpoint of its training, as the recipe asks for it."""
    asked = plan.student
    return open(
        folder,
        mass=plan.train.mass,
        dropout=asked.dropout,
        trust_remote_code=asked.trust_remote_code,
        chat_template=False if asked.model is None else asked.chat,
        weights=weights,
    )


def spoken(plan: Recipe, folder: Path) -> Chat | None:
    """How the student in a folder is spoken to, without its weights: None for plain prompts."""
    settings = files.read_json(folder / "config.json")
    family = "t5" if settings.get("model_type") in t5.KINDS else "causal"
    return chat.open(folder, plan.student.chat, family)


def has_template(folder: Path) -> bool:
    """Whether `auto` would speak to the model in a folder in its own chat template."""
    settings = files.read_json(folder / "config.json") if (folder / "config.json").is_file() else None
    return isinstance(settings, dict) and settings.get("model_type") not in t5.KINDS and chat.template(folder)


def family(folder: Path) -> Family:
    """The family of the model in a folder, by its config.json alone."""
    settings = files.read_json(folder / "config.json")
    return "t5" if isinstance(settings, dict) and settings.get("model_type") in t5.KINDS else "causal"


def check_tokenizer(plan: Recipe, folder: Path) -> None:
    """Raises UserError where the recipe names a tokenizer that does not give a text the same ids as that of the model
    in `folder`: the model would be asked with the one and taught with the other."""
    if plan.student.tokenizer is None:
        return
    if tokenizers.open(folder).digest != tokenizers.open(tokenizer_folder(plan)).digest:
        raise UserError(
            "is not the tokenizer of the model",
            where="student.tokenizer",
            found=f"{plan.student.tokenizer}, and another one in {folder}",
            do="leave student.tokenizer out: the model's folder brings its own",
        )


def identity(plan: Recipe) -> dict[str, str]:
    """Digests of what the base student is made from, by recipe key."""
    if plan.student.model is not None:
        found = {"student.model": files.fingerprint(recipe.find(plan, plan.student.model, "student.model"))}
        # What `auto` comes to is told by the folder.
        return found if plan.student.chat == "auto" else found | {"student.chat": str(plan.student.chat).lower()}
    return {"student.tokenizer": tokenizers.open(tokenizer_folder(plan)).digest}


def tokenizer_folder(plan: Recipe) -> Path:
    """Where the student's tokenizer lies: its own key, else the model's folder."""
    if plan.student.tokenizer is not None:
        return recipe.find(plan, plan.student.tokenizer, "student.tokenizer")
    assert plan.student.model is not None, "the recipe has a model or a tokenizer"
    return recipe.find(plan, plan.student.model, "student.model")


def shape(plan: Recipe, vocabulary: int) -> Shape:
    """The size of a student with random weights. Raises UserError for an unknown name."""
    asked = plan.student.shape
    assert asked is not None, "a student without weights has a shape"
    if isinstance(asked, str):
        if asked not in SHAPES:
            raise UserError("no such shape", where="student.shape", found=asked, do=f"one of {', '.join(SHAPES)}")
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


def count(folder: Path) -> int:
    """The number of parameters of a model in a folder, from the headers of its weights, which are not loaded. Raises
    UserError as `weight_files.tensors` does."""
    return sum(math.prod(tensor.shape) for tensor in weight_files.tensors(folder).values())
