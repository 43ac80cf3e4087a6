"""Attention masks: which new tokens are padding, and a mask cut for a layer with fewer slots."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from kvpolicy.cache.memory.slots import Slots
from kvpolicy.errors import InvalidValueError, UnsupportedModelError

NEEDS_ITS_MASK = "this batch was padded when it was read, so every turn needs its attention_mask."
NEEDS_2D = (
    "padding behind earlier tokens is followed only where a causal model builds its own mask. "
    "Give a 2D attention_mask."
)
_ROWS_AT_ONCE = 2**24
"""Query-key pairs of a mask that are looked at at once."""
CONTRADICTS = (
    "attention_mask says of earlier tokens what it did not say when they were read; an evicted "
    "cache cannot take that back. Keep its old columns and append new ones."
)


def visible_tokens(mask: Any, length: int) -> Bool[Tensor, "B T"]:
    """Return which of a mask's columns the last of `length` new tokens sees.

    Understands what transformers builds for sdpa (bool), eager (0 or a large negative number),
    flash (2D) and flex (BlockMask). Raises InvalidValueError if the last token does not see what
    the others see of themselves: slots could not follow such a mask once tokens are evicted.
    """
    if not isinstance(mask, Tensor):
        return _last_row_of_blocks(mask, length)
    if mask.dim() == 2:
        return mask.bool()
    seen = mask[:, 0]
    seen = seen if seen.dtype == torch.bool else seen > torch.finfo(seen.dtype).min / 2
    last, itself = seen[:, -1], seen.diagonal(mask.shape[-1] - length, dim1=1, dim2=2)
    if mask.shape[1] > 1 or not torch.equal(itself, last[:, -length:]):
        raise InvalidValueError(
            "the attention mask, given or of the model's own making, does more than to hide "
            "padding from a causal model; an evicted cache cannot follow it. Give a 2D "
            "attention_mask, or none."
        )
    return last


def _last_row_of_blocks(mask: Any, length: int) -> Bool[Tensor, "B T"]:
    rows = torch.arange(mask.shape[0], device=mask.kv_num_blocks.device)[:, None]
    columns = torch.arange(mask.shape[-1], device=rows.device)[None]
    last = torch.full_like(columns, length - 1)
    seen: Tensor = mask.mask_mod(rows, torch.zeros_like(columns), last, columns)
    return seen.bool()


def check_given_mask(
    mask: Bool[Tensor, "B T"] | None,
    seen: list[int],
    columns: int,
    read: Bool[Tensor, "B older"] | None = None,
) -> None:
    """Refuse a 2D mask that contradicts how the first `columns` of its tokens were read.

    `seen` counts the real tokens of each row among them, and `read` says which they are; None: the
    last. Raises InvalidValueError.
    """
    padded = any(count < columns for count in seen)
    if mask is None:
        if padded:
            raise InvalidValueError(NEEDS_ITS_MASK)
        return
    if mask.shape[1] <= columns:
        raise InvalidValueError(
            f"attention_mask has {mask.shape[1]} columns, but {columns} tokens were read before "
            "the new ones: it must cover them all."
        )
    real = torch.tensor(seen, device=mask.device)
    expected = torch.arange(columns, device=mask.device) >= columns - real[:, None]
    if read is not None:
        expected = read.to(mask.device)
    if not torch.equal(mask[:, :columns].bool(), expected):
        raise InvalidValueError(CONTRADICTS)


def new_real_tokens(
    mask: Any,
    seen: list[int],
    length: int,
    held: int,
    read: Bool[Tensor, "B older"] | None = None,
) -> Bool[Tensor, "B Q"] | None:
    """Return which of the `length` new tokens are real; None if all are.

    `seen` counts the real tokens of each row before them, `held` all columns of the mask. `read`
    says which of all older tokens are real; None: the last. Raises
    InvalidValueError if the mask is missing or says of older tokens what it did not say before.
    Reading a mask waits for the device: once per forward.
    """
    older = held - length
    padded = any(count < older for count in seen)
    if mask is None:
        if padded:
            raise InvalidValueError(NEEDS_ITS_MASK)
        return None
    visible = visible_tokens(mask, length).expand(len(seen), -1)
    real = torch.tensor(seen, device=visible.device)
    expected = torch.arange(older, device=visible.device) >= older - real[:, None]
    if read is not None:
        expected = read[:, read.shape[1] - older :].to(visible.device)
    if not torch.equal(visible[:, :older], expected):
        raise InvalidValueError(CONTRADICTS)
    new = visible[:, older:]
    return None if bool(new.all()) else new


def check_causal(
    mask: Any, lengths: list[int], of_whom: str, remedy: str, *, judged: int | None = None
) -> None:
    """Refuse a mask that does more than to hide padding on the left of a causal model.

    A bias by distance is more, for example. The last `lengths` columns of each row are real tokens,
    and the rows of the mask are those of the last tokens. Only the last `judged` rows are compared,
    or all. Raises InvalidValueError. Waits for the device.
    """
    if isinstance(mask, Tensor) and mask.dim() == 2:
        return
    count, rows = mask.shape[-1], mask.shape[-2]
    device = mask.device if isinstance(mask, Tensor) else mask.kv_num_blocks.device
    key = torch.arange(count, device=device)
    real = key >= count - torch.tensor(lengths, device=device)[:, None, None]
    differs = torch.zeros((), dtype=torch.bool, device=device)
    first = 0 if judged is None else max(0, rows - judged)
    queries = torch.arange(first, rows, device=device)[:, None]
    for query in queries.split(max(1, _ROWS_AT_ONCE // (len(lengths) * count))):
        place = query + count - rows
        expected = (key <= place) & real
        seen, weighed = _visible(mask, query, len(lengths))
        # What padding sees does not matter.
        differs |= (((seen != expected[:, None]) | weighed) & real.mT[:, None, place[:, 0]]).any()
    if bool(differs):
        raise InvalidValueError(
            "the attention mask, given or of the model's own making, does more than to hide "
            f"padding from a causal model; {of_whom} cannot follow it. {remedy}"
        )


def _visible(
    mask: Any, query: Int[Tensor, "q 1"], batch: int
) -> tuple[Bool[Tensor, "b h q S"], Bool[Tensor, "b h q S"] | bool]:
    """Return which keys a few queries see by a 4D mask or a BlockMask, and which it weighs.

    A number that does not hide a key is a bias. It belongs to a token, which slots do not follow.
    """
    if isinstance(mask, Tensor):
        rows = mask[:, :, query[:, 0]]
        if rows.dtype == torch.bool:
            return rows, False
        visible = rows > torch.finfo(rows.dtype).min / 2
        return visible, visible & (rows != 0)
    row = torch.arange(mask.shape[0], device=query.device)[:, None, None, None]
    key = torch.arange(mask.shape[-1], device=query.device)
    seen: Tensor = mask.mask_mod(row, torch.zeros_like(row), query, key)
    return seen.bool().expand(batch, -1, -1, -1), False


def fitted(mask: Any, slots: Slots, query: Tensor, backend: str) -> Any:
    """Return a mask that all layers share, as it fits the slots of one layer.

    Raises UnsupportedModelError for a block mask that would have to change.
    """
    if slots.follow_the_count:
        return mask if mask is None or mask.shape[-1] == slots.held else fit(mask, slots.held)
    mask = fit(mask, slots.held)
    return with_own_padding(mask, slots.lengths, query.shape[2], slots.held, query, backend)


def plainly_causal(mask: Any, slots: Slots, query: Tensor, backend: str) -> Any:
    """Return a mask by which new tokens see the slots up to their own, padding excepted.

    For a forward whose padding stood behind older tokens: `mask` hides it where it stood. Raises
    UnsupportedModelError for block masks.
    """
    count, held = query.shape[2], slots.held
    mask = with_own_padding(fit(mask, held), slots.lengths, count, held, query, backend)
    if mask.dim() == 2:
        return mask
    real = torch.tensor(slots.lengths, device=query.device)[:, None, None, None]
    slot = torch.arange(held, device=query.device)
    own = torch.arange(held - count, held, device=query.device)[:, None]
    # A padding query may see nothing. Its output is never used, but must not be NaN.
    visible = (slot <= own) & ((slot >= held - real) | (own < held - real))
    if mask.dtype == torch.bool:
        return visible
    floor = torch.finfo(mask.dtype).min
    return torch.zeros_like(visible, dtype=mask.dtype).masked_fill(~visible, floor)


def fit(mask: Any, held: int) -> Any:
    """Return the columns of a mask shared by all layers that belong to one with `held` slots.

    The mask is built for the layer that holds the most; slots are right-aligned.
    """
    if mask is None or mask.shape[-1] == held:
        return mask
    if not isinstance(mask, Tensor):
        raise UnsupportedModelError(
            "layers hold different numbers of positions, which flex_attention's block masks cannot "
            "say here. Use sdpa or eager, or an allocator that treats layers alike."
        )
    return mask[..., -held:]


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
    # Eager attention with no mask, or a 2D one, is memory-efficient attention.
    if "flash" in backend or (backend == "eager" and (mask is None or mask.dim() == 2)):
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
