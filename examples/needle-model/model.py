"""The needle model before training: a small Llama whose initial weights make copying easy."""

from __future__ import annotations

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from kvpolicy.evaluation.needle.vocabulary import BOS, EOS, PAD, vocabulary

LONGEST = 4096
SCALE = 0.06
WORD_SCALE, COMMON_SCALE = 0.09, 0.135
OUTPUT_SHARE = 0.2
LOOKS_BACK = (1, 2, 3)


def build_model() -> LlamaForCausalLM:
    """Build the model with random weights, drawn from PyTorch's global generator."""
    words = vocabulary()
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=32,
        max_position_embeddings=LONGEST,
        rope_parameters={"rope_type": "default", "rope_theta": 100_000.0},
        initializer_range=SCALE,
        tie_word_embeddings=True,
        pad_token_id=words.index(PAD),
        bos_token_id=words.index(BOS),
        eos_token_id=words.index(EOS),
    )
    model = LlamaForCausalLM(config)
    _initialise(model)
    return model


@torch.no_grad()
def _initialise(model: LlamaForCausalLM) -> None:
    """Make embeddings larger than what layers add to them, and give all of them a common direction.

    The tied output adds the same number to every logit for that direction, so no word gains by it.
    """
    embeddings = model.model.embed_tokens.weight
    embeddings.normal_(std=WORD_SCALE)
    embeddings += torch.randn(embeddings.shape[1]) * COMMON_SCALE
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight *= OUTPUT_SHARE
        layer.mlp.down_proj.weight *= OUTPUT_SHARE
    _look_back(model)


def _look_back(model: LlamaForCausalLM) -> None:
    """Let the first layer's groups of heads attend one, two and three tokens back.

    Llama has no bias, so a head finds a distance only through the common direction. The rotary
    embedding rotates the pair (i, i + D/2) by position x frequency i. A key that is rotated ahead
    by distance x frequency i matches the query at exactly that distance.
    """
    config, attention = model.config, model.model.layers[0].self_attn
    common = model.model.embed_tokens.weight.mean(0)
    common = common / common.norm()
    groups = config.num_key_value_heads
    queries = attention.q_proj.weight.unflatten(0, (groups, -1, config.head_dim))
    keys = attention.k_proj.weight.unflatten(0, (groups, config.head_dim))
    frequencies = model.model.rotary_emb.inv_freq
    for group, distance in enumerate(LOOKS_BACK):
        ahead = distance * frequencies
        queries[group, :, : len(frequencies)] += common
        keys[group] += torch.outer(torch.cat([ahead.cos(), ahead.sin()]), common)
