"""One attention layer's cache: it grows like any other, and is evicted when a prompt ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from kvpolicy.cache.attention.keys import as_stored, by_slot
from kvpolicy.cache.attention.sparse import read_sparsely
from kvpolicy.cache.eviction.budgets import budgets_of
from kvpolicy.cache.eviction.evict import (
    Ranked,
    Shown,
    everything,
    keep,
    keep_in_place,
    keeps_even,
    rank,
)
from kvpolicy.cache.eviction.running_state import accumulate
from kvpolicy.cache.eviction.views import views_of
from kvpolicy.cache.memory.assembly import assembled
from kvpolicy.cache.memory.contents import Contents, Rows
from kvpolicy.cache.memory.slots import Slots
from kvpolicy.errors import CacheStateError, UnsupportedModelError
from kvpolicy.huggingface.attention.call import hand_out, take_given_mask
from kvpolicy.huggingface.attention.masks import check_given_mask, fit, with_own_padding
from kvpolicy.huggingface.holding import HoldingLayer
from kvpolicy.huggingface.model.devices import weight_of
from kvpolicy.huggingface.model.ranks import here
from kvpolicy_kernels import ragged_attention


def output_weight(module: nn.Module) -> Float[Tensor, "M columns"] | None:
    """Return the weight of the attention's output projection; None where it cannot be seen."""
    for name in ("o_proj", "out_proj", "dense"):
        projection = getattr(module, name, None)
        if type(projection) is nn.Linear:
            return weight_of(projection)
    return None


class PolicyLayer(HoldingLayer):
    """Grows like any other layer, shows its attention to the policy, keeps what that chooses."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Add the new tokens and hand out all that is held, or the even part of it."""
        batch, heads, length, _ = key_states.shape
        new_keys, new_values = key_states.detach(), value_states.detach()
        self._contents = self._taken_out()
        if self._contents is None:
            slots = Slots(batch, heads, key_states.device)
            self._contents = Contents(Rows(new_keys), Rows(new_values), slots)
        else:
            self._contents.keys.append(new_keys)
            self._contents.values.append(new_values)
        self._contents.slots.append(length)
        self.seen += length
        rotary = self.state.slot_rotary(self.index)
        contents = self._contents
        self._turned = as_stored(contents) if rotary is None else by_slot(contents, rotary)
        return hand_out(self._turned.keys, self), contents.values.view

    def mask_for(self, mask: Any, query: Tensor, backend: str) -> Any:
        """Return the shared attention mask as it fits this layer's slots.

        Raises InvalidValueError for a mask that the slots cannot follow.
        """
        slots, length = self._filled().slots, query.shape[2]
        if not self.is_unobserved:
            raise UnsupportedModelError(
                f"attention layer {self.index} attends twice with the same keys; policies are "
                "shown one attention only."
            )
        before = [seen - length for seen in slots.seen]
        given, given_mask = take_given_mask()
        # The first layer reads it; a decoded token's mask only grows.
        if given and length > 1:
            check_given_mask(given_mask, before, self.seen - length)
        real = self.state.new_real_tokens(mask, before, length, self.held)
        if real is not None:
            slots.mark_padding(real)
        if self.is_uneven:
            return None
        mask = fit(mask, slots.held)
        if slots.follow_the_count:
            return mask
        return with_own_padding(mask, slots.lengths, length, slots.held, query, backend)

    def attend(
        self,
        query: Float[Tensor, "B H Q D"],
        *,
        scaling: float | None,
        softcap: float | None,
        sink_logits: Float[Tensor, " H"] | None,
    ) -> Float[Tensor, "B Q H Dv"]:
        """Attend to uneven heads, which no attention function of transformers can."""
        contents, turned = self._filled(), self._turned
        if contents.prefix is None or turned is None or turned.prefix is None:
            raise CacheStateError(f"layer {self.index} holds no uneven heads to attend to.")
        slots = contents.slots
        padding = None
        # Sent to a GPU only where needed: it waits for it, and could not be part of a CUDA graph.
        if slots.is_padded:
            padding = torch.tensor(slots.lengths, device=query.device).neg().add(slots.held)
        output = ragged_attention(
            query.detach(),
            turned.prefix,
            contents.prefix.values,
            contents.prefix.lengths,
            turned.keys,
            contents.values.view,
            scaling=query.shape[-1] ** -0.5 if scaling is None else float(scaling),
            softcap=softcap,
            sinks=sink_logits,
            padding=padding,
        )
        return output.to(query.dtype).transpose(1, 2).contiguous()

    def attend_sparsely(
        self,
        query: Float[Tensor, "B H Q D"],
        mask: Any,
        *,
        scaling: float | None,
        softcap: float | None,
        sink_logits: Float[Tensor, " H"] | None,
    ) -> Float[Tensor, "B Q H Dv"] | None:
        """Attend to what the prefill pattern chooses; None where attention is the model's own.

        That is everywhere but in the first forward, where that is longer than the pattern minds.
        """
        contents, turned, pattern = self._filled(), self._turned, self.state.prefill
        lengths = contents.slots.lengths
        if pattern is None or turned is None or self.seen > query.shape[2]:
            return None
        if sink_logits is not None:
            raise UnsupportedModelError(
                f"attention layer {self.index} has learned sinks (s_aux), which sparse prefill "
                "does not have. Use prefill=None."
            )
        if max(lengths) <= pattern.dense_up_to:
            return None
        self.state.check_causal(mask, lengths)
        prompt = read_sparsely(
            pattern,
            query.detach(),
            turned.keys,
            contents.values.view,
            lengths,
            scaling=query.shape[-1] ** -0.5 if scaling is None else float(scaling),
            softcap=softcap,
        )
        self.density = prompt.density
        return prompt.output

    def observe(
        self,
        module: nn.Module,
        query: Float[Tensor, "B H Q D"],
        *,
        scaling: float | None,
        softcap: float | None,
        sink_logits: Float[Tensor, " H"] | None,
    ) -> None:
        """Take note of the queries that just attended, and evict where the policy says so."""
        # Gradients of this forward need the keys and values where they are; so does a storage.
        self._may_move = not query.requires_grad and self.state.storage is None
        query = query.detach()
        decoded = query.shape[2] == 1 and self.seen > 1
        queries = self._schedule.queries_if_due(query, decoded=decoded)
        runs = self.state.policy.running_scorer is not None
        if runs or queries is not None:
            shown = self._shown(module, query, scaling, softcap, sink_logits)
            with torch.no_grad():
                if runs and self._turned is not None:
                    accumulate(self.state.policy, self._filled(), self._turned, shown)
                if queries is not None:
                    self._evict(attrs.evolve(shown, queries=queries))
        self._turned = None
        if not self.state.is_waited_for(self):
            self._put_away()

    def _shown(
        self,
        module: nn.Module,
        query: Float[Tensor, "B H Q D"],
        scaling: float | None,
        softcap: float | None,
        sink_logits: Float[Tensor, " H"] | None,
    ) -> Shown:
        shard, weight = here(
            self.state.ranks,
            output_weight(module),
            self.state.config,
            heads=query.shape[1],
            value_dim=self._filled().values.view.shape[-1],
        )
        return Shown(
            layer=self.index,
            num_layers=self.state.num_layers,
            kv_heads=self._filled().slots.heads,
            queries=query,
            scaling=query.shape[-1] ** -0.5 if scaling is None else float(scaling),
            softcap=softcap,
            sink_logits=sink_logits,
            output_weight=weight,
            rotary=self.state.rotaries[self.index],
            shard=shard,
        )

    def _evict(self, shown: Shown) -> None:
        """Rank what is held, and keep the best: at once, or when all layers have been ranked."""
        contents, policy, turned = self._filled(), self.state.policy, self._turned
        if turned is None or all(policy.keeps_all(seen) for seen in contents.slots.seen):
            return
        by_row = policy.model_allocator is not None
        groups = views_of(contents, turned, by_row=by_row, shard=shown.shard)
        ranked = [rank(policy, views, shown) for views in groups]
        if by_row:
            self.state.wait_for_all_layers(self, ranked)
        else:
            self.keep(ranked, [budgets_of(policy, each) for each in ranked])

    def keep(self, ranked: Sequence[Ranked], budgets: Sequence[Int[Tensor, "b N"] | None]) -> None:
        """Hold from now on what the policy chooses within the budgets of each group of rows."""
        policy, contents = self.state.policy, self._filled()
        alone = self._may_move and len(ranked) == 1
        if alone and keep_in_place(policy, contents, ranked[0], budgets[0]):
            return
        kept = [keep(policy, *each) for each in zip(ranked, budgets, strict=True)]
        if all(pieces is None for pieces in kept):
            self._put_away()
            return
        groups = [
            everything(each.views) if pieces is None else pieces
            for each, pieces in zip(ranked, kept, strict=True)
        ]
        even = all(keeps_even(*each) for each in zip(ranked, budgets, strict=True))
        self._contents = assembled(groups, contents.slots, even=even)
        self._put_away(evicted=True)
