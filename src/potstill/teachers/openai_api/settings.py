"""Settings of a server, from the recipe's sections `teacher`, `teacher.server` and `teacher.budget`.

>>> recipe = Recipe(name="mine", teacher={"kind": "openai", "model": "m", "budget": {"tokens": 900}})
>>> settings = settings_from_recipe(recipe)
>>> settings.urls, split_budget(settings, Shard(2, 3)).budget_tokens
(('http://localhost:8000/v1',), 300)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

from potstill import tokenization
from potstill.errors import UserError
from potstill.recipe import Recipe, find_path
from potstill.storage.segments import Shard
from potstill.teachers.openai_api.request import Capabilities, ServerSettings
from potstill.teachers.openai_api.token_entries import Piece


def settings_from_recipe(recipe: Recipe, model: str | None = None, source: str = "openai") -> ServerSettings:
    """The settings of a recipe's server.

    model  replaces `teacher.model`
    Raises UserError for an invalid address.
    """
    teacher, server, budget = recipe.teacher, recipe.teacher.server, recipe.teacher.budget
    for url in server.urls:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.password:
            raise UserError(
                "not the address of a server",
                code="E-teacher-invalid-url",
                where="teacher.server.urls",
                found="an address with a name and a password" if parts.password else url,
                hint="write http://HOST:PORT/v1; the key comes from the environment (teacher.server.key)",
            )
    names = [field.name for field in dataclasses.fields(ServerSettings)]
    sections = (teacher, server, budget)
    values = {name: getattr(section, name) for section in sections for name in names if hasattr(section, name)}
    values |= {
        "model": model or teacher.model,
        "urls": tuple(url.rstrip("/") for url in server.urls),
        "stop": tuple(server.stop),
        "seed": recipe.sampling_seed,
        "source": source,
        "budget_tokens": budget.tokens,
        "budget_money": budget.money,
        "prices": (budget.prices.prompt, budget.prices.completion),
    }
    return ServerSettings(**values)


def split_budget(
    settings: ServerSettings, shard: Shard, settled: Mapping[str, float] = MappingProxyType({})
) -> ServerSettings:
    """The settings of a shard, with an equal part of the remaining budget. settled: the usage before the split."""
    tokens, money = settings.budget_tokens, settings.budget_money
    settled_tokens = int(settled.get("prompt_tokens", 0) + settled.get("completion_tokens", 0))
    return dataclasses.replace(
        settings,
        budget_tokens=None if tokens is None else max(0, tokens - settled_tokens) // shard.count,
        budget_money=None if money is None else max(0.0, money - settled.get("money", 0.0)) / shard.count,
    )


def parse_capabilities(row: Mapping[str, Any]) -> Capabilities:
    """The capabilities in a row of `server.json`."""
    values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in row.items()}
    return Capabilities(**values)


def open_lookup(recipe: Recipe) -> Callable[[int, int], Piece] | None:
    """A function from token id and position to the token's bytes; None if the recipe names no tokenizer."""
    path = recipe.teacher.server.tokenizer
    if path is None:
        return None
    return tokenization.load_tokenizer(find_path(recipe, path, "teacher.server.tokenizer")).candidate
