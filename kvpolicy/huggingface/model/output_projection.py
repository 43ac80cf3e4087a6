"""The output projection of an attention layer."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from kvpolicy.huggingface.model.architectures import OUTPUT_PROJECTIONS
from kvpolicy.huggingface.model.devices import weight_of


def output_weight(module: nn.Module) -> Float[Tensor, "M columns"] | None:
    """Return the weight of an attention's output projection; None where it cannot be read."""
    for name in OUTPUT_PROJECTIONS:
        projection = getattr(module, name, None)
        if type(projection) is nn.Linear:
            return weight_of(projection)
    return None
