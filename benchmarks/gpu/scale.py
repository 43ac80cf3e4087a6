"""How large everything is: as in Llama-3.1-8B and Mistral-7B, or a toy that a CPU runs."""

from __future__ import annotations

from collections.abc import Mapping

import attrs
import torch


@attrs.frozen(kw_only=True, eq=False)
class Scale:
    """Sizes of a layer and its prompt, by the letters of the docs."""

    toy: bool
    lengths: tuple[int, ...]
    heads: int
    kv_heads: int
    dim: int
    model_dim: int
    mlp_dim: int
    vocabulary: Mapping[str, int]
    """By model; all else is the same in both."""
    window: int
    budget: int
    layers: int
    """Of a whole model."""
    timed_layers: int
    """Of the model whose prefill is timed; overheads in % do not depend on it."""
    dtype: torch.dtype
    repeats: int
    bulk: int
    """Positions of the cache that bandwidth is measured with: well above a GPU's L2 cache."""
    mlp_chunk: int

    @property
    def pooled_width(self) -> int:
        """The narrowest adaptive pooling of ReST-KV."""
        return 5

    @property
    def kv_bytes(self) -> int:
        """Bytes of one position's keys and values in one layer and row."""
        return 2 * self.kv_heads * self.dim * self.dtype.itemsize

    @property
    def shape(self) -> dict[str, int]:
        """The sizes that every row repeats."""
        return {
            "H": self.heads,
            "N": self.kv_heads,
            "D": self.dim,
            "M": self.model_dim,
            "W": self.window,
        }


REAL = Scale(
    toy=False,
    lengths=(4096, 8192, 16_384, 32_768, 65_536, 131_072),
    heads=32,
    kv_heads=8,
    dim=128,
    model_dim=4096,
    mlp_dim=14_336,
    vocabulary={"Llama-3.1-8B": 128_256, "Mistral-7B": 32_768},
    window=32,
    budget=1024,
    layers=32,
    timed_layers=4,
    dtype=torch.bfloat16,
    repeats=20,
    bulk=16_384,
    mlp_chunk=4096,
)
TOY = Scale(
    toy=True,
    lengths=(96, 192),
    heads=4,
    kv_heads=2,
    dim=16,
    model_dim=64,
    mlp_dim=96,
    vocabulary={"Llama-3.1-8B": 128, "Mistral-7B": 128},
    window=8,
    budget=32,
    layers=2,
    timed_layers=2,
    dtype=torch.float32,
    repeats=2,
    bulk=64,
    mlp_chunk=32,
)
