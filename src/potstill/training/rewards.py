"""Rewards: what the grader's verdicts on texts of the student change in training.

    >>> section = RewardsSection(wrong_weight=0.5, advantage_weight=1.0, truncated="drop")
    >>> rewards = [reward_of(Verdict("right"), "end", section), reward_of(Verdict("wrong"), "end", section),
    ...            reward_of(Verdict("truncated"), "length", section)]
    >>> rewards
    [1.0, 0.0, None]
    >>> [(effect.weight, round(effect.advantage, 3)) for effect in reward_effects(rewards, section)]
    [(1.0, 0.707), (0.5, -0.707), (0.0, 0.0)]

The texts of one question are a group. The group-relative advantage of a text is its reward minus the mean of the group,
divided by the group's standard deviation (GRPO, Shao et al. 2024) or not (Dr. GRPO, Liu et al. 2025). A group whose
texts all have the same reward gives no advantage. The module is pure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Final

from potstill.recipe.on_policy import RewardsSection
from potstill.records import StopReason, Verdict

MIN_DEVIATION: Final = 1e-4  # added to the standard deviation of a group, as in TRL


@dataclass(frozen=True, slots=True)
class RewardEffect:
    """What a reward changes for a text.

    weight     weight of its divergence
    advantage  its advantage, at each of its tokens
    """

    weight: float = 1.0
    advantage: float = 0.0


def reward_of(verdict: Verdict, stop: StopReason, section: RewardsSection) -> float | None:
    """The reward of a text: 1 if it counts as right, 0 if it counts as wrong, None if it does not count."""
    if stop in ("length", "repeat") and section.truncated != "graded":
        return None if section.truncated == "drop" else 0.0
    if verdict.grade == "no answer" and section.no_answer == "drop":
        return None
    return 1.0 if verdict.grade == "right" else 0.0


def reward_effects(rewards: Sequence[float | None], section: RewardsSection) -> list[RewardEffect]:
    """The effects of the rewards of all texts for one question. A text that does not count has weight and advantage 0."""
    counted = [reward for reward in rewards if reward is not None]
    mean = fmean(counted) if counted else 0.0
    scale = 1.0
    if section.advantage_scale == "deviation":
        scale = 1 / (MIN_DEVIATION + (stdev(counted) if len(counted) > 1 else 0.0))
    effects = []
    for reward in rewards:
        if reward is None:
            effects.append(RewardEffect(0.0, 0.0))
            continue
        # The rewards of a group may differ from their mean by rounding alone, which `scale` would enlarge.
        relative = 0.0 if math.isclose(reward, mean, abs_tol=1e-9) else (reward - mean) * scale
        advantage = section.advantage_weight * relative - (0.0 if reward else section.wrong_penalty)
        effects.append(RewardEffect(1.0 if reward else section.wrong_weight, advantage))
    return effects
