"""Where the parts of a model are, if it is spread over devices or its weights are offloaded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from kvpolicy.errors import UnsupportedModelError

_HOOK = "_hf_hook"
"""The attribute in which accelerate keeps a module's device hook."""


def weight_of(projection: nn.Module) -> Float[Tensor, "M columns"]:
    """Return a projection's weight; one that waits on the host or on disk is read now.

    Raises UnsupportedModelError for a weight that is nowhere.
    """
    with weights_present(projection):
        weight: Tensor = projection.get_parameter("weight")
        if weight.device.type == "meta":
            raise UnsupportedModelError(
                "the weight of an attention's output projection is on the meta device, and nothing "
                "says where its numbers are, so a policy cannot be shown it."
            )
        return weight


@contextmanager
def weights_present(module: nn.Module) -> Iterator[None]:
    """Have a module's own weights where it computes, if accelerate has put them elsewhere."""
    waits = any(weight.device.type == "meta" for weight in module.parameters(recurse=False))
    if not waits or not hasattr(module, _HOOK):
        yield
        return
    from accelerate.utils import align_module_device

    with align_module_device(module):
        yield


def layer_devices(model: PreTrainedModel, count: int) -> list[torch.device]:
    """Return where each of the model's layers computes; what is not known, where the model is."""
    found: dict[int, torch.device] = {}
    for module in model.modules():
        layer = getattr(module, "layer_idx", None)
        if isinstance(layer, int) and layer not in found:
            device = device_of(module)
            if device is not None:
                found[layer] = device
    default = device_of(model) or torch.device("cpu")
    return [found.get(layer, default) for layer in range(count)]


def device_of(module: nn.Module) -> torch.device | None:
    """Return where a module computes; None if nothing says so."""
    for part in module.modules():
        device = getattr(getattr(part, _HOOK, None), "execution_device", None)
        if device is not None:
            return torch.device(device)
    devices = (weight.device for weight in module.parameters())
    return next((device for device in devices if device.type != "meta"), None)
