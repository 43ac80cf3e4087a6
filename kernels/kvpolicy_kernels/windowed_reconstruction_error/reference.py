"""The error of each query's own output in PyTorch, on every device."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor

from kvpolicy_kernels.common.pytorch.blocks import rows_per_block, spans
from kvpolicy_kernels.common.pytorch.logits import exponentials, query_blocks
from kvpolicy_kernels.common.pytorch.odds import odds

LEAST_NORM = 2.0**-60
"""The least norm of an output that a relative error is divided by: the error stays finite."""


@torch.no_grad()
def windowed_reconstruction_error(
    queries: Float[Tensor, "B H W D"],
    keys: Float[Tensor, "B N S D"],
    values: Float[Tensor, "B N S Dv"],
    weights: Float[Tensor, " W"] | Float[Tensor, "B W"],
    factors: Float[Tensor, "H R Dv"] | None,
    *,
    scaling: float,
    softcap: float | None = None,
    sinks: Float[Tensor, " H"] | None = None,
    normalize: bool = False,
    causal: bool = True,
) -> Float32[Tensor, "B H S"]:
    """Compute the attention of a block of queries; read the values once for o, once for errors."""
    scores = weights.new_zeros(*queries.shape[:2], keys.shape[2], dtype=torch.float32)
    weights = weights.float().expand(len(queries), -1)
    blocks = query_blocks(queries, keys, scaling=scaling, softcap=softcap, causal=causal)
    for b, n, h, w, logits in blocks:
        base, mass = exponentials(logits, None if sinks is None else sinks[h, None])
        sink = None if sinks is None else (sinks[h, None] - base).exp_()
        seen = values[b, n, : logits.shape[-1]]
        factor = None if factors is None else factors[h].float()
        attention, largest, output = _split(logits, mass, sink, seen, factor)
        share = weights[b, w].expand(attention.shape[:2])
        if sinks is None and w.start == 0 and keys.shape[2] == (queries.shape[2] if causal else 1):
            # The first query sees one position. Without it there are no others, so it is not asked.
            share = share.masked_fill(torch.arange(share.shape[1], device=share.device) == 0, 0.0)
        if normalize:
            share = share / torch.linalg.vector_norm(output, dim=-1).clamp_min(LEAST_NORM)
        _add_errors(scores[b, h], attention, seen, output, factor, share, largest)
    return scores


class _Largest(NamedTuple):
    """Where each query has its largest weight, and the error of that position."""

    place: Int[Tensor, "h w 1"]
    error: Float32[Tensor, "h w 1"]


def _split(
    exponentials: Float32[Tensor, "h w V"],
    mass: Float32[Tensor, "h w"],
    sink: Float32[Tensor, "h w"] | None,
    values: Float[Tensor, "V Dv"],
    factor: Float32[Tensor, "h R Dv"] | None,
) -> tuple[Float32[Tensor, "h w V"], _Largest, Float32[Tensor, "h w R"]]:
    """Return the attention, the error of each row's largest weight, and the projected outputs.

    The largest weight may be 1 but for a trace, which 1 - a and o - v lose in float32. So its error
    is a ||R (mean - v)||, where `mean` is the output of the others.
    """
    largest, place = exponentials.max(-1, keepdim=True)
    exponentials.scatter_(-1, place, 0.0)
    rest = exponentials.sum(-1, keepdim=True)
    rest = rest if sink is None else rest + sink[..., None]
    others = _outputs(exponentials, values)
    attention = exponentials.scatter_(-1, place, largest).div_(mass[..., None])
    own = values[place[..., 0]].float()
    weight = largest / mass[..., None]
    mean = others / rest.clamp_min(torch.finfo(torch.float32).tiny)
    missing = _project(mean - own, factor)
    error = weight * torch.linalg.vector_norm(missing, dim=-1, keepdim=True)
    output = _project(others / mass[..., None] + weight * own, factor)
    return attention, _Largest(place, error), output


def _project(
    vectors: Float32[Tensor, "h n Dv"], factors: Float32[Tensor, "h R Dv"] | None
) -> Float32[Tensor, "h n R"]:
    return vectors if factors is None else vectors @ factors.mT


def _outputs(
    attention: Float32[Tensor, "h w V"], values: Float[Tensor, "V Dv"]
) -> Float32[Tensor, "h w Dv"]:
    outputs = attention.new_zeros(*attention.shape[:2], values.shape[1])
    for s in spans(0, *_blocks(values, values.shape[1])):
        outputs += attention[..., s] @ values[s].float()
    return outputs


def _add_errors(
    scores: Float32[Tensor, "h S"],
    attention: Float32[Tensor, "h w V"],
    values: Float[Tensor, "V Dv"],
    output: Float32[Tensor, "h w R"],
    factors: Float32[Tensor, "h R Dv"] | None,
    share: Float32[Tensor, "h w"],
    largest: _Largest,
) -> None:
    heads, window, rank = output.shape
    together = heads * (values.shape[1] + 2 * rank + 3 * window)
    for s in spans(0, *_blocks(values, together)):
        projected = _project(values[s].float().expand(heads, -1, -1), factors)
        # Not by matrix products: o . o - 2 o . v + v . v loses all digits of a value close to o.
        distance = torch.cdist(output, projected, compute_mode="donot_use_mm_for_euclid_dist")
        errors = odds(attention[..., s]).mul_(distance)
        at = torch.arange(s.start, s.stop, device=values.device) == largest.place
        scores[:, s] += (share[:, None] @ errors.where(~at, largest.error))[:, 0]


def _blocks(values: Tensor, floats: int) -> tuple[int, int]:
    return values.shape[0], rows_per_block(floats, values.device)
