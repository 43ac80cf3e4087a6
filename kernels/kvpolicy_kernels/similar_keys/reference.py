"""Similar keys in PyTorch: the specification, and what runs on a CPU."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Literal, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor

from kvpolicy_kernels.common.pytorch.blocks import rows_per_block, spans
from kvpolicy_kernels.common.pytorch.sums import sums_dtype

Retain: TypeAlias = Literal["last", "first"]

LEAST = 1e-8
"""The least norm of a key; a key of zeros has no direction."""

SIDE = 1024
"""Rows and columns of a block of cosines on a CPU: 4 MiB."""


class SimilarKeys(NamedTuple):
    """The position of a similar key for each key, and their cosine."""

    positions: Int64[Tensor, "B N S"]
    cosines: Float[Tensor, "B N S"]


@torch.no_grad()
def similar_keys(
    keys: Float[Tensor, "B N S D"], *, threshold: float, retain: Retain
) -> SimilarKeys:
    """Compare blocks of keys, on a CPU only those that have found no similar key yet."""
    found = torch.zeros(keys.shape[:3], dtype=torch.int64, device=keys.device)
    if not found.numel():
        return SimilarKeys(found, found.to(sums_dtype(keys.device)))
    if keys.device.type == "cpu":
        for head in product(*map(range, found.shape[:2])):
            for rows in spans(0, keys.shape[2], SIDE):
                found[head][rows] = _of_rows(keys[head], rows, threshold, retain)
    else:
        side = max(1, int(rows_per_block(found[..., 0].numel(), found.device) ** 0.5))
        for rows in spans(0, keys.shape[2], side):
            found[..., rows] = _of_all_columns(keys, rows, threshold, retain)
    return SimilarKeys(found, _cosines(keys, found))


def directions(keys: Float[Tensor, "*rows D"]) -> Float32[Tensor, "*rows D"]:
    """Return the keys in float32 and divided by their norms."""
    return F.normalize(keys.float(), dim=-1, eps=LEAST)


def _of_rows(
    keys: Float[Tensor, "S D"], rows: slice, threshold: float, retain: Retain
) -> Int64[Tensor, " n"]:
    """Compare rows with blocks of columns, beginning at the end where the wanted one is.

    A row that has found its column is not compared any more. In the worst case no keys are similar
    and all pairs are compared.
    """
    own = directions(keys[rows])
    left = torch.arange(own.shape[0], device="cpu")
    found = torch.zeros_like(left)
    for columns in _from_an_end(keys.shape[0], SIDE, retain):
        similar = _similar(own, directions(keys[columns]), threshold, rows, columns, left)
        hit = similar.any(-1)
        if not bool(hit.any()):
            continue
        found[left[hit]] = _outermost(similar[hit], retain) + columns.start
        left, own = left[~hit], own[~hit]
        if not len(left):
            break
    return found


def _of_all_columns(
    keys: Float[Tensor, "B N S D"], rows: slice, threshold: float, retain: Retain
) -> Int64[Tensor, "B N n"]:
    """Compare rows with all columns: to ask which rows are left would wait for a GPU."""
    own, length = directions(keys[:, :, rows]), keys.shape[2]
    place = torch.arange(own.shape[2], device=own.device)
    found = torch.full(own.shape[:3], -1, dtype=torch.int64, device=own.device)
    for columns in _from_an_end(length, own.shape[2], retain):
        others = directions(keys[:, :, columns])
        similar = _similar(own, others, threshold, rows, columns, place)
        column = _outermost(similar, retain) + columns.start
        found = torch.where((found < 0) & similar.any(-1), column, found)
    return found.clamp_(min=0)


def _from_an_end(length: int, side: int, retain: Retain) -> Iterator[slice]:
    blocks = list(spans(0, length, side))
    yield from blocks if retain == "first" else reversed(blocks)


def _similar(
    own: Float32[Tensor, "*heads n D"],
    others: Float32[Tensor, "*heads V D"],
    threshold: float,
    rows: slice,
    columns: slice,
    place: Int64[Tensor, " n"],
) -> Bool[Tensor, "*heads n V"]:
    """Return which of the other keys are similar; `place` is where the own ones are in `rows`."""
    similar = own @ others.mT > threshold
    if rows.start < columns.stop and columns.start < rows.stop:
        numbers = torch.arange(columns.start, columns.stop, device=place.device)
        similar &= (place + rows.start)[:, None] != numbers
    return similar


def _outermost(similar: Bool[Tensor, "*heads n V"], retain: Retain) -> Int64[Tensor, "*heads n"]:
    """Return the last or first column that is True in each row."""
    columns = similar.shape[-1]
    from_the_end = retain == "last"
    place = (similar.flip(-1) if from_the_end else similar).byte().argmax(-1)
    return columns - 1 - place if from_the_end else place


def _cosines(
    keys: Float[Tensor, "B N S D"], others: Int64[Tensor, "B N S"]
) -> Float[Tensor, "B N S"]:
    """Return the cosine of each key and another one; 0 for a key and itself."""
    found = torch.zeros(others.shape, dtype=sums_dtype(keys.device), device=keys.device)
    rows = rows_per_block(4 * keys[:, :, 0].numel(), keys.device)
    for block in spans(0, keys.shape[2], rows):
        index = others[:, :, block, None].expand(-1, -1, -1, keys.shape[-1])
        pair = (directions(keys[:, :, block]), directions(keys.gather(2, index)))
        found[:, :, block] = (pair[0] * pair[1]).sum(-1, dtype=found.dtype)
    place = torch.arange(keys.shape[2], device=keys.device)
    return found.masked_fill_(others == place, 0.0)
