"""Evictions of one layer by kvpress itself; runs in an environment that has it.

python -m benchmarks.beside_kvpress.theirs snapkv lagkv
"""

from __future__ import annotations

from typing import Any

import kvpress  # type: ignore[import-not-found]
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRotaryEmbedding

from benchmarks.beside_kvpress.measured import Call, run

HEADS, KV_HEADS, DIM, MODEL, WINDOW = 32, 8, 128, 4096, 64


def press_of(method: str) -> Any:
    """Return the press of a method that keeps half, in the settings that ours has, too."""
    half: dict[str, Any] = {"compression_ratio": 0.5}
    snapkv = kvpress.SnapKVPress(window_size=WINDOW, **half)
    presses: dict[str, Any] = {
        "adakv": lambda: kvpress.AdaKVPress(snapkv),
        "capkv": lambda: kvpress.CapPress(**half),
        "chunkkv": lambda: kvpress.ChunkKVPress(press=snapkv, chunk_length=10),
        "criticalkv": lambda: kvpress.CriticalKVPress(snapkv),
        "expectedattention": lambda: kvpress.ExpectedAttentionPress(**half),
        "keydiff": lambda: kvpress.KeyDiffPress(**half),
        "knorm": lambda: kvpress.KnormPress(**half),
        "lagkv": lambda: kvpress.LagKVPress(n_sink=16, lag_size=128, **half),
        "pyramidkv": lambda: kvpress.PyramidKVPress(window_size=WINDOW, **half),
        "random": lambda: kvpress.RandomPress(**half),
        "snapkv": lambda: snapkv,
        "streamingllm": lambda: kvpress.StreamingLLMPress(**half),
        "tova": lambda: kvpress.TOVAPress(**half),
    }
    return presses[method]()


def call_of(method: str, length: int) -> Call:
    """Return a call that compresses a random layer of so many positions."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=MODEL, num_attention_heads=HEADS, num_key_value_heads=KV_HEADS,
        num_hidden_layers=32,
    )  # fmt: skip
    config._attn_implementation = "sdpa"
    module: Any = LlamaAttention(config, layer_idx=15)
    module.rotary_emb = LlamaRotaryEmbedding(config)
    hidden = torch.randn(1, length, MODEL)
    keys, values = (torch.randn(1, KV_HEADS, length, DIM) for _ in range(2))
    rotary = module.rotary_emb(hidden, torch.arange(length)[None])
    given = {"position_embeddings": rotary, "hidden_states": hidden}
    press = press_of(method)
    return lambda: press.compress(module, hidden, keys, values, None, given)


if __name__ == "__main__":
    run(call_of)
