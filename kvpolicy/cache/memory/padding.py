"""Padding: which new tokens of a batch are none, and that they stand on the left."""

from __future__ import annotations

import torch
from jaxtyping import Bool
from torch import Tensor

from kvpolicy.errors import InvalidValueError


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
                "needs it on the left, in the first turn. Tokenize with padding_side='left' "
                "(generate takes pad_token_id for padding where no mask is given)."
            )
    return counts
