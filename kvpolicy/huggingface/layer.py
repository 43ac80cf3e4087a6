"""One attention layer's cache: it grows like any other, and is evicted when a prompt ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers.cache_utils import DynamicLayer

from kvpolicy.errors import CacheStateError, UnsupportedModelError
from kvpolicy.huggingface.assembly import assembled
from kvpolicy.huggingface.attention import hand_out, take_given_mask
from kvpolicy.huggingface.eviction import Ranked, Shown, budgets_of, everything, keep, rank
from kvpolicy.huggingface.masks import check_given_mask, fit, with_own_padding
from kvpolicy.huggingface.running import accumulate
from kvpolicy.huggingface.schedule import Schedule
from kvpolicy.huggingface.slots import Slots
from kvpolicy.huggingface.state import CacheState
from kvpolicy.huggingface.storage import Contents, Rows
from kvpolicy.huggingface.turning import as_stored, by_slot
from kvpolicy.huggingface.views import Turned, views_of
from kvpolicy.stages.allocation import ModelAllocator
from kvpolicy.stages.scoring import RunningScorer
from kvpolicy_kernels import ragged_attention


def output_weight(module: nn.Module) -> Float[Tensor, "M columns"] | None:
    """Return the weight of the attention's output projection; None where it cannot be seen."""
    for name in ("o_proj", "out_proj", "dense"):
        projection = getattr(module, name, None)
        if type(projection) is nn.Linear:
            return projection.weight
    return None


class PolicyLayer(DynamicLayer):
    """Keys and values of one layer, in position order, real tokens right-aligned.

    To transformers it reports tokens *seen*, so that positions stay true, and masks for the slots
    that are *held*.
    """

    # A rollback behind an eviction cannot bring back what was evicted.
    is_croppable = False

    def __init__(self, state: CacheState, index: int) -> None:
        """Start empty; `index` counts the layers that evict."""
        self.state = state
        self.index = index
        self.reset()

    def reset(self) -> None:
        """Forget everything and give the memory back."""
        self.seen = 0
        self._contents: Contents | None = None
        self._schedule = Schedule(self.state.policy)
        self._turned: Turned | None = None

    # transformers keeps plain attributes here; they follow from what is held.
    @property
    def keys(self) -> Float[Tensor, "B N K D"] | None:  # type: ignore[override]
        """The keys held; where heads hold different numbers, a copy with zeros on the left."""
        return None if self._contents is None else self._contents.joined("keys")

    @property
    def values(self) -> Float[Tensor, "B N K Dv"] | None:  # type: ignore[override]
        """The values held; where heads hold different numbers, a copy with zeros on the left."""
        return None if self._contents is None else self._contents.joined("values")

    @property
    def is_initialized(self) -> bool:  # type: ignore[override]
        """Whether any token has been seen."""
        return self._contents is not None

    @property
    def held(self) -> int:
        """Slots in use by the head that holds the most, padding included."""
        return 0 if self._contents is None else self._contents.held

    @property
    def mean_held(self) -> float:
        """Slots in use by a head on average, padding included."""
        return 0.0 if self._contents is None else self._contents.mean_held

    @property
    def is_uneven(self) -> bool:
        """Whether heads hold different numbers of positions, so that attention is our own."""
        return self._contents is not None and self._contents.prefix is not None

    @property
    def positions(self) -> Int[Tensor, "B N K"]:
        """The true position of every slot, -1 for padding (leftmost)."""
        if self._contents is None:
            return torch.empty((0, 0, 0), dtype=torch.long)
        return self._contents.positions

    @property
    def nbytes(self) -> int:
        """Bytes held: keys, values, slack, positions, running state and remembered queries."""
        return self._schedule.nbytes + (0 if self._contents is None else self._contents.nbytes)

    @property
    def full_nbytes(self) -> int:
        """Bytes that the keys and values of all tokens seen would need."""
        if self._contents is None:
            return 0
        rows = (self._contents.keys.buffer, self._contents.values.buffer)
        return sum(
            each.shape[0] * each.shape[1] * self.seen * each.shape[3] * each.element_size()
            for each in rows
        )

    @property
    def is_unobserved(self) -> bool:
        """Whether keys were handed out that no attention has shown a query for yet."""
        return self._turned is not None

    def get_seq_length(self) -> int:
        """Return the tokens seen: rotary positions and `generate` count with them."""
        return self.seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return how many columns a mask needs, and the token count of the first."""
        return self.held + query_length, self.seen - self.held

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Add the new tokens and hand out all that is held, or the even part of it."""
        batch, heads, length, _ = key_states.shape
        new_keys, new_values = key_states.detach(), value_states.detach()
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
        self, query: Float[Tensor, "B H Q D"], *, scaling: float | None, softcap: float | None
    ) -> Float[Tensor, "B Q H Dv"]:
        """Attend to uneven heads, which no attention function of transformers can."""
        contents, turned = self._filled(), self._turned
        if contents.prefix is None or turned is None or turned.prefix is None:
            raise CacheStateError(f"layer {self.index} holds no uneven heads to attend to.")
        slots = contents.slots
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
            padding=padding if slots.is_padded else None,
        )
        return output.to(query.dtype).transpose(1, 2).contiguous()

    def observe(
        self,
        module: nn.Module,
        query: Float[Tensor, "B H Q D"],
        *,
        scaling: float | None,
        softcap: float | None,
    ) -> None:
        """Take note of the queries that just attended, and evict where the policy says so."""
        query = query.detach()
        decoded = query.shape[2] == 1 and self.seen > 1
        queries = self._schedule.queries_if_due(query, decoded=decoded)
        runs = isinstance(self.state.policy.scorer, RunningScorer)
        if runs or queries is not None:
            shown = self._shown(module, query, scaling, softcap)
            with torch.no_grad():
                if runs and self._turned is not None:
                    accumulate(self.state.policy, self._filled(), self._turned, shown)
                if queries is not None:
                    self._evict(attrs.evolve(shown, queries=queries))
        self._turned = None

    def _shown(
        self,
        module: nn.Module,
        query: Float[Tensor, "B H Q D"],
        scaling: float | None,
        softcap: float | None,
    ) -> Shown:
        return Shown(
            layer=self.index,
            num_layers=self.state.num_layers,
            kv_heads=self._filled().slots.heads,
            queries=query,
            scaling=query.shape[-1] ** -0.5 if scaling is None else float(scaling),
            softcap=softcap,
            output_weight=output_weight(module),
            rotary=self.state.rotaries[self.index],
        )

    def _evict(self, shown: Shown) -> None:
        """Rank what is held, and keep the best: at once, or when all layers have been ranked."""
        contents, policy, turned = self._filled(), self.state.policy, self._turned
        if turned is None or all(policy.keeps_all(seen) for seen in contents.slots.seen):
            return
        by_row = isinstance(policy.allocator, ModelAllocator)
        ranked = [rank(policy, views, shown) for views in views_of(contents, turned, by_row=by_row)]
        if by_row:
            self.state.wait_for_all_layers(self, ranked)
        else:
            self.keep(ranked, [budgets_of(policy, each) for each in ranked])

    def keep(self, ranked: Sequence[Ranked], budgets: Sequence[Int[Tensor, "b N"] | None]) -> None:
        """Hold from now on what the policy chooses within the budgets of each group of rows."""
        policy, contents = self.state.policy, self._filled()
        kept = [keep(policy, *each) for each in zip(ranked, budgets, strict=True)]
        if all(pieces is None for pieces in kept):
            return
        groups = [
            everything(each.views) if pieces is None else pieces
            for each, pieces in zip(ranked, kept, strict=True)
        ]
        self._contents = assembled(groups, contents.slots)

    def _filled(self) -> Contents:
        if self._contents is None:
            raise CacheStateError(f"layer {self.index} was observed before it was given any keys.")
        return self._contents

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last -`tokens_to_remove` tokens; transformers passes a negative count.

        What was evicted stays evicted. Raises CacheStateError if rows or heads would then hold
        different numbers of positions.
        """
        count = abs(tokens_to_remove)
        if self._contents is None or count == 0:
            return
        if count >= self.seen:
            self.reset()
            return
        self._contents.forget_last(count)
        self.seen -= count
        self._schedule.forget_last(count)

    def check_crop(self, count: int) -> None:
        """Raise CacheStateError if `crop(-count)` would."""
        if self._contents is not None and 0 < count < self.seen:
            slots = self._contents.slots
            slots.check_seen(count) if self.is_uneven else slots.held_of_last(count)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Reorder the sequences of the batch."""
        self._select_rows(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every sequence of the batch."""
        if self._contents is not None:
            self._select_rows(torch.arange(self._contents.slots.batch).repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep only these sequences of the batch."""
        if self._contents is not None:
            self._select_rows(torch.arange(self._contents.slots.batch)[indices.cpu()])

    def _select_rows(self, batch: Tensor) -> None:
        if self._contents is None:
            return
        self._contents.select_rows(batch)
        self._schedule.select_rows(batch)
