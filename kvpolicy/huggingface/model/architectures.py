"""What is known of models by name; no other module of the cache names a model or its parts."""

from __future__ import annotations

from collections.abc import Mapping

REFUSED: Mapping[str, str] = {
    "diffllama": "attends twice with the same keys, and policies are shown one attention only",
    "dory": "runs layers in loops, which read and copy the layers of the cache by themselves",
    "doge": "hides keys by a mask of its own making, which an evicted cache cannot follow",
    "inkling2_text": "gives each query a learned sink of its own, and policies are shown one for "
    "each head",
    "jetmoe": "repeats its keys after the cache gave them out",
    "minimax": "insists on a cache of its own",
    "xlstm": "insists on a cache of its own",
}
"""Model types whose attention does what no configuration says, and why they are refused."""

DISTANCE_BIAS: Mapping[str, str] = {"inkling_text": "rel_extent"}
"""Model types that add a bias by distance, and the setting that says from where on it is 0.

Their attention asks the cache by `get_mask_sizes` and `get_query_offset` which tokens its keys are,
and hands a bias with a column for each of these to its attention function as `position_bias`.
"""

STATES: Mapping[str, str] = {
    "DynamicIndexedLayer": "an indexer chooses by keys of its own which positions attention reads, "
    "so a policy would be shown another attention than the model's",
}
"""Kinds of transformers' cache layers that are refused for a reason of their own."""

OUTPUT_PROJECTIONS = ("o_proj", "out_proj", "dense", "c_proj")
"""The attributes of attention modules that may be their output projection."""

KEY_PROJECTIONS = ("k_proj", "qkv_proj", "query_key_value")
"""The names of projections that make keys, alone or fused with queries and values."""

LATENT_SIZE = "kv_lora_rank"
"""The setting of a config that says how large the latents of its attention are."""

EXPANSION = "expand_kv"
"""The method of attention modules that makes keys and values of latents and rotary keys."""

MLPS = ("mlp", "feed_forward", "block_sparse_moe", "ffn")
"""The attributes of decoder layers that may be their MLP."""

DROPS_QUERIES = "_maybe_slice_kv_shared_inputs"
"""The method by which models drop queries before layers that share keys and values."""

VARYING_ROTARY = ("dynamic", "longrope")
"""Kinds of rotary embedding whose tables depend on the length of what was read."""

ATTENTION = "Attention"
"""A part of the class names of attention modules."""

ROTARY_EMBEDDING = "RotaryEmbedding"
"""The end of the class names of rotary modules."""

ROTARY_SCALE = "attention_scaling"
"""The attribute of rotary modules that says by what they multiply cosines and sines."""

ROTATION = "apply_rotary_pos_emb"
"""The function of a model's module that turns queries and keys to their rotary positions."""

NORM = "RMSNorm"
"""The end of the class names of norms that treat each token alone."""
