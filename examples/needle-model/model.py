"""The needle models before training: small decoders whose initial weights make copying easy."""

from __future__ import annotations

from collections.abc import Mapping

import attrs
import torch
from torch import nn
from transformers import (
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2ForCausalLM,
    Qwen3ForCausalLM,
)

from kvpolicy.evaluation.needle.variants import VARIANT
from kvpolicy.evaluation.needle.vocabulary import BOS, EOS, PAD, vocabulary

SCALE = 0.06
WORD_SCALE, COMMON_SCALE = 0.09, 0.135
OUTPUT_SHARE = 0.2
SHARPNESS = 6.0
"""What the norms of queries and keys multiply by, in the layer that looks back."""


@attrs.frozen(kw_only=True)
class Design:
    """A kind of decoder and its sizes.

    `looks_back` has distances for each group of heads of the first layer: one for each query head,
    or one for all. Groups that are not named get none.
    """

    model: type[PreTrainedModel]
    layers: int
    hidden: int
    mlp: int
    heads: int
    key_value_heads: int
    head_dim: int
    rope_theta: float
    longest: int
    looks_back: tuple[tuple[int, ...], ...]


DESIGNS: Mapping[str, Design] = {
    "single": Design(
        model=LlamaForCausalLM,
        layers=4,
        hidden=128,
        mlp=384,
        heads=8,
        key_value_heads=4,
        head_dim=32,
        rope_theta=100_000.0,
        longest=4096,
        looks_back=((1,), (2,), (3,)),
    ),
    "redundant": Design(
        model=Qwen3ForCausalLM,
        layers=3,
        hidden=96,
        mlp=256,
        heads=6,
        key_value_heads=2,
        head_dim=48,
        rope_theta=10_000.0,
        longest=1024,
        looks_back=((1, 2, 3), (1, 2, 3)),
    ),
    "chained": Design(
        model=Qwen2ForCausalLM,
        layers=5,
        hidden=96,
        mlp=192,
        heads=8,
        key_value_heads=2,
        head_dim=32,
        rope_theta=1_000_000.0,
        longest=1024,
        looks_back=((1, 1, 2, 3),),
    ),
}
"""The models, by the variant of their task."""


def build_model(variant: str = "single") -> PreTrainedModel:
    """Build the model with random weights, drawn from PyTorch's global generator."""
    design, words = DESIGNS[variant], vocabulary()
    config = design.model.config_class(
        vocab_size=len(words),
        hidden_size=design.hidden,
        intermediate_size=design.mlp,
        num_hidden_layers=design.layers,
        num_attention_heads=design.heads,
        num_key_value_heads=design.key_value_heads,
        head_dim=design.head_dim,
        max_position_embeddings=design.longest,
        rope_parameters={"rope_type": "default", "rope_theta": design.rope_theta},
        initializer_range=SCALE,
        tie_word_embeddings=True,
        pad_token_id=words.index(PAD),
        bos_token_id=words.index(BOS),
        eos_token_id=words.index(EOS),
    )
    if variant != "single":
        setattr(config, VARIANT, variant)
    model = design.model(config)
    _initialise(model, design)
    return model


@torch.no_grad()
def _initialise(model: PreTrainedModel, design: Design) -> None:
    """Make embeddings larger than what layers add to them, and give all of them a common direction.

    The tied output adds the same number to every logit for that direction, so no word gains by it.
    """
    embeddings = model.model.embed_tokens.weight
    embeddings.normal_(std=WORD_SCALE)
    embeddings += torch.randn(embeddings.shape[1]) * COMMON_SCALE
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight *= OUTPUT_SHARE
        layer.mlp.down_proj.weight *= OUTPUT_SHARE
    _look_back(model, design)


def _look_back(model: PreTrainedModel, design: Design) -> None:
    """Let heads of the first layer attend one, two and three tokens back.

    Without a bias a head finds a distance only through the common direction. The rotary embedding
    rotates the pair (i, i + D/2) by position x frequency i. A key that is rotated ahead by distance
    x frequency i matches the query at exactly that distance. The heads of a group share the key: a
    head that looks back farther than the first one has its query rotated back by the difference.
    """
    attention = model.model.layers[0].self_attn
    common = model.model.embed_tokens.weight.mean(0)
    common = common / common.norm()
    groups = design.key_value_heads
    queries = attention.q_proj.weight.unflatten(0, (groups, -1, design.head_dim))
    keys = attention.k_proj.weight.unflatten(0, (groups, design.head_dim))
    frequencies = model.model.rotary_emb.inv_freq
    for group, distances in enumerate(design.looks_back):
        keys[group] += _rotated(distances[0] * frequencies, common)
        each = distances * queries.shape[1] if len(distances) == 1 else distances
        for head, distance in enumerate(each):
            queries[group, head] += _rotated((distances[0] - distance) * frequencies, common)
    for name in ("q_norm", "k_norm"):
        if isinstance(norm := getattr(attention, name, None), nn.Module):
            norm.weight.fill_(SHARPNESS)


def _rotated(angles: torch.Tensor, common: torch.Tensor) -> torch.Tensor:
    return torch.outer(torch.cat([angles.cos(), angles.sin()]), common)
