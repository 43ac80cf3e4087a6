"""Attention masks: which new tokens are padding, and what a shorter layer makes of a mask."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from kvpolicy.errors import InvalidValueError, UnsupportedModelError


def real_tokens(mask: Any, batch: int, length: int, held: int) -> Bool[Tensor, "B Q"] | None:
    """Return which of the last `length` of `held` columns are real tokens; None if all are.

    Understands what transformers builds for sdpa (bool), eager (0 or a large negative number),
    flash (2D) and flex (BlockMask). Reading a mask waits for the device: once per forward.
    """
    if mask is None:
        return None
    real = _last_row(mask, length, held)
    if bool(real.all()):
        return None
    return real.expand(batch, -1)


def _last_row(mask: Any, length: int, held: int) -> Bool[Tensor, "B Q"]:
    if not isinstance(mask, Tensor):
        rows = torch.arange(mask.shape[0], device=mask.kv_num_blocks.device)[:, None]
        columns = torch.arange(held - length, held, device=rows.device)[None]
        last = torch.full_like(columns, length - 1)
        real: Tensor = mask.mask_mod(rows, torch.zeros_like(columns), last, columns)
        return real.bool()
    if mask.dim() == 2:
        return mask[:, -length:].bool()
    row = mask[:, 0, -1, -length:]
    return row if row.dtype == torch.bool else row > torch.finfo(row.dtype).min / 2


def padding_counts(real: Bool[Tensor, "B Q"], started: list[bool]) -> list[int]:
    """Return how many of the new tokens of each row are padding.

    Raises InvalidValueError if padding stands behind a real token: slots hold real tokens
    right-aligned, so only padding on the left can be exact.
    """
    pads = (~real).sum(1)
    columns = torch.arange(real.shape[1], device=real.device)
    leading = ((columns >= pads[:, None]) == real).all(1)
    counts: list[int] = pads.tolist()
    for row, (pad, left) in enumerate(zip(counts, leading.tolist(), strict=True)):
        if not left or (pad and started[row]):
            raise InvalidValueError(
                f"row {row} of attention_mask has padding behind a real token; an evicted cache "
                "needs it on the left. Tokenize with padding_side='left'."
            )
    return counts


def fit(mask: Any, held: int) -> Any:
    """Return the columns of a mask shared by all layers that belong to one with `held` slots.

    The mask is built for the layer that holds the most; slots are right-aligned.
    """
    if isinstance(mask, Tensor) and mask.shape[-1] > held:
        return mask[..., -held:]
    return mask


def with_own_padding(
    mask: Any, lengths: list[int], query_length: int, held: int, like: Tensor, backend: str
) -> Any:
    """Return `mask` with its older columns replaced: a row's last `lengths` slots are real.

    Needed where rows keep different numbers of positions (a share of unequal prompts), which a
    mask made from token counts cannot know.
    """
    real = torch.tensor(lengths, device=like.device)
    slots = torch.arange(held, device=like.device)
    valid = slots >= held - real[:, None]
    if "flash" in backend:
        return valid
    if "flex" in backend:
        raise UnsupportedModelError(
            "rows of a padded batch keep different numbers of positions, which flex_attention's "
            "block masks cannot say here. Use sdpa or eager, or give the budget as an int."
        )
    older = held - query_length
    valid = valid[:, None, None, :].expand(-1, 1, query_length, -1)
    if mask is None:
        return valid
    if mask.dtype == torch.bool:
        return torch.cat([valid[..., :older], mask[..., older:].expand_as(valid[..., older:])], -1)
    floor = torch.finfo(mask.dtype).min
    old = torch.zeros_like(valid[..., :older], dtype=mask.dtype).masked_fill(
        ~valid[..., :older], floor
    )
    return torch.cat([old, mask[..., older:].expand(len(lengths), -1, -1, -1)], -1)
