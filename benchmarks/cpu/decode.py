"""Decoding with a small cache: attention alone, and whole steps of a small Llama."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import cycle, islice
from typing import Any, ClassVar

import attrs
import torch
from transformers import Cache, DynamicCache, LlamaConfig, LlamaForCausalLM, StaticCache

import kvpolicy
from benchmarks.one_layer import DIM, HEADS, KV_HEADS
from kvpolicy import Observation
from kvpolicy.huggingface.attention.grouped import folded_attention
from kvpolicy.huggingface.cache import PolicyCache

Call = Callable[[], object]


@attrs.frozen(kw_only=True)
class SpreadAllocator:
    """Gives every other head half of the budget, and what that leaves to the heads between."""

    uneven: ClassVar[bool] = True

    def allocate(self, scores: torch.Tensor, observation: Observation, budget: int) -> torch.Tensor:
        """Return the counts; with an even number of heads they add up to the even budget."""
        counts = torch.full(scores.shape[:2], budget)
        counts[:, 0::2] -= budget // 2
        counts[:, 1::2] += budget // 2
        return counts


@torch.no_grad()
def attention(held: int, dtype: str, *, layers: int, calls: int) -> Call:
    """Return so many tokens' attention, in `layers` layers in turn that hold keys of their own."""
    kind = getattr(torch, dtype)
    query = torch.randn(1, HEADS, 1, DIM, dtype=kind)
    shape = (2, 1, KV_HEADS, held, DIM)
    caches = [torch.randn(shape, dtype=kind).unbind(0) for _ in range(layers)]

    def attend() -> None:
        for keys, values in islice(cycle(caches), calls):
            folded_attention(query, keys, values, None)

    return attend


@attrs.frozen(kw_only=True)
class Model:
    """A Llama with random weights, small enough that Python would show."""

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
        """Return the model, in float32."""
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=2048,
            hidden_size=self.hidden,
            intermediate_size=7 * self.hidden // 2,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            max_position_embeddings=2**17,
            # Attention far from uniform, so that heads differ in what they look at.
            initializer_range=0.05,
        )
        return LlamaForCausalLM._from_config(config, attn_implementation="sdpa").eval()


def shortest_and_longest(cache: PolicyCache) -> dict[str, int]:
    """Return the fewest and the most positions that a head of any layer holds."""
    held = torch.stack([(positions >= 0).sum(-1) for positions in cache.positions])
    return {"shortest head": int(held.min()), "longest head": int(held.max())}


class Stepper:
    """Decodes one token after another into caches that hold equally much of random prompts."""

    def __init__(self, model: LlamaForCausalLM, *, held: int, rounds: int) -> None:
        """Prepare for prompts that leave `held` positions, and `rounds` decoded tokens at most."""
        self.model = model
        self.held = held
        self.rounds = rounds
        self.ids = torch.randint(5, 2048, (1, 2 * held), generator=torch.Generator().manual_seed(0))

    def dynamic(self) -> Call:
        """Decode into transformers' DynamicCache."""
        return self._filled(DynamicCache(config=self.model.config))

    def static(self) -> Call:
        """Decode into transformers' StaticCache."""
        length = self.held + self.rounds + 1
        return self._filled(StaticCache(config=self.model.config, max_cache_len=length))

    def evicted(self, recipe: str, **changes: Any) -> Call:
        """Decode into a PolicyCache that has evicted half of a longer prompt."""
        return self.into(self.policy_cache(recipe, **changes))

    def policy_cache(self, recipe: str, **changes: Any) -> PolicyCache:
        """Return such a cache."""
        cache = kvpolicy.recipe(recipe, budget=self.held, **changes).cache(self.model)
        with cache:
            self._read(self.ids, cache)
        return cache

    def into(self, cache: PolicyCache) -> Call:
        """Decode into a cache, with the model's attention observed only meanwhile."""

        def step() -> None:
            with cache:
                self._read(self.ids[:, :1], cache)

        return step

    def _filled(self, cache: Cache) -> Call:
        self._read(self.ids[:, : self.held], cache)
        return lambda: self._read(self.ids[:, :1], cache)

    @torch.inference_mode()
    def _read(self, ids: torch.Tensor, cache: Cache) -> None:
        self.model(input_ids=ids, past_key_values=cache, logits_to_keep=1)
