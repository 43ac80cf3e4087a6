"""How large everything is on a GPU: as in Llama-3.1-8B and Mistral-7B, or a toy for a CPU."""

from __future__ import annotations

from collections.abc import Mapping

import attrs
import torch

from benchmarks.layers import LayerShape


@attrs.frozen(kw_only=True, eq=False)
class Scale(LayerShape):
    """The sizes of a layer, its model and its prompts; the defaults are those of the models."""

    toy: bool = False
    lengths: tuple[int, ...] = (4096, 8192, 16_384, 32_768, 65_536, 131_072)
    mlp_dim: int = 14_336
    vocabulary: Mapping[str, int] = {"Llama-3.1-8B": 128_256, "Mistral-7B": 32_768}
    """By model; all other sizes are the same in both."""
    budget: int = 1024
    layers: int = 32
    """Of a whole model."""
    timed_layers: int = 4
    """Of the model whose prefill is timed. Overheads in % do not depend on it."""
    dtype: torch.dtype = torch.bfloat16
    repeats: int = 20
    bulk: int = 16_384
    """Positions of a cache much larger than the L2 cache of a GPU."""
    mlp_chunk: int = 4096
    new_tokens: int = 64
    """Generated behind a prompt."""

    @property
    def kv_bytes(self) -> int:
        """Bytes of one position's keys and values in one layer and row."""
        return 2 * self.kv_heads * self.dim * self.dtype.itemsize


REAL = Scale()
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
    new_tokens=4,
)
