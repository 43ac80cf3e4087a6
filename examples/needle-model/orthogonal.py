"""Muon with float32 throughout, for CPUs."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim import Optimizer

MOMENTUM = 0.95
ROUNDS = 5
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
RMS = 0.2
"""What the steps of AdamW are like: Liu et al. 2025, Muon is scalable for LLM training."""


class OrthogonalMomentum(Optimizer):
    """Steps along the nearest orthogonal matrix of the momentum, scaled to AdamW's size.

    It is what `torch.optim.Muon` does with `adjust_lr_fn="match_rms_adamw"`. PyTorch's Muon
    computes in bfloat16. A CPU without such instructions takes longer for that than for all the
    rest of a step.
    """

    def __init__(self, matrices: Iterable[Tensor], *, lr: float, weight_decay: float) -> None:
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Take one step for all matrices that have a gradient."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                momentum = state.setdefault("momentum", torch.zeros_like(weight))
                momentum.lerp_(weight.grad, 1 - MOMENTUM)
                update = orthogonal(weight.grad.lerp(momentum, MOMENTUM))
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.sub_(update, alpha=group["lr"] * RMS * max(weight.shape) ** 0.5)


def orthogonal(matrix: Float[Tensor, "M N"]) -> Float[Tensor, "M N"]:
    """Bring all singular values near 1, by Newton-Schulz iterations.

    Source: Jordan et al. 2024, Muon: an optimizer for hidden layers in neural networks.
    """
    first, second, third = COEFFICIENTS
    tall = matrix.shape[0] > matrix.shape[1]
    found = matrix.T if tall else matrix
    found = found / found.norm().clamp_min(1e-7)
    for _ in range(ROUNDS):
        square = found @ found.T
        found = first * found + (second * square + third * square @ square) @ found
    return found.T if tall else found
