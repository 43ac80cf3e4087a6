"""Why an answer is wrong: what became of the tokens that it needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

import attrs
import torch
from jaxtyping import Bool, Float
from torch import Tensor

Verdict: TypeAlias = Literal["full", "missing", "broken", "outweighed", "unknown"]
"""`full`: the full cache is wrong too. `unknown`: what is needed stands nowhere in the prompt."""


@attrs.frozen(kw_only=True)
class Cause:
    """What became of the needed tokens, as shares of layers and key/value heads.

    A head counts as much as it attends to these tokens with the full cache while the answer is
    written. `missing`: it holds none of them, `broken`: it holds some, `whole`: it holds a place
    of them wholly. `attention` and `full_attention` are the shares of attention on these tokens
    where the answer goes wrong; None if that cannot be looked at. `right_if_kept` says whether the
    answer is right if these tokens are kept at the same budget; None if that was not tried.
    """

    verdict: Verdict
    missing: float = 0.0
    broken: float = 0.0
    whole: float = 0.0
    attention: float | None = None
    full_attention: float | None = None
    right_if_kept: bool | None = None


def shares(
    held: Sequence[Bool[Tensor, "N T"]],
    places: Sequence[range],
    weights: Sequence[Float[Tensor, " N"] | None],
) -> tuple[float, float, float]:
    """Return the shares of heads that miss the needed tokens, hold some, and hold a place wholly.

    >>> held = [torch.tensor([[True, True, False], [True, False, False]])]
    >>> shares(held, [range(0, 2)], [torch.tensor([3.0, 1.0])])
    (0.0, 0.25, 0.75)
    """
    needed = sorted({position for place in places for position in place})
    missing, whole, weight = [], [], []
    for layer, of_heads in zip(held, weights, strict=True):
        missing.append(~layer[:, needed].any(-1))
        whole.append(torch.stack([layer[:, list(place)].all(-1) for place in places]).any(0))
        weight.append(torch.zeros(len(layer)) if of_heads is None else of_heads)
    each = torch.cat(weight).double()
    each = each / each.sum() if each.sum() > 0 else torch.full_like(each, 1 / len(each))
    lost = float((each * torch.cat(missing)).sum())
    kept = float((each * torch.cat(whole)).sum())
    return lost, max(0.0, 1 - lost - kept), kept


def verdict(missing: float, broken: float, whole: float) -> Verdict:
    """Return what holds for most of the attention that the full cache pays to the needed tokens.

    >>> verdict(0.6, 0.3, 0.1), verdict(0.1, 0.1, 0.8)
    ('missing', 'outweighed')
    """
    largest = max(missing, broken, whole)
    if largest == missing:
        return "missing"
    return "broken" if largest == broken else "outweighed"


def mean_attention(layers: Sequence[Float[Tensor, " N"] | None]) -> float | None:
    """Return the mean over layers and heads; None if a layer could not be looked at."""
    known = [layer for layer in layers if layer is not None]
    return float(torch.cat(known).mean()) if known and len(known) == len(layers) else None
