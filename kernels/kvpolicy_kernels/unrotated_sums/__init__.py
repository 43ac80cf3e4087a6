"""Sums of vectors before rotary embedding, and of their products."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from jaxtyping import Float
from torch import Tensor

from kvpolicy_kernels.backend import implementation
from kvpolicy_kernels.checks import require
from kvpolicy_kernels.unrotated_sums.reference import Tables, UnrotatedSums

__all__ = ["UnrotatedSums", "unrotated_sums"]


def unrotated_sums(
    vectors: Float[Tensor, "B H S D"],
    tables: Iterable[Tables],
    *,
    interleaved: bool = False,
    centre: Float[Tensor, "B H D"] | None = None,
) -> UnrotatedSums:
    """Return the sum over positions of vectors before rotary embedding, and of their products.

    `tables` are the cosines and sines [s R] of the positions, of one block of them after another;
    a block is added before the next is asked for. Channels beyond R are not rotated. Pairs of
    channels are 2j and 2j + 1 if `interleaved`, else j and j + R/2. With a `centre` c, the sums are
    sum (x - c) and sum (x - c) (x - c)^T; without one, products are None. No rotated copy of the
    vectors is stored.

    Raises ValueError if the shapes do not fit.

    >>> import torch
    >>> none = torch.ones(2, 2), torch.zeros(2, 2)
    >>> vectors = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    >>> unrotated_sums(vectors, [none]).sums
    tensor([[[4., 6.]]])
    """
    require(
        centre is None or centre.shape == (*vectors.shape[:2], vectors.shape[-1]),
        f"centre {tuple(getattr(centre, 'shape', ()))} does not fit vectors {tuple(vectors.shape)}",
    )
    given = (vectors,) if centre is None else (vectors, centre)
    return implementation(unrotated_sums, *given)(
        vectors, _fitting(tables, vectors), interleaved=interleaved, centre=centre
    )


def _fitting(tables: Iterable[Tables], vectors: Float[Tensor, "B H S D"]) -> Iterator[Tables]:
    """Yield the tables; raise ValueError for those that do not fit."""
    known = 0
    for cosines, sines in tables:
        known += len(cosines)
        size = cosines.shape[-1]
        require(
            cosines.shape == sines.shape and size % 2 == 0 and size <= vectors.shape[-1],
            f"tables {tuple(cosines.shape)} and {tuple(sines.shape)} do not fit vectors "
            f"{tuple(vectors.shape)}: they must be alike, with an even number of channels",
        )
        require(
            known <= vectors.shape[2],
            f"tables of {known} positions and more do not fit vectors {tuple(vectors.shape)}",
        )
        yield cosines, sines
        # Others would be computed beside them.
        del cosines, sines
    require(
        known == vectors.shape[2],
        f"tables of {known} positions do not fit vectors {tuple(vectors.shape)}",
    )
