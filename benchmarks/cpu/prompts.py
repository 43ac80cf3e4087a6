"""Memory at the peak of a whole prompt, with the full cache and with one that is evicted."""

from __future__ import annotations

import attrs
import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

import kvpolicy
from benchmarks.processes import extra_mib


@attrs.frozen(kw_only=True)
class Narrow:
    """A Llama with little but keys and values, so that a long prompt takes a minute."""

    layers: int = 8
    heads: int = 2
    dim: int = 64

    @property
    def shape(self) -> dict[str, int]:
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
        return LlamaForCausalLM._from_config(config, attn_implementation="sdpa").eval()

    def cache_mib(self, tokens: int) -> float:
        """Return the size of the keys and values of so many tokens."""
        return 2 * self.layers * self.heads * self.dim * tokens * 4 / 2**20


@torch.inference_mode()
def peak_mib(recipe: str | None, budget: int, tokens: int, narrow: Narrow) -> float:
    """Return what reading a prompt takes at its peak; None is the full cache. Fresh process."""
    model = narrow.build()

    def read(length: int) -> None:
        ids = torch.randint(0, 128, (1, length))
        policy = None if recipe is None else kvpolicy.recipe(recipe, budget=budget)
        cache = DynamicCache(config=model.config) if policy is None else policy.cache(model)
        model(input_ids=ids, past_key_values=cache, logits_to_keep=1)

    # The first prompt loads libraries and starts their threads.
    read(min(tokens, 2 * budget))
    return extra_mib(lambda: read(tokens))
