"""Whether numbers are finite: those of the model, and those that a part returns."""

from __future__ import annotations

import torch
from torch import Tensor

from kvpolicy.errors import UnsupportedModelError
from kvpolicy.observation.observation import Observation


def check_numbers(observation: Observation) -> None:
    """Raise UnsupportedModelError if the model's own queries, keys or values are not finite.

    Waits for the device.
    """
    for name in ("keys", "values", "queries"):
        if not is_finite(getattr(observation, name)):
            raise UnsupportedModelError(
                f"the model's {name} are NaN or infinite in attention layer {observation.layer} "
                f"(of {observation.num_layers} that evict), so no position can be ranked. That "
                "happens to weights that were not loaded, or to a model that overflows in float16: "
                "look at the model's logits without a policy, or load it in bfloat16 or float32."
            )


def is_finite(tensor: Tensor) -> bool:
    """Return whether all numbers are finite."""
    # A sum is fast, and finite only if all numbers are. A sum that overflows proves nothing.
    if bool(tensor.sum(dtype=torch.float32).isfinite()):
        return True
    return bool(tensor.isfinite().all())
