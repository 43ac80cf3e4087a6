"""Padding of a batch: which new tokens are padding, and how it is moved to the left."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from kvpolicy.errors import InvalidValueError


def padding_counts(real: Bool[Tensor, "B Q"]) -> list[int]:
    """Return how many of the new tokens of each row are padding.

    Raises InvalidValueError if padding stands behind a new token: slots hold real tokens
    right-aligned, so only padding on the left can be exact.
    """
    pads = (~real).sum(1)
    columns = torch.arange(real.shape[1], device=real.device)
    leading = ((columns >= pads[:, None]) == real).all(1)
    counts: list[int] = pads.tolist()
    for row, left in enumerate(leading.tolist()):
        if not left:
            raise InvalidValueError(
                f"row {row} of attention_mask has padding behind a real token of one turn; an "
                "evicted cache needs it on the left. Tokenize with padding_side='left' "
                "(generate takes pad_token_id for padding where no mask is given)."
            )
    return counts


def check_some_real(pads: list[int], count: int) -> None:
    """Raise InvalidValueError if all `count` new tokens of a row are padding."""
    if count in pads:
        raise InvalidValueError(
            f"row {pads.index(count)} of attention_mask has no token in this turn, only padding. "
            "Leave the row out: cache.batch_select_indices(rows)."
        )


def behind_padding(
    pads: list[int], held: int, count: int, device: torch.device
) -> Int[Tensor, "B S"]:
    """Return from which slot each slot takes its token, so that padding moves to the left.

    The last `count` of `held` slots are new, and the first `pads` of a row's new slots are padding.
    The older tokens of a row move to the right by as much.

    >>> behind_padding([0, 2], 5, 3, torch.device("cpu")).tolist()
    [[0, 1, 2, 3, 4], [2, 3, 0, 1, 4]]
    """
    slot = torch.arange(held, device=device)
    moved, older = torch.tensor(pads, device=device)[:, None], held - count
    source = torch.where(slot < older + moved, slot - moved, slot)
    return torch.where(slot < moved, older + slot, source)
