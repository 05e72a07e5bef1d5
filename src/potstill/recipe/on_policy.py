"""The sections of on-policy distillation: `train.on_policy`, during training, and `on_policy`, after the selection.

>>> section = TrainOnPolicySection(share={1: 0.0, 101: 1.0}, scorers={"big": {"sets": ["gsm8k"]}})
>>> [section.share_at(step) for step in (1, 51, 101, 500)]
[0.0, 0.5, 1.0, 1.0]
>>> TrainOnPolicySection(share=0.3, scorers={"big": {"sets": ["gsm8k"]}}).count_own_prompts(4, 5)
[0, 1, 2, 4, 5, 6]
"""

from __future__ import annotations

from itertools import accumulate, pairwise
from typing import Annotated, Any, Final, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from potstill.recipe.fields import Name, Positive, Section, Share, refuse
from potstill.recipe.teacher import BudgetSection, ServerSection

TEACHER: Final = "teacher"  # values of `model` in a scorer that are not the name of a model
BASE_STUDENT: Final = "base"

Fraction = Annotated[float, Field(ge=0, le=1)]


def _number_from_key(value: Any) -> Any:
    """Keys of a recipe's mappings are texts."""
    return int(value) if isinstance(value, str) and value.isdecimal() else value


Step = Annotated[int, Field(gt=0), BeforeValidator(_number_from_key)]
# A number for every step, or a mapping from steps to numbers; between two of these steps it changes linearly.
Schedule = Annotated[
    Annotated[Fraction, Tag("[number]")] | Annotated[dict[Step, Fraction], Field(min_length=1), Tag("[keys]")],
    Discriminator(lambda value: "[keys]" if isinstance(value, dict) else "[number]"),
]


class RewardsSection(Section):
    """What the grader's verdict on a text of the student changes. A right text has the reward 1, a wrong text 0."""

    wrong_weight: Fraction = Field(
        default=1.0,
        description="Weight of the divergence on a wrong text: 1 as on a right text, less to reduce it, 0 to drop it.",
    )
    wrong_penalty: float = Field(
        default=0.0,
        ge=0,
        description="Advantage that a wrong text loses: its tokens become less likely. Added to the group's advantage.",
    )
    advantage_weight: float = Field(
        default=0.0,
        ge=0,
        description="Weight of the group-relative advantage (GRPO): a text's reward minus the mean reward of the texts "
        "for the same question. It is added to the divergence and needs `samples` of at least 2.",
    )
    advantage_scale: Literal["deviation", "none"] = Field(
        default="deviation",
        description="Whether the group-relative advantage is divided by the standard deviation of the group's rewards.",
    )
    clip: float = Field(
        default=0.2,
        gt=0,
        lt=1,
        description="The ratio of a token's probability to its probability when it was written counts in the gradient of "
        "the advantage only from 1 - clip to 1 + clip, as in PPO.",
    )
    truncated: Literal["wrong", "graded", "drop"] = Field(
        default="wrong",
        description="How a text counts that reached max_tokens: as wrong, by its grade like any other text, or not at "
        "all (drop).",
    )
    no_answer: Literal["wrong", "drop"] = Field(
        default="wrong", description="How a complete text without an answer counts: as wrong, or not at all (drop)."
    )

    @property
    def has_advantages(self) -> bool:
        return self.wrong_penalty > 0 or self.advantage_weight > 0


class OnPolicyScorerSection(Section):
    """Sets whose training questions the student answers during training, and the model that scores these texts."""

    sets: list[Name] = Field(min_length=1, description="Sets whose training questions the student answers.")
    model: str | None = Field(
        default=TEACHER,
        description="Model that scores the texts: teacher (the model of the section `teacher`), the name of one of the "
        "recipe's `teachers`, base (the base student), or a model as in student.model; with kind: openai the model's "
        "name on the server. null: no model; the texts then have only rewards.",
    )
    revision: str | None = Field(default=None, description="Branch, tag or commit of a model on the hub.")
    kind: Literal["local", "openai"] = Field(
        default="local",
        description="local: a model in this process; openai: a server that returns the log-probabilities of existing "
        "texts. A teacher of the recipe has its own kind.",
    )
    server: ServerSection = Field(default=ServerSection(), description="The server, for kind: openai.")
    budget: BudgetSection = Field(default=BudgetSection(), description="Limits of the costs, for kind: openai.")
    quota: Positive = Field(default=1, description="Quota of these questions among those that the student answers.")
    part: Literal["all", "answer"] = Field(
        default="all",
        description="Part of a text that is scored: everything, or only the answer, without thoughts between tags.",
    )
    rewards: bool = Field(default=True, description="Whether on_policy.rewards applies to these questions.")

    @model_validator(mode="after")
    def _server_only_for_servers(self) -> OnPolicyScorerSection:
        if self.kind == "local" and (self.server != ServerSection() or self.budget != BudgetSection()):
            refuse("E-recipe-scorer-server", "server and budget of a scorer need kind: openai")
        if self.kind == "openai" and self.model in (None, TEACHER, BASE_STUDENT):
            refuse("E-recipe-scorer-server", "a scorer with kind: openai needs model, the model's name on the server")
        return self


class OwnTextsSection(Section):
    """The keys that both sections have: how the student writes its texts, and which divergence from the scorer it learns."""

    divergence: str = Field(
        default="reverse_kl", description="Divergence between scorer and student, as in train.divergence."
    )
    divergence_beta: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="The same as train.divergence_beta, for these texts; by default, train.divergence_beta.",
    )
    top_logprobs: Positive = Field(
        default=20, description="Number of the scorer's most likely tokens used at each position."
    )
    samples: Positive = Field(default=1, description="Number of texts per question.")
    temperature: float = Field(default=1.0, gt=0, description="Sampling temperature of the student's texts.")
    max_tokens: Positive = Field(default=256, description="Maximum number of tokens per text.")


class TrainOnPolicySection(OwnTextsSection):
    """On-policy distillation during training: the student writes a share of a step's texts itself, and learns the
    distributions that another model has at their tokens, or the rewards of the grader."""

    share: Schedule = Field(
        description="Fraction of a step's prompts for which the current student writes the texts; stored chains are used "
        "for the others. {1: 0, 400: 0.5} changes it linearly from step 1 to step 400."
    )
    scorers: dict[Name, OnPolicyScorerSection] = Field(
        min_length=1,
        description="By a name of your choice: the questions that the student answers, and the model that scores its "
        "texts. {big: {sets: [gsm8k]}, own: {sets: [bbh], model: base}}.",
    )
    divergence_weight: float = Field(
        default=1.0, ge=0, description="Weight of the divergence; 0 trains on rewards alone."
    )
    engine: Literal["transformers", "ctranslate2"] = Field(
        default="transformers",
        description="Engine that writes the texts; ctranslate2 converts the student's weights at every refresh.",
    )
    refresh_every: Positive = Field(
        default=1,
        description="Number of steps whose texts are written at once, with the weights before the first of them. More "
        "steps are faster, and their texts staler.",
    )
    ratio_cap: float | None = Field(
        default=2.0,
        ge=1,
        description="With refresh_every above 1: a token's divergence is weighted by its probability divided by its "
        "probability when it was written, at most by this number; null: no weights.",
    )
    max_kl: float | None = Field(
        default=None,
        gt=0,
        description="With refresh_every above 1: if the divergence of the current weights from those that wrote the texts "
        "exceeds this number of nats per token in a step, the student writes the texts of the remaining steps again, as "
        "with target_kl of PPO; null: only after refresh_every steps.",
    )
    rewards: RewardsSection = Field(default=RewardsSection(), description="What the grader's verdicts change.")

    def share_at(self, step: int) -> float:
        """The share at a step; steps are counted from 1."""
        if not isinstance(self.share, dict):
            return self.share
        points = sorted(self.share.items())
        if step <= points[0][0]:
            return points[0][1]
        for (first, low), (last, high) in pairwise(points):
            if step <= last:
                return low + (high - low) * (step - first) / (last - first)
        return points[-1][1]

    def count_own_prompts(self, prompts_per_step: int, steps: int) -> list[int]:
        """For every number of steps from 0 to `steps`, the number of prompts in these steps for which the student writes
        the texts."""
        shares = (self.share_at(step) * prompts_per_step for step in range(1, steps + 1))
        # The sum is rounded, not its terms. 1e-9: ten times 0.05 is a half.
        return [int(total + 0.5 + 1e-9) for total in accumulate(shares, initial=0.0)]

    @property
    def sets(self) -> list[str]:
        """All sets whose questions the student answers, in the order of the recipe."""
        return list(dict.fromkeys(name for scorer in self.scorers.values() for name in scorer.sets))

    @property
    def stores_probabilities(self) -> bool:
        """Whether the probabilities of the written tokens are needed, because other weights may have written them."""
        return self.refresh_every > 1

    @model_validator(mode="after")
    def _complete(self) -> TrainOnPolicySection:
        shares = self.share.values() if isinstance(self.share, dict) else [self.share]
        if not any(shares):
            refuse("E-recipe-on-policy-share", "train.on_policy.share is 0 at every step: remove train.on_policy")
        names = [name for scorer in self.scorers.values() for name in scorer.sets]
        if twice := [name for name in names if names.count(name) > 1]:
            refuse("E-recipe-named-twice", f"train.on_policy.scorers names {twice[0]} twice: a set has one scorer")
        if self.rewards.advantage_weight and self.samples < 2:
            message = "rewards.advantage_weight compares the texts of one question"
            refuse("E-recipe-on-policy-samples", message, hint="set train.on_policy.samples to 2 or more")
        if self.max_kl is not None and not self.stores_probabilities:
            message = "max_kl bounds the staleness of texts, but refresh_every: 1 leaves none stale"
            refuse("E-recipe-on-policy-max-kl", message, hint="set train.on_policy.refresh_every to 2 or more")
        for scorer in self.scorers.values():
            has_reward = scorer.rewards and self.rewards.has_advantages
            if (scorer.model is None or not self.divergence_weight) and not has_reward:
                message = f"the texts for {', '.join(scorer.sets)} have neither a divergence nor a reward"
                hint = "set rewards.advantage_weight, or a model and a divergence_weight above 0"
                refuse("E-recipe-on-policy-nothing", message, hint=hint)
        return self


class OnPolicySection(OwnTextsSection):
    """On-policy distillation after the selection: the selected student answers training questions of generic sets, and
    learns the scores of the base student, or of another model, for each token. The result is tested next to the selected
    checkpoint, but is not selected itself."""

    sets: list[Name] = Field(min_length=1, description="Sets whose training questions the student answers.")
    scorer: str | None = Field(
        default=None,
        description="Model that scores the answers, as in student.model; it may have another tokenizer. By default, the "
        "base student.",
    )
    scorer_revision: str | None = Field(default=None, description="Branch, tag or commit of a scorer on the hub.")
    keep: Share | None = Field(
        default=None,
        description="Fraction of the questions that are training questions of the task; the selected student, before this "
        "training, scores them.",
    )
    steps: Positive = Field(default=100, description="Number of optimizer steps.")
    prompts_per_step: Positive = Field(default=32, description="Number of questions per step.")
    learning_rate: float = Field(default=1e-4, gt=0, description="Learning rate, constant after the warmup.")
    warmup_steps: Positive = Field(default=10, description="Number of steps of linear warmup.")
    checkpoint_every: Positive = Field(
        default=50, description="Number of steps between two checkpoints; an interrupted run resumes from the last one."
    )
