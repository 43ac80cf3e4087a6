"""Latent attention: a layer caches one latent and one rotary key for all its heads together."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from kvpolicy.budget import written
from kvpolicy.errors import UnsupportedModelError
from kvpolicy.huggingface.model.architectures import EXPANSION, LATENT_SIZE
from kvpolicy.pipeline.capabilities import biases_rows, is_uneven
from kvpolicy.pipeline.pipeline import Pipeline
from kvpolicy.stages.compaction import GatherCompactor


def expanding_modules(
    model: PreTrainedModel, config: PreTrainedConfig, layers: Sequence[int]
) -> list[nn.Module]:
    """Return the modules that make keys and values of all heads from what a cache holds.

    `layers` are those that evict. Without latent attention there is none. Raises
    UnsupportedModelError for latents that are expanded in another way, or in some of the layers.
    """
    found = [each for each in model.modules() if callable(getattr(type(each), EXPANSION, None))]
    name = type(model).__name__
    if not found and config.to_dict().get(LATENT_SIZE) is not None:
        raise UnsupportedModelError(
            f"{name} has latent attention, but no module with the method {EXPANSION!r} makes keys "
            "and values of its latents, so policies cannot be shown any. Use a newer transformers."
        )
    latent = {getattr(each, "layer_idx", None) for each in found}
    if found and not latent >= set(layers):
        others = sorted(set(layers) - latent)
        raise UnsupportedModelError(
            f"some layers of {name} cache latents, and others ({others}) cache keys and values. "
            "Policies are shown layers of one kind only."
        )
    return found


def check_latents(pipeline: Pipeline, model: PreTrainedModel) -> None:
    """Raise UnsupportedModelError if a policy needs heads apart, or changes what is cached."""
    name = type(model).__name__
    if pipeline.target is not None:
        raise UnsupportedModelError(
            f"an error target ({written(pipeline.target)}) gives each head a budget of its own, "
            f"but {name} caches latents that all heads share. Give a number of positions."
        )
    if is_uneven(pipeline.allocator):
        raise UnsupportedModelError(
            f"{pipeline.titles['allocator']} gives each head a budget of its own, but {name} "
            "caches latents that all heads share: all heads keep a position, or none does. Use an "
            "allocator that treats heads alike, such as 'uniform'."
        )
    if biases_rows(pipeline.compactor):
        raise UnsupportedModelError(
            f"{pipeline.titles['compactor']} keeps rows with a bias of their logits in each head, "
            f"but {name} caches latents, of which each head makes its own. Use compactor='gather'."
        )
    if not isinstance(pipeline.compactor, GatherCompactor):
        raise UnsupportedModelError(
            f"{pipeline.titles['compactor']} changes the keys or values that are kept, but {name} "
            "caches latents, of which each head makes its own. Use compactor='gather'."
        )
    if pipeline.slot_positions:
        raise UnsupportedModelError(
            f"slot_positions=True turns keys to their place in the cache, but {name} caches "
            "latents, and queries whose first channels are not rotated. Use slot_positions=False."
        )
    if (getattr(model, "tp_size", None) or 1) > 1:
        raise UnsupportedModelError(
            f"{name} is shared by processes (tensor parallelism) and caches latents: each process "
            "would choose positions by its own heads alone. Load the model in one process."
        )
