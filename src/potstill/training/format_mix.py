"""The mix of formats: how many groups of each format a step has, and how much each format weighs in its gradient.

    >>> from potstill.records import Target
    >>> one, three = (Target(range(n), range(n + 1), range(n), [1.0] * n, ["hard"] * n) for n in (1, 3))
    >>> rows = [[Example((5,), one, format="a")], [Example((5,), three, format="b"), Example((5,), one, format="b")]]
    >>> [[row.weight for row in group] for group in weight_formats(rows, {"a": 0.9, "b": 0.1})]
    [[4.5], [0.125, 0.125]]

With `train.loss_weights` the loss of a step is the sum over the formats of w times the mean loss of the format's
supervised positions in that step, where w is the format's share of all weights. So a format has the same weight in
every step, whatever its number of rows, their lengths, the micro-batches and the processes. Without it every supervised
position has the same weight.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from potstill import prompts
from potstill.errors import UserError
from potstill.models import Example
from potstill.recipe import Recipe
from potstill.training import data_order, replay_data


@dataclass(frozen=True, slots=True)
class FormatShare:
    """How much training uses a format, or replay, as far as that is known before the run.

    rows    share of the rows of a step
    tokens  share of the supervised tokens of all formats; None for replay
    weight  share of the gradient
    epochs  how many times training sees each chain, or each answer in an answer-only format; None if unknown
    """

    name: str
    rows: float
    tokens: float | None
    weight: float
    epochs: float | None


def compute_format_shares(
    recipe: Recipe, target_lengths: Mapping[str, float], questions: int, chains: int | None
) -> list[FormatShare]:
    """The shares of a recipe's formats, and of replay if there is any.

    target_lengths  mean number of tokens of a target, by format
    questions       number of training questions, each of which has one answer
    chains          number of chains; None if unknown. A question has chains / questions of them on average
    """
    section = recipe.train
    quotas = {name: quota for name, quota in section.formats.items() if quota}
    groups = {name: section.prompts_per_step * quota / sum(quotas.values()) for name, quota in quotas.items()}
    per_prompt = mean_chains_per_prompt(recipe, questions, chains)
    rows = {name: count * (per_prompt if prompts.FORMATS[name].rationale else 1) for name, count in groups.items()}
    tokens = {name: rows[name] * target_lengths[name] for name in quotas}
    weights: dict[str, float] = {**section.loss_weights} if section.loss_weights else tokens
    replay_rows = replay_data.replay_rows_per_step(recipe)
    replay_share = section.replay.share if section.replay else 0.0
    all_rows = sum(rows.values()) + replay_rows
    shares = []
    for name in quotas:
        data = chains if prompts.FORMATS[name].rationale else questions
        shares.append(
            FormatShare(
                name,
                rows[name] / all_rows,
                tokens[name] / sum(tokens.values()),
                (1 - replay_share) * weights[name] / sum(weights.values()),
                rows[name] * section.steps / data if data else None,
            )
        )
    if replay_rows:
        shares.append(FormatShare(replay_data.REPLAY_FORMAT, replay_rows / all_rows, None, replay_share, None))
    return shares


def mean_chains_per_prompt(recipe: Recipe, questions: int, chains: int | None) -> float:
    """The mean number of chains in a prompt group; the maximum if the number of chains is unknown."""
    most = recipe.train.chains_per_prompt
    return most if chains is None else min(most, max(1.0, chains / questions))


def build_data_order(
    recipe: Recipe, questions: Sequence[tuple[str, int]]
) -> data_order.DataOrder[prompts.PromptFormat]:
    """The data order of a run's training. questions: (id, number of chains).

    Raises UserError if a step would have no row of a format that has a weight.
    """
    section = recipe.train
    order = data_order.DataOrder(
        seed=recipe.seed,
        groups_per_step=section.prompts_per_step,
        quotas={prompts.FORMATS[name]: quota for name, quota in section.formats.items() if quota},
        questions=questions,
        chains_per_prompt=section.chains_per_prompt,
        uniform_over=section.uniform_over,
    )
    if section.loss_weights is not None:
        quotas: dict[str, int] = {**section.formats}
        for format, count in data_order.min_groups_per_step(order).items():
            if count == 0:
                raise UserError(
                    f"some steps have no prompt in the format {format.name}, so other formats would get its weight",
                    code="E-train-format-without-rows",
                    where="train.loss_weights",
                    found=f"{quotas[format.name]} of {sum(quotas.values())} prompts, {section.prompts_per_step} prompts"
                    " per step",
                    hint=f"raise train.prompts_per_step, or the quota of {format.name} in train.formats",
                )
    return order


def check_format_mix(recipe: Recipe) -> None:
    """Raises UserError if a step would have no row of a format that has a weight, whatever the questions."""
    build_data_order(recipe, [("any question", 1)])


def weight_formats(groups: list[list[Example]], weights: Mapping[str, float] | None) -> list[list[Example]]:
    """The rows of a step by group, weighted so that each format has its share of the step's weight. The mean weight of
    a position stays 1."""
    if weights is None:
        return groups
    positions = Counter[str]()
    for rows in groups:
        for row in rows:
            positions[row.format] += len(row.target)
    assert positions.keys() == weights.keys(), f"{sorted(positions)} of {sorted(weights)}"
    scale = positions.total() / sum(weights.values())
    position_weights = {name: scale * weight / positions[name] for name, weight in weights.items()}
    return [[replace(row, weight=position_weights[row.format]) for row in rows] for rows in groups]
