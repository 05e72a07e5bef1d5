"""Gradients of hidden states, head and bias, added up from the slopes of one chunk of logits after another.

>>> hidden, head = torch.ones(2, 1), torch.ones(3, 1)
>>> gradients = Gradients(hidden, head, None, (True, True, False), scale=1.0)
>>> gradients.add(slice(0, 2), hidden, torch.ones(2, 3))
>>> [None if own is None else own.tolist() for own in gradients.made(head, None)]
[[[3.0], [3.0]], [[2.0], [2.0], [2.0]], None]
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Gradients:
    """Of logits = scale * hidden @ head.T + bias; two of the three matrix products of a loss.

    wide, wide_bias  head and bias in the dtype of the products
    needs            which gradients are wanted: of hidden, head, bias
    """

    def __init__(
        self, hidden: Tensor, wide: Tensor, wide_bias: Tensor | None, needs: Sequence[bool], scale: float
    ) -> None:
        self._wide, self._scale = wide, scale
        self._hidden = torch.empty_like(hidden) if needs[0] else None
        self._head = torch.zeros_like(wide) if needs[1] else None
        self._bias = torch.zeros_like(wide_bias) if needs[2] and wide_bias is not None else None

    def add(self, at: slice, states: Tensor, slope: Tensor) -> None:
        """at: the rows of the chunk; states: [rows, d], their hidden states; slope: [rows, v] in their logits."""
        if self._bias is not None:
            self._bias += slope.sum(0)
        if self._hidden is not None:
            self._hidden[at] = (slope @ self._wide).mul_(self._scale)
        if self._head is not None:
            self._head.addmm_(slope.T, states, alpha=self._scale)

    def made(self, head: Tensor, bias: Tensor | None) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """All of them, in the dtypes of what they belong to."""
        return (
            self._hidden,
            None if self._head is None else self._head.to(head.dtype),
            None if self._bias is None or bias is None else self._bias.to(bias.dtype),
        )
