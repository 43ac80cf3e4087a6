"""Whether numbers are finite: those of the model, and those that a part returns."""

from __future__ import annotations

import math
from functools import partial
from typing import NoReturn

import torch
from jaxtyping import Float
from torch import Tensor

from kvpolicy.errors import UnsupportedModelError
from kvpolicy.observation.observation import Observation
from kvpolicy.pipeline.doubts import Refuse, is_patient, refuse_unless_finite


def check_numbers(observation: Observation) -> None:
    """Raise UnsupportedModelError if the model's own queries, keys or values are not finite.

    On a GPU it is raised when doubts are read.
    """
    for name in ("keys", "values", "queries"):
        refuse = partial(refuse_numbers, f"{name}", observation.layer, observation.num_layers)
        check_finite(getattr(observation, name), refuse)


def refuse_numbers(names: str, layer: int, num_layers: int) -> NoReturn:
    """Say that the model's own numbers are not finite."""
    raise UnsupportedModelError(
        f"the model's {names} are NaN or infinite in attention layer {layer} (of {num_layers} that "
        "evict), so no position can be ranked. That happens to weights that were not loaded, or to "
        "a model that overflows in float16: look at the model's logits without a policy, or load "
        "it in bfloat16 or float32."
    )


def check_finite(tensor: Tensor, refuse: Refuse, *, urgent: bool = True) -> None:
    """Refuse a tensor with numbers that are not finite: now, or on a GPU when doubts are read."""
    if is_patient(tensor.device):
        refuse_unless_finite(total(tensor), refuse, urgent=urgent)
    elif not is_finite(tensor):
        refuse()


def total(tensor: Tensor) -> Float[Tensor, ""]:
    """Return the sum of a tensor, which is finite if and only if all its numbers are.

    A sum of float32 numbers does not overflow in float64. Half precision is added in float32: a GPU
    does that without a copy, where it would copy the tensor to add it in float64. Only numbers with
    which every product overflows as well have a sum that does.
    """
    half = tensor.dtype in (torch.float16, torch.bfloat16)
    return tensor.sum(dtype=torch.float32 if half else torch.float64)


def is_finite(tensor: Tensor) -> bool:
    """Return whether all numbers are finite. Waits for the device."""
    # A sum is fast, and finite only if all numbers are. A sum that overflows proves nothing.
    if math.isfinite(tensor.sum(dtype=torch.float32).item()):
        return True
    return bool(tensor.isfinite().all())
