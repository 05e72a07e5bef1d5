"""The mix of formats: how many groups of each format a step has, and how much each format weighs in its gradient.

    >>> from potstill.records import Target
    >>> one, three = (Target(range(n), range(n + 1), range(n), [1.0] * n, ["hard"] * n) for n in (1, 3))
    >>> rows = [[Example((5,), one, format="a")], [Example((5,), three, format="b"), Example((5,), one, format="b")]]
    >>> [[row.weight for row in group] for group in weight_formats(rows, {"a": 0.9, "b": 0.1})]
    [[4.5], [0.125, 0.125]]

With `train.loss_weights` the loss of a step is the sum over the formats of w times the mean loss of the format's
supervised positions in that step, where w is the format's part of all weights. So the weight of a format is the same in
every step and does not depend on its number of rows, on their lengths, on the micro-batches or on the processes.
Without it every supervised position weighs the same.
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
    """What training does with a format, or with replay, by what is known before the run.

    rows    share of the rows of a step
    tokens  share of the supervised tokens of all formats; None for replay
    weight  share of the gradient
    epochs  how often training sees each chain, or each answer in an answer-only format; None where that is not known
    """

    name: str
    rows: float
    tokens: float | None
    weight: float
    epochs: float | None


def compute_format_shares(
    recipe: Recipe, targets: Mapping[str, float], questions: int, chains: int | None
) -> list[FormatShare]:
    """The parts of a recipe's training: its formats, and replay where there is any.

    targets    mean number of tokens of a target, by format
    questions  training questions, each of which has one answer
    chains     chains that are trained on; None if not known. A question has chains / questions of them on average
    """
    asked, own = recipe.train, {name: quota for name, quota in recipe.train.formats.items() if quota}
    groups = {name: asked.prompts_per_step * quota / sum(own.values()) for name, quota in own.items()}
    each = mean_chains_per_prompt(recipe, questions, chains)
    rows = {name: count * (each if prompts.FORMATS[name].rationale else 1) for name, count in groups.items()}
    tokens = {name: rows[name] * targets[name] for name in own}
    weights: dict[str, float] = {**asked.loss_weights} if asked.loss_weights else tokens
    more, replay = replay_data.replay_rows_per_step(recipe), asked.replay.share if asked.replay else 0.0
    made = []
    for name in own:
        data = chains if prompts.FORMATS[name].rationale else questions
        made.append(
            FormatShare(
                name,
                rows[name] / (sum(rows.values()) + more),
                tokens[name] / sum(tokens.values()),
                (1 - replay) * weights[name] / sum(weights.values()),
                rows[name] * asked.steps / data if data else None,
            )
        )
    if more:
        made.append(FormatShare(replay_data.REPLAY_FORMAT, more / (sum(rows.values()) + more), None, replay, None))
    return made


def mean_chains_per_prompt(recipe: Recipe, questions: int, chains: int | None) -> float:
    """How many chains a prompt has, at most and on average."""
    most = recipe.train.chains_per_prompt
    return most if chains is None else min(most, max(1.0, chains / questions))


def build_data_order(
    recipe: Recipe, questions: Sequence[tuple[str, int]]
) -> data_order.DataOrder[prompts.PromptFormat]:
    """The order of a run's training. questions: (id, number of chains).

    Raises UserError where a step would have no row of a format that has a weight.
    """
    asked = recipe.train
    made = data_order.DataOrder(
        seed=recipe.seed,
        groups_per_step=asked.prompts_per_step,
        quotas={prompts.FORMATS[name]: quota for name, quota in asked.formats.items() if quota},
        questions=questions,
        chains_per_prompt=asked.chains_per_prompt,
        uniform_over=asked.uniform_over,
    )
    if asked.loss_weights is not None:
        for format, count in data_order.min_groups_per_step(made).items():
            if count == 0:
                quotas: dict[str, int] = {**asked.formats}
                raise UserError(
                    f"some steps have no group of {format.name}, so its weight would go to other formats there",
                    where="train.loss_weights",
                    found=f"{quotas[format.name]} of {sum(quotas.values())} groups, {asked.prompts_per_step} groups a step",
                    hint=f"raise train.prompts_per_step, or the quota of {format.name} in train.formats",
                )
    return made


def check_format_mix(recipe: Recipe) -> None:
    """Raises UserError where a step would have no row of a format that has a weight, whatever the questions."""
    build_data_order(recipe, [("any question", 1)])


def weight_formats(groups: list[list[Example]], weights: Mapping[str, float] | None) -> list[list[Example]]:
    """The rows of a step by group, with weights such that each format has its part of the step's weight. The mean
    weight of a position stays 1."""
    if weights is None:
        return groups
    positions = Counter[str]()
    for rows in groups:
        for row in rows:
            positions[row.format] += len(row.target)
    assert positions.keys() == weights.keys(), f"{sorted(positions)} of {sorted(weights)}"
    scale = positions.total() / sum(weights.values())
    each = {name: scale * weight / positions[name] for name, weight in weights.items()}
    return [[replace(row, weight=each[row.format]) for row in rows] for rows in groups]
