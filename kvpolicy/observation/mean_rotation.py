"""The mean of the rotations of some positions: queries still to come are turned by it."""

from __future__ import annotations

import attrs
import torch
from jaxtyping import Float
from torch import Tensor

from kvpolicy_kernels import rotate_half


@attrs.frozen(kw_only=True, eq=False)
class MeanRotation:
    """The mean of the rotations of P positions, from their cosines and sines.

    R = diag(mean cos) + diag(mean sin) P, P the quarter turn of a channel pair. It is linear, but
    not a rotation: channel pairs that rotate fast get smaller in the mean.

    >>> from kvpolicy.observation.rotary import PlainRotary
    >>> cosines, sines = PlainRotary(dim=2).tables(torch.tensor([0, 1]))
    >>> turn = MeanRotation(cosines=cosines, sines=sines, interleaved=False)
    >>> turn(torch.tensor([1.0, 0.0]))
    tensor([0.7702, 0.4207])
    """

    cosines: Float[Tensor, "P R"]
    sines: Float[Tensor, "P R"]
    interleaved: bool

    def __call__(self, vectors: Float[Tensor, "*lead D"]) -> Float[Tensor, "*lead D"]:
        """Apply the mean rotation to vectors. Channels beyond the first R do not change."""
        size = self.cosines.shape[-1]
        turned = vectors[..., :size]
        quarter = rotate_half(turned, interleaved=self.interleaved)
        turned = torch.addcmul(turned * self.cosines.mean(0), quarter, self.sines.mean(0))
        if size == vectors.shape[-1]:
            return turned
        return torch.cat([turned, vectors[..., size:]], dim=-1)
