"""How far two computations of the same logits may differ."""

from __future__ import annotations

from typing import Any

import torch

LIMIT = 1e-4
"""For float32 logits. Both sides add the same numbers in different orders; nothing else differs."""
ULPS = 4
"""In half precision: so many units in the last place of the largest logit, since each layer rounds.

transformers' own eager and sdpa attention differ by more on the tiny models. A position that is off
by one changes logits by far more than this.
"""


@torch.no_grad()
def limit_of(model: Any) -> float:
    """Return how far the logits of a model may differ."""
    if model.dtype == torch.float32:
        return LIMIT
    largest = model(torch.arange(5, 65)[None], use_cache=False).logits.abs().max()
    return ULPS * torch.finfo(model.dtype).eps * float(largest)
