"""Pooling with a width and shift per head in PyTorch: the specification, and what runs on a CPU."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from kvpolicy_kernels.checks import require
from kvpolicy_kernels.common.pytorch.blocks import rows_per_block, spans
from kvpolicy_kernels.common.pytorch.sums import sums_dtype


@torch.no_grad()
def pool_scores(
    scores: Float[Tensor, "B H S"],
    widths: Int[Tensor, "B H"] | int,
    shifts: Int[Tensor, "B H"] | int = 0,
    *,
    mode: Literal["avg", "max"] = "avg",
    edges: Literal["replicate", "zero"] = "replicate",
) -> Float[Tensor, "B H S"]:
    """Pool heads of equal width and shift together; most layers have few different ones."""
    rows = scores.flatten(0, 1)
    groups = _groups(widths, shifts, len(rows))
    for width, _ in groups:
        require_odd(width)
    if scores.numel() == 0:
        return scores.clone()
    pooled = torch.empty_like(rows)
    block = rows_per_block(2 * rows.shape[1], rows.device)
    for (width, shift), members in groups.items():
        for part in spans(0, len(members), block):
            pooled[members[part]] = _pool(rows[members[part]], width, shift, mode, edges)
    return pooled.view(scores.shape)


def require_odd(width: int) -> None:
    """Raise ValueError unless the width is odd and at least 1."""
    require(width >= 1 and width % 2 == 1, f"a width must be odd and at least 1, not {width}")


def _groups(
    widths: Int[Tensor, "B H"] | int, shifts: Int[Tensor, "B H"] | int, rows: int
) -> dict[tuple[int, int], list[int]]:
    width_of, shift_of = (
        [option] * rows if isinstance(option, int) else option.flatten().tolist()
        for option in (widths, shifts)
    )
    groups: dict[tuple[int, int], list[int]] = {}
    for row, pair in enumerate(zip(width_of, shift_of, strict=True)):
        groups.setdefault(pair, []).append(row)
    return groups


def _pool(
    rows: Float[Tensor, "n S"], width: int, shift: int, mode: str, edges: str
) -> Float[Tensor, "n S"]:
    outside = None if edges == "replicate" else 0.0 if mode == "avg" else -torch.inf
    padded = _window(rows, shift - width // 2, shift + width // 2, outside)
    if mode == "max":
        return functional.max_pool1d(padded, width, stride=1)
    return _sliding_sums(padded.to(sums_dtype(rows.device)), width).div_(width).to(rows.dtype)


def _window(
    rows: Float[Tensor, "n S"], first: int, last: int, outside: float | None
) -> Float[Tensor, "n P"]:
    """Return columns first .. S - 1 + last; beyond the row `outside`, or if None the edge."""
    columns = rows.shape[1]
    length = columns + last - first
    before = min(max(-first, 0), length)
    inside = rows[:, max(first, 0) : max(columns + last, 0)]
    edges = rows[:, :1], rows[:, -1:]
    if outside is not None:
        edges = torch.full_like(edges[0], outside), torch.full_like(edges[1], outside)
    after = length - before - inside.shape[1]
    return torch.cat([edges[0].expand(-1, before), inside, edges[1].expand(-1, after)], dim=1)


def _sliding_sums(rows: Float[Tensor, "n P"], width: int) -> Float[Tensor, "n S"]:
    """Sum each `width` neighbours with two additions per window (van Herk, 1992).

    Cut the row into blocks of `width` columns. A window is the end of one block and the start of
    the next, so two running sums per block serve all windows. One running sum over the whole row
    would not do: a huge score would spoil the windows behind it. Double precision makes the sum
    independent of where the window lies in its blocks: windows of equal scores must tie, because
    then the lower position is kept.
    """
    count, length = rows.shape
    blocks = -(-length // width)
    tiles = functional.pad(rows, (0, blocks * width - length)).view(count, blocks, width)
    ends = tiles.flip(-1).cumsum(-1).flip(-1).view(count, -1)
    starts = functional.pad(tiles.cumsum(-1)[..., :-1], (1, 0)).view(count, -1)
    sums = length - width + 1
    return ends[:, :sums] + functional.pad(starts, (0, width))[:, width : width + sums]
