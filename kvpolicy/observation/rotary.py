"""Rotary embedding: a model's cosines and sines, and how to rotate by them, and back."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import attrs
import torch
from jaxtyping import Float, Float32, Float64, Int
from torch import Tensor

from kvpolicy_kernels import rotate_half


@runtime_checkable
class Rotary(Protocol):
    """The cosines and sines by which a model rotates the queries and keys of a position."""

    @property
    def interleaved(self) -> bool:
        """Whether channels 2j and 2j + 1 are a pair. Otherwise channels j and j + R/2 are."""
        ...

    def tables(
        self, positions: Int[Tensor, "*shape"]
    ) -> tuple[Float[Tensor, "*shape R"], Float[Tensor, "*shape R"]]:
        """Return cosines and sines for the first R channels of a head, in float32.

        The squares of a cosine and its sine add up to 1: a model's own scale is left out.
        """
        ...


@attrs.frozen(kw_only=True)
class PlainRotary:
    """Rotary embedding by its formula: channel pair j is rotated by position * base^(-2j / R).

    Su et al., https://arxiv.org/abs/2104.09864.

    >>> cosines, sines = PlainRotary(dim=4).tables(torch.tensor([0, 1]))
    >>> sines
    tensor([[0.0000, 0.0000, 0.0000, 0.0000],
            [0.8415, 0.0100, 0.8415, 0.0100]])
    """

    dim: int
    base: float = 10_000.0
    interleaved: bool = False
    _sent: dict[torch.device, Tensor] = attrs.field(
        factory=dict, init=False, eq=False, repr=False, hash=False
    )

    def tables(
        self, positions: Int[Tensor, "*shape"]
    ) -> tuple[Float[Tensor, "*shape R"], Float[Tensor, "*shape R"]]:
        """Return cosines and sines. Both channels of a pair have the same angle."""
        angles = positions[..., None] * self._frequencies(positions.device)
        halves = angles[..., None] if self.interleaved else angles[..., None, :]
        sizes = (-1, 2) if self.interleaved else (2, -1)
        shape = (*angles.shape[:-1], self.dim)
        cosines, sines = torch.empty((2, *shape), dtype=torch.float32, device=angles.device)
        for compute, table in ((torch.cos, cosines), (torch.sin, sines)):
            both = table.unflatten(-1, sizes)
            compute(halves.expand(both.shape), out=both)
        return cosines, sines

    def _frequencies(self, device: torch.device) -> Float64[Tensor, " half"]:
        """Return the frequency of each pair; they are sent to a device once."""
        known = self._sent.get(device)
        if known is None:
            pairs = torch.arange(0, self.dim, 2, dtype=torch.float64, device="cpu")
            known = (self.base ** (-pairs / self.dim)).to(device, non_blocking=True)
            self._sent[device] = known
        return known


@attrs.frozen(kw_only=True)
class DisplacedRotary:
    """Another rotary embedding, which takes position p to its own position p + `by`.

    >>> DisplacedRotary(rotary=PlainRotary(dim=4), by=-5).tables(torch.tensor([6]))[1]
    tensor([[0.8415, 0.0100, 0.8415, 0.0100]])
    """

    rotary: Rotary
    by: int

    @property
    def interleaved(self) -> bool:
        """Which channels are a pair, as in the other embedding."""
        return self.rotary.interleaved

    def tables(
        self, positions: Int[Tensor, "*shape"]
    ) -> tuple[Float[Tensor, "*shape R"], Float[Tensor, "*shape R"]]:
        """Return the cosines and sines of the displaced positions."""
        return self.rotary.tables(positions + self.by)


def rotated(
    vectors: Float[Tensor, "*lead D"], positions: Int[Tensor, "*pos"], rotary: Rotary
) -> Float[Tensor, "*lead D"]:
    """Return queries or keys after rotary embedding, in float32, from those before it.

    `positions` broadcasts against the leading axes of `vectors`.

    >>> rotated(torch.tensor([[1.0, 0.0, 0.0, 0.0]]), torch.tensor([1]), PlainRotary(dim=4))
    tensor([[0.5403, 0.0000, 0.8415, 0.0000]])
    """
    cosines, sines = rotary.tables(positions)
    return _turned(vectors, cosines, sines, rotary)


def unrotated(
    vectors: Float[Tensor, "*lead D"], positions: Int[Tensor, "*pos"], rotary: Rotary
) -> Float[Tensor, "*lead D"]:
    """Return queries or keys before rotary embedding, in float32.

    `positions` broadcasts against the leading axes of `vectors`.

    >>> x = torch.tensor([[0.0, 0.0, 1.0, 0.0]])
    >>> unrotated(x, torch.tensor([0]), PlainRotary(dim=4))
    tensor([[0., 0., 1., 0.]])
    """
    cosines, sines = rotary.tables(positions)
    return _turned(vectors, cosines, -sines, rotary)


def pair_sizes(
    vectors: Float[Tensor, "*lead D"], pairs: int, *, interleaved: bool
) -> Float32[Tensor, "*lead pairs"]:
    """Return sqrt(x^2 + y^2) of each of the first pairs of channels (x, y); rotating keeps them.

    >>> pair_sizes(torch.tensor([[3.0, 0.0, 4.0, 1.0]]), 2, interleaved=False)
    tensor([[5., 1.]])
    """
    part = vectors[..., : 2 * pairs]
    shape, axis = ((pairs, 2), -1) if interleaved else ((2, pairs), -2)
    precision = torch.promote_types(vectors.dtype, torch.float32)
    # It reads half precision and computes in float32, without a copy.
    sizes: Tensor = torch.linalg.vector_norm(part.unflatten(-1, shape), dim=axis, dtype=precision)
    return sizes.float()


def _turned(
    vectors: Float[Tensor, "*lead D"],
    cosines: Float[Tensor, "*pos R"],
    sines: Float[Tensor, "*pos R"],
    rotary: Rotary,
) -> Float[Tensor, "*lead D"]:
    size, vectors = cosines.shape[-1], vectors.float()
    part = vectors[..., :size]
    turned = part * cosines + rotate_half(part, interleaved=rotary.interleaved) * sines
    return torch.cat([turned, vectors[..., size:]], dim=-1)
