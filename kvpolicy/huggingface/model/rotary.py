"""A model's own rotary embedding, found by watching what its attention layers do to keys."""

from __future__ import annotations

import weakref
from typing import Any

import attrs
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from kvpolicy.errors import UnsupportedModelError
from kvpolicy.huggingface.cache_argument import handed
from kvpolicy.huggingface.model.architectures import (
    ROTARY_EMBEDDING,
    ROTARY_SCALE,
    VARYING_ROTARY,
)
from kvpolicy.huggingface.model.config import decoder_attentions
from kvpolicy.huggingface.model.devices import device_of
from kvpolicy.huggingface.model.rotary_positions import not_noted
from kvpolicy_kernels import rerotate_keys

_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-4}
_known: weakref.WeakKeyDictionary[PreTrainedModel, dict[int, ModelRotary | None]] = (
    weakref.WeakKeyDictionary()
)


@attrs.frozen
class ModelRotary:
    """The tables of a model's rotary module, of unit norm, for one attention layer."""

    module: nn.Module
    interleaved: bool = False
    spread: bool = False
    """Whether the attention spreads a table of the other layout over its interleaved pairs."""

    @property
    def version(self) -> tuple[int, ...]:
        """A number for each buffer, and one that grows when it is written to."""
        found = (each for each in self.module.buffers() if not each.is_inference())
        return tuple(number for each in found for number in (id(each), each._version))

    def tables(
        self, positions: Int[Tensor, "*shape"]
    ) -> tuple[Float[Tensor, "*shape R"], Float[Tensor, "*shape R"]]:
        """Return float32 cosines and sines; scaling by the model (YaRN) is taken out."""
        like = torch.empty(0, dtype=torch.float32, device=positions.device)
        with torch.no_grad():
            found = _call(self.module, like, positions.reshape(1, -1))
        # The model's rotary module may be on another device than this layer.
        tables = (table[0].to(positions.device).float() for table in found)
        cosines, sines = (table.unflatten(0, positions.shape) for table in tables)
        if self.spread:
            cosines, sines = (
                table[..., : table.shape[-1] // 2].repeat_interleave(2, -1)
                for table in (cosines, sines)
            )
        if getattr(self.module, ROTARY_SCALE, None) == 1:
            # The norm is 1: to compute it takes three launches.
            return cosines, sines
        norm = torch.hypot(cosines, sines)
        return cosines / norm, sines / norm


def rotaries(
    model: PreTrainedModel, config: PreTrainedConfig, layers: list[int]
) -> list[ModelRotary | None]:
    """Return the rotary embedding of each of these attention layers.

    None where a layer has none, or one that is not understood: learned or other positions, tables
    that depend on what was read, pairs of another kind. Looked for once per model, and anew where
    the model's rotary module was replaced.
    """
    known = _known.setdefault(model, {})
    present = set(model.modules())
    for layer in layers:
        last = known.get(layer)
        if layer not in known or (last is not None and last.module not in present):
            found = _rotary_of(model, config, layer)
            # Layers that share a module share its tables.
            known[layer] = next((each for each in known.values() if each == found), found)
    return [known[layer] for layer in layers]


def _rotary_of(model: PreTrainedModel, config: PreTrainedConfig, layer: int) -> ModelRotary | None:
    modules = list(model.modules())
    tables = [each for each in modules if type(each).__name__.endswith(ROTARY_EMBEDDING)]
    attentions = [each for each in decoder_attentions(model) if each.layer_idx == layer]
    if has_varying_rotary(config) or len(attentions) != 1:
        return None
    for module in tables:
        for layout in ({}, {"interleaved": True}, {"interleaved": True, "spread": True}):
            rotary = ModelRotary(module, **layout)
            if _explains(rotary, attentions[0], config):
                return rotary
    return None


def has_varying_rotary(config: PreTrainedConfig) -> bool:
    """Whether the tables of some layer depend on the length of what was read."""
    return _varies(getattr(config, "rope_parameters", None))


def _varies(parameters: Any) -> bool:
    """Whether rotary parameters name a kind of `VARYING_ROTARY`, for any kind of layer."""
    if not isinstance(parameters, dict):
        return False
    return parameters.get("rope_type") in VARYING_ROTARY or any(map(_varies, parameters.values()))


class _KeysSeenError(Exception):
    """Carries the keys that an attention layer gave to its cache."""


class _Probe:
    """Stands in for a cache, and stops the layer where it hands over its keys."""

    def update(self, keys: Tensor, *args: Any, **kwargs: Any) -> None:
        raise _KeysSeenError(keys)

    def get_seq_length(self, *args: Any) -> int:
        return 0


@torch.no_grad()
def _explains(rotary: ModelRotary, attention: nn.Module, config: PreTrainedConfig) -> bool:
    """Whether the layer's keys at one position are those at another, turned by `rotary`."""
    weight, device = next(attention.parameters()), device_of(attention)
    hidden = torch.linspace(-1, 1, config.hidden_size, device=device, dtype=weight.dtype)
    hidden = hidden.sin().expand(1, 1, -1)
    near, far = (torch.tensor([[place]], device=device) for place in (3, 40))
    try:
        before, after = (_keys_at(rotary, attention, hidden, each) for each in (near, far))
        old, new = (rotary.tables(each[:, None]) for each in (near, far))
        turned = rerotate_keys(before, old, new, interleaved=rotary.interleaved)
    except Exception:  # noqa: BLE001 - a layer of another make: it says nothing about its rotary
        return False
    if not bool(before.isfinite().all()):
        raise UnsupportedModelError(
            f"the model's keys are NaN or infinite in layer {attention.layer_idx}, whatever it "
            "reads. That happens to weights that were not loaded: look at the model's logits "
            "without a policy."
        )
    scale = float(before.float().abs().amax()) or 1.0
    tolerance = _TOLERANCE.get(weight.dtype, 2e-2) * scale
    moved = float((after - before).float().abs().amax()) > 2 * tolerance
    return moved and float((turned - after).float().abs().amax()) <= tolerance


def _keys_at(
    rotary: ModelRotary, attention: nn.Module, hidden: Tensor, positions: Int[Tensor, "1 1"]
) -> Float[Tensor, "1 N 1 D"]:
    tables = _call(rotary.module, hidden, positions)
    embeddings = tuple(table.to(hidden.device) for table in tables)
    try:
        attention.forward(
            hidden,
            position_embeddings=embeddings,
            attention_mask=None,
            **handed(_Probe(), to=attention),
        )
    except _KeysSeenError as seen:
        keys: Tensor = seen.args[0]
        return keys
    raise TypeError("it gave no keys to its cache")


def _call(module: nn.Module, like: Tensor, positions: Int[Tensor, "1 P"]) -> tuple[Tensor, Tensor]:
    """Call a rotary module; some want to be told for which kind of layer."""
    with not_noted():
        try:
            cosines, sines = module(like, positions)
        except (TypeError, AttributeError):
            cosines, sines = module(like, positions, "full_attention")
    return cosines, sines
