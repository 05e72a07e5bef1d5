"""The loss on texts that the student wrote: a divergence, and a policy gradient of advantages.

    >>> texts = WrittenPositions(
    ...     tokens=torch.tensor([3]), weights=torch.ones(1), advantages=torch.tensor([2.0]), written=torch.tensor([-1.3863])
    ... )
    >>> loss = OnPolicyLoss(Loss("reverse_kl", "tail"), divergence_weight=0.0)
    >>> hidden, lm_head = torch.zeros(1, 2), torch.zeros(4, 2, requires_grad=True)
    >>> ids, probs = torch.tensor([[3]]), torch.tensor([[0.25]])
    >>> total, values = loss.weighted_sum(hidden + 1, lm_head, ids, probs, torch.ones(1), written=texts)
    >>> total.backward(); lm_head.grad[:, 0]                  # 2 (q - [c = 3]): token 3 becomes more likely
    tensor([ 0.5000,  0.5000,  0.5000, -1.5000])

For a token y that the student wrote, let q be its probability now, q' its probability when it was written, and r = q / q'.
The value of a position is

    w * min(r, cap) * D(scorer, student)  -  min(r A, clip(r, 1 - c, 1 + c) A)

w is the weight of the divergence on the text (0 for a dropped text), D a divergence of `potstill.losses.divergences`, and A
the advantage of the text. min(r, cap) is a constant: a truncated importance weight (Espeholt et al. 2018), which corrects
the divergence for texts that older weights wrote. The second term is the surrogate of PPO (Schulman et al. 2017) as GRPO
uses it (Shao et al. 2024), without a critic and without a second divergence. Without `written` the texts are those of the
current weights: then r is 1, and the gradient of the second term is -A times the gradient of log q.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Final, Self

import torch
from torch import Tensor

from potstill.losses.divergences import Loss, candidate_log_probabilities

# Columns of the values after the divergence.
ON_POLICY_MEASURES: Final = ("surprise", "ratio", "capped", "clipped", "kl")

MAX_LOG_RATIO: Final = 20.0  # larger ratios count as this one, so that none is infinite


@dataclass(frozen=True, slots=True, eq=False)
class WrittenPositions:
    """The n positions of texts that the student wrote.

    tokens      [n] int64: the written token, which is among the candidates of its position
    weights     [n] float32: weight of the divergence
    advantages  [n] float32
    written     [n] float32: natural log-probability of the token under the weights that wrote it; None if these are the
                current weights
    """

    tokens: Tensor
    weights: Tensor
    advantages: Tensor
    written: Tensor | None = None

    def to(self, device: torch.device | str) -> Self:
        """The same positions with every tensor on the device."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: value.to(device) for name, value in values.items() if value is not None})


@dataclass(frozen=True, slots=True)
class OnPolicyLoss:
    """The function that training minimises at each position of a text that the student wrote.

    divergence         divergence from the scorer, with `missing_probability` tail or renormalised
    divergence_weight  weight of the divergence
    clip               c, distance from 1 at which the ratio stops counting for the advantage
    ratio_cap          largest importance weight of the divergence; None: no importance weights
    """

    divergence: Loss
    divergence_weight: float = 1.0
    clip: float = 0.2
    ratio_cap: float | None = None

    def weighted_sum(
        self,
        hidden: Tensor,
        lm_head: Tensor,
        ids: Tensor,
        probs: Tensor,
        weights: Tensor,
        *,
        written: WrittenPositions,
        **head: Any,
    ) -> tuple[Tensor, Tensor]:
        """sum(weights * values) [] with its gradient, and [n, 6] constants: the divergence in nats without any weight, then
        the ON_POLICY_MEASURES of each position.

        surprise  -log q of the written token, in nats; its mean estimates the entropy of the student at temperature 1
        ratio     q / q', 1 without `written`
        capped    1 if the ratio is above `ratio_cap`, else 0
        clipped   1 if the ratio is so far from 1 that the advantage has no gradient, else 0
        kl        r - 1 - log r of the ratio r, never negative; its mean estimates KL(q' || q) in nats (Schulman's k3)

        hidden, lm_head, ids, probs, head  as in `potstill.losses.sparse_kl`
        weights                            [n] weight of each position
        """
        is_tail = self.divergence.missing_probability == "tail"
        log_q = candidate_log_probabilities(hidden, lm_head, ids, with_rest=is_tail, is_candidate=probs > 0, **head)
        column = (ids == written.tokens[:, None]).int().argmax(1, keepdim=True)
        log_written = log_q.gather(1, column).squeeze(1)
        before = log_written.detach() if written.written is None else written.written
        log_ratio = (log_written - before).clamp_max(MAX_LOG_RATIO)
        ratio = log_ratio.exp()
        divergence = self.divergence.of_log_probabilities(log_q, probs)
        constant = ratio.detach()
        importance = torch.ones_like(constant) if self.ratio_cap is None else constant.clamp_max(self.ratio_cap)
        low, high = 1 - self.clip, 1 + self.clip
        surrogate = torch.minimum(ratio * written.advantages, ratio.clamp(low, high) * written.advantages)
        # A weight of 0 must remove the divergence even where it is infinite.
        weight = self.divergence_weight * written.weights * importance
        pulled = torch.where(weight > 0, divergence, 0.0) * weight
        is_clipped = ((constant > high) & (written.advantages > 0)) | ((constant < low) & (written.advantages < 0))
        is_capped = torch.zeros_like(is_clipped) if self.ratio_cap is None else constant > self.ratio_cap
        kl = constant - 1 - log_ratio.detach()
        columns = (divergence.detach(), -log_written.detach(), constant, is_capped, is_clipped, kl)
        values = torch.stack([column.to(log_q.dtype) for column in columns], 1)
        return (weights * (pulled - surrogate)).sum(), values
