"""The output projection of an attention layer, as the layer computes with it."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from kvpolicy.errors import UnsupportedModelError
from kvpolicy.huggingface.model.adapters import check_one_adapter
from kvpolicy.huggingface.model.architectures import OUTPUT_PROJECTIONS
from kvpolicy.huggingface.model.config import decoder_attentions
from kvpolicy.huggingface.model.devices import device_of, weight_of
from kvpolicy.huggingface.model.effective_weight import (
    as_in_inference,
    check_effective,
    columns_of,
    effective_weight,
)
from kvpolicy.observation.projection import check_factors

_TOLERANCE = 2e-2
"""How far a projection may be from linear, as a share of its largest output.

Half precision rounds the output of an adapter. LLM.int8() of bitsandbytes and the dynamic kinds of
torchao round the inputs to 8 bits. Of a unit vector that changes at most the length, by 0.4 %.
"""


def output_weight(
    module: nn.Module, *, needed: bool, like: Float[Tensor, ...]
) -> Float[Tensor, "M columns"] | None:
    """Return the weight of an attention's output projection; None where it cannot be read.

    The weight of a plain `nn.Linear` is returned itself. That of another projection (quantised, or
    with LoRA adapters) is computed only if it is `needed`, as what the projection makes of unit
    vectors, in the dtype of `like`; see `effective_weight`.
    """
    projection = _projection(module)
    if projection is None:
        return None
    if _is_plain(projection):
        return weight_of(projection)
    if not needed:
        return None
    check_one_adapter(projection)
    return effective_weight(projection, like.dtype)


def check_readable(model: PreTrainedModel, layers: list[int], who: str) -> None:
    """Raise UnsupportedModelError if the output projection of one of these layers cannot be read.

    What was computed of a weight on a GPU is forgotten if its numbers have changed. `who` is the
    part that needs it.
    """
    for module in decoder_attentions(model):
        layer = module.layer_idx
        if layer not in layers:
            continue
        projection = _projection(module)
        if projection is None or not (_is_plain(projection) or _is_linear(projection, model.dtype)):
            kind = "none" if projection is None else type(projection).__name__
            raise UnsupportedModelError(
                f"{who} measures what attention gives behind the output projection, but that of "
                f"layer {layer} of {type(model).__name__} cannot be read (it is {kind}). Use "
                "another scorer, such as 'snapkv', and a budget in positions."
            )
        if _is_plain(projection):
            check_factors(weight_of(projection))
        else:
            check_effective(projection)


def _projection(module: nn.Module) -> nn.Module | None:
    found = (getattr(module, name, None) for name in OUTPUT_PROJECTIONS)
    return next((each for each in found if isinstance(each, nn.Module)), None)


def _is_plain(projection: nn.Module) -> bool:
    """Whether a projection computes with its weight alone, as that is stored."""
    if type(projection) is not nn.Linear:
        return False
    # A quantised weight is a tensor that can be dequantised; DTensors are those of several ranks.
    kind = type(projection.weight.data)
    return kind is Tensor or hasattr(projection.weight, "device_mesh")


@torch.no_grad()
def _is_linear(projection: nn.Module, dtype: torch.dtype) -> bool:
    """Whether a projection adds up what it makes of two inputs; it is tried on random ones."""
    columns = columns_of(projection)
    if columns is None:
        return False
    generator = torch.Generator("cpu").manual_seed(0)
    rows = torch.randn(2, columns, generator=generator, dtype=torch.float32, device="cpu")
    inputs = torch.stack([torch.zeros_like(rows[0]), rows[0], rows[1], rows.sum(0)])
    try:
        with as_in_inference(projection):
            found = projection.forward(inputs.to(device_of(projection), dtype)).float()
    except Exception:  # noqa: BLE001 - a projection of another make: it cannot be read
        return False
    zero, first, second, both = found
    tolerance = _TOLERANCE * float(found.abs().amax())
    return bool(((first + second - zero - both).abs() <= tolerance).all())
