"""Teachers: where chains come from. `local` asks a model in this process, by transformers or by vLLM, `openai` one
behind a server, `human` takes a set's own rationales, `replay` takes chains that somebody stored.

Each has a function `sample` that yields batches of chains and is told which keys (question, source, index) are stored
already: a batch that holds nothing new is passed over, any other comes whole, and who stores it drops what it knows.
Batches, and chains within one, may come in any order of keys; a teacher over HTTP yields what arrives.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal

from potstill.errors import UserError
from potstill.records import Chain, Question
from potstill.storage.segments import UNSHARDED, Shard
from potstill.teachers.usage import FirstChainsCheck, UsageMeter

if TYPE_CHECKING:
    from potstill.recipe import Recipe
    from potstill.teachers.openai_api import batch_api

# Of the chains that this room makes of what its sources give: `cut`, the reading of servers' answers and of `replay`.
VERSION: Final = 2

ChainKey = tuple[str, str, int]


def probe_server(
    recipe: Recipe,
    questions: Sequence[Question],
    before: Mapping[str, Any] | None = None,
    watch: UsageMeter | None = None,
) -> Any:
    """What a server was found to be, as plain JSON; None for a teacher that is none. `before`: what it was at first;
    `watch` counts what it costs to find out."""
    if recipe.teacher.kind != "openai":
        return None
    from potstill.teachers import openai_api

    return openai_api.probe_server(recipe, questions, before, watch)


def budget_error(
    recipe: Recipe,
    questions: Sequence[Question],
    watch: UsageMeter,
    done: Container[ChainKey],
    right: Mapping[str, int],
    shard: Shard = UNSHARDED,
) -> UserError | None:
    """What to say where the recipe's ceilings leave nothing for another request; None where they do."""
    if recipe.teacher.kind != "openai":
        return None
    from potstill.teachers import openai_api

    return openai_api.budget_error(recipe, questions, _source_name(recipe), watch, done, right, shard)


def chat_template_input(recipe: Recipe) -> Literal["its template"] | None:
    """Whether the model in this process, teacher or scorer, is asked in its own chat template; None: in plain text."""
    teacher, score = recipe.teacher, recipe.teacher.score
    here = score.model if score is not None and score.kind == "local" else None
    named = teacher.model if teacher.kind in ("local", "vllm") else here
    if named is None or teacher.chat is False:
        return None
    from potstill import models
    from potstill.recipe import find_path

    key = "teacher.model" if teacher.kind in ("local", "vllm") else "teacher.score.model"
    return "its template" if models.auto_uses_chat_template(find_path(recipe, named, key)) else None


def is_complete(
    recipe: Recipe, questions: Sequence[Question], done: Container[ChainKey], right: Mapping[str, int] | None = None
) -> bool:
    """Whether a teacher behind a server has nothing left to be asked; of another one that is not known beforehand."""
    if recipe.teacher.kind != "openai":
        return False
    from potstill.teachers import openai_api

    return openai_api.is_complete(recipe, questions, _source_name(recipe), done, right or {})


def open_batch(
    recipe: Recipe, questions: Sequence[Question], server: Mapping[str, Any], made_from: Any
) -> batch_api.Batch:
    """What is needed to ask a teacher behind a server through files; see `openai.batches`."""
    from potstill.teachers import openai_api

    return openai_api.open_batch(recipe, questions, _source_name(recipe), server, made_from)


def sample(
    recipe: Recipe,
    questions: Sequence[Question],
    done: Container[ChainKey] = (),
    *,
    known: Iterable[Question] = (),
    server: Mapping[str, Any] | None = None,
    watch: UsageMeter | None = None,
    right: Mapping[str, int] | None = None,
    shard: Shard = UNSHARDED,
    trial: FirstChainsCheck | None = None,
) -> Iterator[list[Chain]]:
    """The chains of the teacher that a recipe names, batch by batch.

    questions  those to be solved
    known      other questions of the run's sets: stored chains about them are passed over, about any other refused
    done       keys that are stored already
    server     what `probed` found, for a teacher behind a server
    watch      where it puts what is seen of it
    right      question -> right chains that are stored, where the recipe stops at enough of them
    trial      for a teacher behind a server: what has to be seen of its first chains before more are asked for
    shard      which of the batches: they are those of the whole, so a chain does not depend on the number of shards
    """
    # Inside: each source brings its own libraries, and its module imports `Key` from here.
    teacher = recipe.teacher
    source = _source_name(recipe)
    if teacher.kind in ("local", "vllm"):
        from potstill.teachers import local_model

        return local_model.sample_from_recipe(recipe, questions, source, done, shard)
    if teacher.kind == "human":
        from potstill.teachers import reference_solutions

        found = reference_solutions.build_reference_chains(questions, source=source)
    elif teacher.kind == "openai":
        from potstill.teachers import openai_api

        assert server is not None
        known_so_far = {"done": done, "right": right, "trial": trial}
        return openai_api.sample_from_recipe(
            recipe, questions, source, server, watch or UsageMeter(), shard=shard, **known_so_far
        )
    else:
        from potstill.recipe import find_path
        from potstill.teachers import replay

        assert teacher.chains is not None
        path = find_path(recipe, teacher.chains, "teacher.chains")
        found = replay.sample(replay.read_rows(path), questions, where=str(path), known=known, source=source)
    own = (batch for place, batch in enumerate(found) if place % shard.count == shard.number - 1)
    new = (batch for batch in own if not all(chain.key in done for chain in batch))
    if teacher.score is None:
        return new
    if teacher.score.kind == "openai":
        from potstill.teachers import openai_api

        return openai_api.score_batches(recipe, teacher.score.model, questions, new)
    from potstill.teachers import local_model

    return local_model.score_batches(recipe, questions, new)


def _source_name(recipe: Recipe) -> str:
    return recipe.teacher.name or recipe.teacher.kind
