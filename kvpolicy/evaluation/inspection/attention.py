"""How much attention a token pays to some positions of a prompt, in every layer and head."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from kvpolicy.huggingface.cache_argument import handed

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel

_OTHER_SOFTMAX = ("softcap", "s_aux", "position_bias")
"""What transformers hands to attention that caps its logits, adds to them, or has learned sinks."""


def attention_on(
    model: PreTrainedModel, cache: Cache, token: int, places: Collection[int]
) -> tuple[Float[Tensor, " V"], list[Float[Tensor, " N"] | None]]:
    """Read one token, and return the logits behind it and its attention on `places`, by layer.

    Of query heads that share keys and values it is the mean. A layer whose attention cannot be
    looked at has None: one with a sliding window, one whose heads hold different numbers, and one
    whose softmax is not the plain one.
    """
    from kvpolicy.huggingface.attention.points import attention_points, wrapped
    from kvpolicy.huggingface.model.config import decoder_config

    held = _positions(cache)
    found: list[Float[Tensor, " N"] | None] = [None] * len(held)

    def looking(own: Callable[..., Any]) -> Callable[..., Any]:
        def attention(
            module: nn.Module, query: Tensor, key: Tensor, *args: Any, **more: Any
        ) -> Any:
            layer = getattr(module, "layer_idx", None)
            plain = all(more.get(name) is None for name in _OTHER_SOFTMAX)
            if plain and layer is not None and key.shape[2] == held[layer].shape[1] + 1:
                scale = more.get("scaling") or query.shape[-1] ** -0.5
                found[layer] = _share(query, key, held[layer], places, scale)
            return own(module, query, key, *args, **more)

        return attention

    with wrapped(attention_points(model.modules(), decoder_config(model)), looking):
        output: Any = model(
            input_ids=torch.tensor([[token]], device=model.device), **handed(cache, to=model)
        )
    return output.logits[0, -1].float(), found


def held_of(cache: Cache, tokens: int) -> list[Int[Tensor, "N K"]]:
    """Return the prompt's positions that each head of each layer holds; -1 is none."""
    return [each.masked_fill(each >= tokens, -1) for each in _positions(cache)]


def _positions(cache: Cache) -> list[Int[Tensor, "N K"]]:
    from kvpolicy.huggingface.cache import PolicyCache

    if isinstance(cache, PolicyCache):
        return [each[0].cpu() for each in cache.positions]
    layers: Any = cache.layers
    return [
        torch.arange(layer.get_seq_length()).expand(layer.keys.shape[1], -1) for layer in layers
    ]


def _share(
    query: Float[Tensor, "1 H 1 D"],
    key: Float[Tensor, "1 N K D"],
    held: Int[Tensor, "N J"],
    places: Collection[int],
    scale: float,
) -> Float[Tensor, " N"]:
    """Return the attention of one query on the positions in `places`."""
    heads = key.shape[1]
    grouped = query[0, :, 0].float().unflatten(0, (heads, -1))
    weights = (grouped @ key[0].float().transpose(1, 2) * scale).softmax(-1).mean(1).cpu()
    wanted = torch.isin(held, torch.tensor(sorted(places)))
    share: Float[Tensor, " N"] = (weights[:, :-1] * wanted).sum(-1)
    return share
