"""The mean rotation of the queries at future positions."""

from __future__ import annotations

import attrs
import torch
from jaxtyping import Float, Float32
from torch import Tensor

from kvpolicy.observation.rotary import Rotary
from kvpolicy_kernels import rotate_half


@attrs.frozen(kw_only=True, eq=False)
class MeanRotation:
    """The mean of rotary rotations: R = diag(mean cos) + diag(mean sin) P, P the quarter turn.

    It is linear, but not a rotation: channel pairs that rotate fast get smaller in the mean.
    """

    cosines: Float32[Tensor, " R"]
    sines: Float32[Tensor, " R"]
    interleaved: bool

    @classmethod
    def of_next(cls, count: int, seen: int, rotary: Rotary, device: torch.device) -> MeanRotation:
        """Return the mean rotation of the `count` positions after `seen` tokens.

        >>> from kvpolicy.observation.rotary import PlainRotary
        >>> MeanRotation.of_next(1, 0, PlainRotary(dim=2), torch.device("cpu")).cosines
        tensor([1., 1.])
        """
        positions = torch.arange(seen, seen + count, device=device)
        cosines, sines = (table.mean(0) for table in rotary.tables(positions))
        return cls(cosines=cosines, sines=sines, interleaved=rotary.interleaved)

    def __call__(self, vectors: Float[Tensor, "*lead D"]) -> Float[Tensor, "*lead D"]:
        """Apply the mean rotation to vectors. Channels beyond the first R do not change."""
        size = self.cosines.shape[-1]
        turned = vectors[..., :size]
        quarter = rotate_half(turned, interleaved=self.interleaved)
        turned = turned * self.cosines + quarter * self.sines
        if size == vectors.shape[-1]:
            return turned
        return torch.cat([turned, vectors[..., size:]], dim=-1)
