"""Sums of vectors before rotary embedding, and of their products."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from kvpolicy_kernels.backend import implementation
from kvpolicy_kernels.checks import require
from kvpolicy_kernels.unrotated_sums.reference import Further, Tables, UnrotatedSums

__all__ = ["UnrotatedSums", "unrotated_sums"]


def unrotated_sums(
    vectors: Float[Tensor, "B H S D"],
    tables: Tables,
    *,
    further: Further | None = None,
    interleaved: bool = False,
    centre: Float[Tensor, "B H D"] | None = None,
    sizes: bool = False,
) -> UnrotatedSums:
    """Return the sum over positions of vectors before rotary embedding, and of their products.

    `tables` are the cosines and sines [S R] of the positions. With `further` tables [C R], `tables`
    are those of the first T positions only: position i is rotated by row i % T of `tables`, and
    then by row i // T of `further`. Channels beyond R are not rotated. Pairs of channels are 2j and
    2j + 1 if `interleaved`, else j and j + R/2. With a `centre` c, the sums are sum (x - c) and
    sum (x - c) (x - c)^T; without one, products are None. With `sizes`, also the sum of
    sqrt(x^2 + y^2) for each channel x and the other channel y of its pair, and of |x| beyond R.
    No rotated copy of the vectors is stored.

    Raises ValueError if the shapes do not fit.

    >>> import torch
    >>> none = torch.ones(2, 2), torch.zeros(2, 2)
    >>> vectors = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    >>> unrotated_sums(vectors, none).sums
    tensor([[[4., 6.]]])
    """
    _check(vectors, tables, further, centre)
    more = () if further is None else further
    given = (vectors, *tables, *more) if centre is None else (vectors, *tables, *more, centre)
    return implementation(unrotated_sums, *given)(
        vectors, tables, further=further, interleaved=interleaved, centre=centre, sizes=sizes
    )


def _check(vectors: Tensor, tables: Tables, further: Further | None, centre: Tensor | None) -> None:
    """Raise ValueError if the shapes do not fit."""
    cosines, sines = tables
    rows, size = cosines.shape
    require(
        cosines.shape == sines.shape
        and (rows == vectors.shape[2] or further is not None)
        and size % 2 == 0
        and size <= vectors.shape[-1],
        f"tables {tuple(cosines.shape)} and {tuple(sines.shape)} do not fit vectors "
        f"{tuple(vectors.shape)}: they must be alike, with a row for each position and an even "
        "number of channels",
    )
    if further is not None:
        needed = -(-vectors.shape[2] // max(1, rows)), size
        require(
            further[0].shape == further[1].shape == needed,
            f"further tables {tuple(further[0].shape)} and {tuple(further[1].shape)} do not fit "
            f"vectors {tuple(vectors.shape)}: for tables of {rows} positions they must be {needed}",
        )
    require(
        centre is None or centre.shape == (*vectors.shape[:2], vectors.shape[-1]),
        f"centre {tuple(getattr(centre, 'shape', ()))} does not fit vectors {tuple(vectors.shape)}",
    )
