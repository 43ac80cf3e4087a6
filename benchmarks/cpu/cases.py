"""The layers and models that are measured on a CPU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import attrs
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.layers import LayerShape, random_layer
from kvpolicy import Observation


@attrs.frozen(kw_only=True)
class Case:
    """A layer with S positions, and a budget of K."""

    layer_shape: LayerShape
    positions: int
    dtype: str
    budget: int

    @property
    def shape(self) -> Mapping[str, int]:
        """The sizes by their letters."""
        sizes = {name: size for name, size in self.layer_shape.shape.items() if name != "M"}
        return {"S": self.positions, "K": self.budget} | sizes

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype of keys and values."""
        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype

    def layer(self) -> Observation:
        """Return random queries, keys, values and weights."""
        sizes = (self.layer_shape, self.positions, self.budget)
        return random_layer(*sizes, self.torch_dtype, torch.device("cpu"))


@attrs.frozen(kw_only=True)
class Decoder:
    """A Llama that decodes: so small that the time of Python shows."""

    hidden: int = 512
    layers: int = 8
    heads: int = 8
    kv_heads: int = 2

    @property
    def shape(self) -> Mapping[str, int]:
        """The sizes by their letters."""
        dim = self.hidden // self.heads
        return {"H": self.heads, "N": self.kv_heads, "D": dim, "M": self.hidden}

    def build(self) -> LlamaForCausalLM:
        """Return the model, in float32, with random weights."""
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=2048,
            hidden_size=self.hidden,
            intermediate_size=7 * self.hidden // 2,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            max_position_embeddings=2**17,
            # Weights this large make attention uneven.
            initializer_range=0.05,
        )
        model: Any = LlamaForCausalLM._from_config(config, attn_implementation="sdpa")
        return cast("LlamaForCausalLM", model.eval())


@attrs.frozen(kw_only=True)
class Narrow:
    """A Llama that reads long prompts: keys and values are most of its memory."""

    layers: int = 8
    heads: int = 2
    dim: int = 64

    @property
    def shape(self) -> Mapping[str, int]:
        """The sizes by their letters."""
        return {"H": self.heads, "N": self.heads, "D": self.dim, "layers": self.layers}

    def build(self) -> LlamaForCausalLM:
        """Return the model, in float32, with random weights."""
        config = LlamaConfig(
            vocab_size=128,
            hidden_size=self.heads * self.dim,
            intermediate_size=self.heads * self.dim,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.heads,
            max_position_embeddings=2**17,
        )
        model: Any = LlamaForCausalLM._from_config(config, attn_implementation="sdpa")
        return cast("LlamaForCausalLM", model.eval())

    def cache_mib(self, tokens: int) -> float:
        """Return the size of the keys and values of so many tokens."""
        return 2 * self.layers * self.heads * self.dim * tokens * 4 / 2**20
