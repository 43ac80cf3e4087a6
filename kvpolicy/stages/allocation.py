"""Allocate: how many positions each key/value head of a layer keeps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Protocol, runtime_checkable

import attrs
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from kvpolicy.observation.observation import Observation
from kvpolicy_kernels import select


@runtime_checkable
class Allocator(Protocol):
    """Gives each key/value head of a layer its number of positions."""

    def allocate(
        self, scores: Float[Tensor, "B N S"], observation: Observation, budget: int
    ) -> Int[Tensor, "B N"]:
        """Return how many positions each key/value head keeps, an integer from 0 to S.

        Over all layers and heads the counts average at most `budget`.

        - A score of +inf marks a protected position.
        - A score of -inf marks a position that the head does not hold. This happens if heads hold
          different numbers of positions. S is then the length of the longest head, and
          `observation` shows that head.
        - A count above what a head holds is cut to what it holds.
        - Counts that do not depend on scores belong on the CPU. The size of the smaller cache is
          then known without waiting for the device.
        """
        ...


@runtime_checkable
class ModelAllocator(Allocator, Protocol):
    """An allocator that compares layers. It is called once, when the last layer has been scored.

    Until then every layer keeps everything, so a prompt has the peak memory of a full cache.
    `allocate` serves a single layer.
    """

    def allocate_layers(
        self,
        scores: Sequence[Float[Tensor, "B N _"]],
        observations: Sequence[Observation],
        budget: int,
    ) -> Sequence[Int[Tensor, "B N"]]:
        """Return counts for every layer. Layers may hold different numbers of positions.

        Over all layers and heads of a sequence the counts average at most `budget`.
        """
        ...


@runtime_checkable
class SequentialAllocator(Allocator, Protocol):
    """An allocator that goes layer by layer: a layer may keep what those before it have left.

    Every layer is evicted as soon as it is scored, so no full cache is held. `allocate` serves a
    layer before which nothing was left.
    """

    def allocate_next(
        self,
        scores: Float[Tensor, "B N S"],
        observation: Observation,
        budget: int,
        spare: Int[Tensor, " B"],
    ) -> Int[Tensor, "B N"]:
        """Return the counts of the next layer of a forward.

        `spare` is on the CPU. It says for each sequence how many positions, summed over heads, the
        layers before this one could have kept and did not. The counts of a sequence sum up to at
        most N * `budget` + `spare`, so over the layers so far they average at most `budget`.
        """
        ...


@attrs.frozen(kw_only=True)
class UniformAllocator:
    """Gives every layer and head the same budget."""

    capturable: ClassVar[bool] = True
    position_bias: ClassVar[bool] = True

    def allocate(
        self, scores: Float[Tensor, "B N S"], observation: Observation, budget: int
    ) -> Int[Tensor, "B N"]:
        """Return `budget` for every head, or S if S is smaller."""
        batch, heads, length = scores.shape
        return torch.full((batch, heads), min(budget, length), dtype=torch.long, device="cpu")


def best_first(scores: Float[Tensor, "B N S"], length: int) -> Float[Tensor, "B N length"]:
    """Sort each head's scores, the best first, and pad them with -inf to `length`.

    >>> best_first(torch.tensor([[[1.0, 3.0]]]), 3)
    tensor([[[3., 1., -inf]]])
    """
    ranked = scores.sort(dim=-1, descending=True).values
    missing = length - scores.shape[-1]
    return F.pad(ranked, (0, missing), value=-torch.inf) if missing else ranked


def shares_of_the_best(ranked: Float[Tensor, "B N S"], budget: int) -> Int[Tensor, "B N"]:
    """Count each head's scores among the best of all heads; there are `budget` times N of these.

    `ranked` has the best score of each head first. Of equal scores, those that rank higher in their
    own head come first. So heads share equal scores evenly.

    >>> shares_of_the_best(torch.tensor([[[9.0, 8.0, 7.0], [5.0, 1.0, 0.0]]]), 2)
    tensor([[3, 1]])
    """
    batch, heads, length = ranked.shape
    total = heads * min(budget, length)
    by_rank = ranked.transpose(1, 2).reshape(batch, 1, length * heads)
    count = torch.full((batch, 1), total, dtype=torch.long, device="cpu")
    best = select(by_rank, count, count=total)[:, 0]
    counts = best.new_zeros(batch, heads)
    return counts.scatter_(1, best % heads, 1, reduce="add")


def at_most_held(counts: Int[Tensor, "B N"], scores: Float[Tensor, "B N S"]) -> Int[Tensor, "B N"]:
    """Cut counts to what each head holds: the scores that are not -inf.

    >>> at_most_held(torch.tensor([[2, 2]]), torch.tensor([[[1.0, 2.0], [0.0, -torch.inf]]]))
    tensor([[2, 1]])
    """
    return counts.to(scores.device).minimum(scores.ne(-torch.inf).sum(-1))
