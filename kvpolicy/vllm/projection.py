"""The output projection of an attention layer, as vLLM's linear layers compute it."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from vllm.model_executor.layers.linear import RowParallelLinear

_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-4}
"""How far a projection may be from linear, as a share of its largest output; 2 % in half
precision."""


def output_weight(attention: nn.Module, columns: int) -> Float[Tensor, "M columns"] | None:
    """Return the weight of the output projection for the heads of this process.

    It is what the projection makes of unit vectors: backends pack weights, and quantised ones are
    stored otherwise. None where there is no such projection or it is not linear.
    """
    found = [each for each in attention.modules() if isinstance(each, RowParallelLinear)]
    if len(found) != 1 or found[0].input_size_per_partition != columns:
        return None
    return _effective(found[0], columns)


@torch.no_grad()
def _effective(projection: Any, columns: int) -> Float[Tensor, "M columns"] | None:
    dtype, device = projection.params_dtype, next(projection.parameters()).device
    generator = torch.Generator("cpu").manual_seed(0)
    rows = torch.randn(2, columns, generator=generator, dtype=torch.float32, device="cpu")
    rows = rows.to(device, dtype)
    try:
        weight = _applied(projection, torch.eye(columns, dtype=dtype, device=device))
        found = _applied(projection, rows).float()
    except Exception:  # noqa: BLE001 - a projection of another make: it cannot be read
        return None
    tolerance = _TOLERANCE.get(dtype, 2e-2) * float(found.abs().amax())
    if float((rows.float() @ weight.float() - found).abs().amax()) > tolerance:
        return None
    return weight.mT.contiguous()


def _applied(projection: Any, rows: Float[Tensor, "R columns"]) -> Float[Tensor, "R M"]:
    applied: Tensor = projection.quant_method.apply(projection, rows, None)
    return applied
