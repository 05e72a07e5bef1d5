"""Rewards: the grader's verdicts as weights and advantages."""

from __future__ import annotations

import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from potstill.recipe.on_policy import RewardsSection, TrainOnPolicySection
from potstill.records import Verdict
from potstill.training.rewards import MIN_DEVIATION, reward_effects, reward_of

REWARDS = st.lists(st.sampled_from([0.0, 1.0, None]), min_size=1, max_size=12)
SECTIONS = st.builds(
    RewardsSection,
    wrong_weight=st.sampled_from([0.0, 0.3, 1.0]),
    wrong_penalty=st.sampled_from([0.0, 0.5]),
    advantage_weight=st.sampled_from([0.0, 1.0, 2.0]),
    advantage_scale=st.sampled_from(["deviation", "none"]),
)


@given(REWARDS, SECTIONS)
def test_effects_are_those_of_the_plain_formula(rewards: list[float | None], section: RewardsSection) -> None:
    counted = np.array([reward for reward in rewards if reward is not None])
    for reward, effect in zip(rewards, reward_effects(rewards, section), strict=True):
        if reward is None:
            assert (effect.weight, effect.advantage) == (0.0, 0.0)
            continue
        relative = reward - counted.mean()
        if section.advantage_scale == "deviation":
            relative /= (counted.std(ddof=1) if len(counted) > 1 else 0.0) + MIN_DEVIATION
        penalty = section.wrong_penalty if reward == 0 else 0.0
        assert effect.advantage == pytest.approx(section.advantage_weight * relative - penalty, abs=1e-9)
        assert effect.weight == (1.0 if reward else section.wrong_weight)


@given(REWARDS)
def test_advantages_of_a_group_sum_to_zero_and_equal_rewards_give_none(rewards: list[float | None]) -> None:
    section = RewardsSection(advantage_weight=1.0)
    effects = reward_effects(rewards, section)
    assert sum(effect.advantage for effect in effects) == pytest.approx(0, abs=1e-6)
    if len({reward for reward in rewards if reward is not None}) < 2:
        assert all(effect.advantage == 0 for effect in effects)


def test_equal_rewards_have_no_advantage_however_they_are_rounded() -> None:
    section = RewardsSection(advantage_weight=1.0)
    assert statistics.fmean([1.0] * 7) == 1
    assert [effect.advantage for effect in reward_effects([1.0] * 7, section)] == [0.0] * 7


@pytest.mark.parametrize(
    "grade, stop, keys, reward",
    [
        ("right", "end", {}, 1.0),
        ("wrong", "end", {}, 0.0),
        ("no answer", "end", {}, 0.0),
        ("no answer", "end", {"no_answer": "drop"}, None),
        ("truncated", "length", {}, 0.0),
        ("truncated", "length", {"truncated": "drop"}, None),
        ("truncated", "length", {"truncated": "graded"}, 0.0),
        ("right", "length", {}, 0.0),  # it had its answer, and went on to the limit
        ("right", "length", {"truncated": "graded"}, 1.0),
        ("right", "length", {"truncated": "drop"}, None),
        ("no answer", "length", {"truncated": "graded", "no_answer": "drop"}, None),
    ],
)
def test_the_recipe_says_how_texts_count(grade, stop, keys, reward) -> None:
    assert reward_of(Verdict(grade), stop, RewardsSection(**keys)) == reward


@given(
    st.one_of(
        st.floats(0.01, 1),
        st.dictionaries(st.integers(1, 60), st.floats(0, 1), min_size=1, max_size=4).filter(
            lambda shares: any(shares.values())
        ),
    ),
    st.integers(1, 40),
)
def test_own_prompts_follow_the_share(share, prompts: int) -> None:
    section = TrainOnPolicySection(share=share, scorers={"a": {"sets": ["s"], "model": "base"}})
    counts = section.count_own_prompts(prompts, 80)
    total = 0.0
    for step in range(1, 81):
        total += section.share_at(step) * prompts
        assert 0 <= counts[step] - counts[step - 1] <= prompts
        assert abs(counts[step] - total) <= 0.5 + 1e-6, "never more than half a prompt from the share"
    assert section.count_own_prompts(prompts, 40) == counts[:41], "more steps change no earlier step"
