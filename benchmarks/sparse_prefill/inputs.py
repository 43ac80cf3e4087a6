"""A random Llama, and the inputs of one of its attention layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from kvpolicy.exactness.attention import replaced_attention
from kvpolicy.prefill import PrefillPattern, reference
from kvpolicy.prefill.attention import block_attention
from kvpolicy.prefill.blocks import attended

SIZES: Mapping[str, tuple[int, int, int, int, int]] = {
    "toy": (32, 4, 2, 48, 2),
    "small": (1024, 8, 2, 3584, 2),
    "llama-3.1-8b": (4096, 32, 8, 14_336, 32),
}
"""Model dim, query heads, key/value heads, MLP dim, layers."""


@attrs.frozen(kw_only=True, eq=False)
class Inputs:
    """The inputs of one layer's attention."""

    module: torch.nn.Module
    queries: Tensor
    keys: Tensor
    values: Tensor
    scaling: float

    def dense(self) -> Tensor:
        """Attend as the model does."""
        given = (self.module, self.queries, self.keys, self.values, None)
        return sdpa_attention_forward(*given, scaling=self.scaling)[0]

    def chosen(self, pattern: PrefillPattern) -> Tensor:
        """Return the blocks that a pattern chooses."""
        return attended(pattern.choose(self.queries, self.keys, scaling=self.scaling))

    def sparse(self, pattern: PrefillPattern) -> Tensor:
        """Let the pattern choose blocks, and attend to them."""
        return block_attention(
            self.queries, self.keys, self.values, self.chosen(pattern),
            block=pattern.block, scaling=self.scaling,
        )  # fmt: skip

    def error(self, pattern: PrefillPattern) -> float:
        """Return the largest error of attention at the first tokens, by the largest output.

        They are twice as many tokens as the pattern leaves dense.
        """
        first = slice(2 * pattern.dense_up_to)
        # The strides of the model's queries: for others flex attention would compile again.
        queries = self.queries.transpose(1, 2)[:, first].contiguous().transpose(1, 2)
        keys, values = (each[:, :, first].contiguous() for each in (self.keys, self.values))
        blocks = attended(pattern.choose(queries, keys, scaling=self.scaling))
        given: dict[str, Any] = {"block": pattern.block, "scaling": self.scaling}
        found = block_attention(queries, keys, values, blocks, **given)
        expected = reference.block_attention(
            queries.float(), keys.float(), values.float(), blocks, softcap=None, **given
        )
        return float((found - expected).abs().max() / expected.abs().max())


def random_model(size: str, layers: int | None, dtype: torch.dtype, device: str) -> PreTrainedModel:
    """Return a Llama of a size, with random weights."""
    dim, heads, kv_heads, mlp_dim, count = SIZES[size]
    config = LlamaConfig(
        vocab_size=1024,
        hidden_size=dim,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        intermediate_size=mlp_dim,
        num_hidden_layers=layers or count,
        max_position_embeddings=2**20,
    )
    torch.manual_seed(0)
    with torch.device(device):
        model: PreTrainedModel = LlamaForCausalLM._from_config(
            config, dtype=dtype, attn_implementation="sdpa"
        )
    model.eval().requires_grad_(False)
    return model


def inputs_of(model: PreTrainedModel, ids: Tensor) -> Inputs:
    """Return the inputs of the last layer's attention for a prompt."""
    last: list[Inputs] = []

    def kept(
        module: torch.nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        scaling: float,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        # Contiguous, as a cache holds them; queries stay as the model made them.
        held = {"keys": key.contiguous(), "values": value.contiguous()}
        last[:] = [Inputs(module=module, queries=query, scaling=scaling, **held)]
        return last[0].dense(), None

    with replaced_attention(model, kept, name="kvpolicy-benchmark-inputs"):
        model(input_ids=ids, logits_to_keep=1, use_cache=False)
    return last[0]
