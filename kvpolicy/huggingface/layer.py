"""One attention layer's cache, as transformers holds it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor, nn
from transformers.cache_utils import DynamicLayer

from kvpolicy.cache.attention.keys import AttendedKeys, attended
from kvpolicy.cache.attention.sparse import read_sparsely
from kvpolicy.cache.attention.uneven import attend_uneven
from kvpolicy.cache.eviction.budgets import Budgets
from kvpolicy.cache.eviction.evict import evict, kept
from kvpolicy.cache.eviction.ranked import Ranked, ranked
from kvpolicy.cache.eviction.running_state import accumulate
from kvpolicy.cache.eviction.schedule import Schedule
from kvpolicy.cache.eviction.shown import Shown
from kvpolicy.cache.eviction.together import Waiting
from kvpolicy.cache.memory.contents import Contents
from kvpolicy.cache.storage.layer_memory import LayerMemory
from kvpolicy.errors import CacheStateError, UnsupportedModelError
from kvpolicy.huggingface.attention.arguments import Call
from kvpolicy.huggingface.attention.marks import mark
from kvpolicy.huggingface.attention.masks import fitted
from kvpolicy.huggingface.model.output_projection import output_weight
from kvpolicy.huggingface.model.ranks import here
from kvpolicy.huggingface.session import Session
from kvpolicy.observation.logits import Logits


@attrs.define(eq=False)
class Forward:
    """What a layer computes with in one forward; nothing of it is saved."""

    contents: Contents
    keys: AttendedKeys
    held: int
    """Slots of the head that holds the most, new tokens included."""


class PolicyLayer(DynamicLayer):
    """Grows like any other layer, shows its attention to the policy, and keeps what it chooses.

    To transformers it reports tokens *seen*, so that positions stay true, and masks for the slots
    that are *held*.
    """

    # What was evicted cannot be brought back.
    is_croppable = False

    def __init__(self, session: Session, index: int) -> None:
        """Start empty; `index` counts the layers that evict."""
        self.session = session
        self.index = index
        self._slot_rotary = session.slot_rotary(index)
        self.reset()

    def reset(self) -> None:
        """Forget everything and give the memory back."""
        policy = self.session.policy
        self.seen = 0
        self.memory = LayerMemory(self.session.storage)
        self.schedule = Schedule(policy.every, policy.scorer.window)
        self.forward: Forward | None = None
        self.density: Float64[Tensor, ""] | None = None

    # --- what transformers asks -----------------------------------------------------------------

    # transformers keeps plain attributes here; they follow from the contents.
    @property
    def keys(self) -> Float[Tensor, "B N K D"] | None:  # type: ignore[override]
        """The keys held; of uneven heads, a copy with zeros on the left."""
        contents = self.memory.loaded()
        return None if contents is None else contents.joined("keys")

    @property
    def values(self) -> Float[Tensor, "B N K Dv"] | None:  # type: ignore[override]
        """The values held; of uneven heads, a copy with zeros on the left."""
        contents = self.memory.loaded()
        return None if contents is None else contents.joined("values")

    @property
    def is_initialized(self) -> bool:  # type: ignore[override]
        """Whether any token has been seen."""
        return self.memory.layout is not None

    def get_seq_length(self) -> int:
        """Return the tokens seen: rotary positions and `generate` count by them."""
        return self.seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return how many columns a mask needs, and the token count of the first."""
        held = self.held
        return held + query_length, self.seen - held

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Add the new tokens, and hand out all dense rows, marked for the attention call."""
        contents = self.memory.with_new(key_states.detach(), value_states.detach())
        self.seen += key_states.shape[2]
        keys = attended(contents, self._slot_rotary)
        self.forward = Forward(contents, keys, contents.held)
        return mark(keys.dense, self), contents.values.view

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last -`tokens_to_remove` tokens; what was evicted stays evicted.

        Raises CacheStateError if rows or heads would then hold different numbers of positions.
        """
        count, owned = abs(tokens_to_remove), self.memory.owned
        if owned is None or count == 0:
            return
        if count >= self.seen:
            self.reset()
            return
        owned.forget_last(count)
        self.seen -= count
        self.schedule.forget_last(count)

    def check_crop(self, count: int) -> None:
        """Raise CacheStateError if `crop(-count)` would."""
        layout = self.memory.layout
        if layout is None or not 0 < count < self.seen:
            return
        if layout.ragged is not None:
            layout.slots.check_seen(count)
            return
        ranks = self.session.ranks
        layout.slots.held_of_last(count, None if ranks is None else ranks.exchange)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keep, repeat or reorder the sequences of the batch."""
        if (owned := self.memory.owned) is not None:
            owned.select_rows(beam_idx)
            self.schedule.select_rows(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every sequence of the batch."""
        self.reorder_cache(torch.arange(self.batch, device="cpu").repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep only these sequences of the batch."""
        self.reorder_cache(torch.arange(self.batch, device="cpu")[indices.cpu()])

    def prefetch(self) -> None:
        """Begin to bring what the next forward needs of this layer to the device."""
        self.memory.prefetch()

    def offload(self) -> None:
        """Do nothing: the contents are put away when the layer's forward ends."""

    # --- what the cache and its report ask ------------------------------------------------------

    @property
    def batch(self) -> int:
        """B, the sequences that are held."""
        layout = self.memory.layout
        return 0 if layout is None else layout.slots.batch

    @property
    def held(self) -> int:
        """Slots of the head that holds the most, padding included."""
        layout = self.memory.layout
        return 0 if layout is None else layout.held

    @property
    def mean_held(self) -> float:
        """Slots of a head on average, padding included."""
        layout = self.memory.layout
        return 0.0 if layout is None else layout.mean_held

    @property
    def positions(self) -> Int[Tensor, "B N K"]:
        """The true position of every slot, -1 for padding (leftmost)."""
        layout = self.memory.layout
        if layout is None:
            return torch.empty((0, 0, 0), dtype=torch.long)
        return layout.positions

    @property
    def is_uneven(self) -> bool:
        """Whether heads hold different numbers of positions."""
        layout = self.memory.layout
        return layout is not None and layout.ragged is not None

    @property
    def nbytes(self) -> int:
        """Bytes held: keys, values, slack, positions, running state and remembered queries."""
        owned = self.memory.owned
        return self.schedule.nbytes + (0 if owned is None else owned.nbytes)

    @property
    def full_nbytes(self) -> int:
        """Bytes that the keys and values of all tokens seen would need."""
        layout, owned = self.memory.layout, self.memory.owned
        if layout is None or owned is None:
            return 0
        return layout.slots.batch * layout.slots.heads * self.seen * owned.row_nbytes

    @property
    def is_unobserved(self) -> bool:
        """Whether keys were handed out and no attention has shown its queries yet."""
        return self.forward is not None

    # --- what the attention call tells ----------------------------------------------------------

    @property
    def has_evicted(self) -> bool:
        """Whether the layer holds fewer tokens than it has seen."""
        return (self.held if self.forward is None else self.forward.held) < self.seen

    def failed(self, error: BaseException) -> None:
        """Learn that the call failed, so that the cache refuses to go on."""
        self.session.guard.failed(error)

    def mask_for(self, mask: Any, query: Float[Tensor, "B H Q D"]) -> Any:
        """Return the mask that all layers share, as it fits this layer's slots.

        Raises InvalidValueError for a mask that the slots cannot follow.
        """
        forward, length = self._forward(), query.shape[2]
        slots = forward.contents.slots
        real = self.session.masks.new_real_tokens(
            mask, slots, length, held=forward.held, seen=self.seen
        )
        if real is not None:
            slots.mark_padding(real)
        if forward.contents.ragged is not None:
            return None
        return fitted(mask, slots, query, self.session.attention)

    def attend(
        self, call: Call, query: Float[Tensor, "B H Q D"], mask: Any, logits: Logits
    ) -> Float[Tensor, "B Q H Dv"] | None:
        """Attend to uneven heads, or to the blocks of a first prompt that the pattern chooses.

        Returns None otherwise. Raises UnsupportedModelError for what such attention lacks.
        """
        forward, pattern = self._forward(), self.session.prefill
        contents = forward.contents
        if contents.ragged is not None:
            call.refuse_what_is_not_computed()
            return attend_uneven(query.detach(), contents, forward.keys, logits)
        if pattern is None or self.seen > query.shape[2]:
            return None
        if logits.sinks is not None:
            raise UnsupportedModelError(
                f"attention layer {self.index} uses learned attention sinks (s_aux); sparse "
                "prefill does not support them. Use prefill=None."
            )
        lengths = contents.slots.lengths
        if max(lengths) <= pattern.dense_up_to:
            return None
        call.refuse_what_is_not_computed()
        self.session.masks.check_causal(mask, lengths)
        prompt = read_sparsely(
            pattern, query.detach(), forward.keys.dense, contents.values.view, lengths, logits
        )
        self.density = prompt.density
        return prompt.output

    def observe(self, module: nn.Module, query: Float[Tensor, "B H Q D"], logits: Logits) -> None:
        """Take note of the queries that just attended, and evict where the policy says so."""
        forward, policy = self._forward(), self.session.policy
        # Backward passes need keys and values unmoved; a storage compares rows by their place.
        in_place = not query.requires_grad and self.session.storage is None
        query = query.detach()
        decoded = query.shape[2] == 1 and self.seen > 1
        queries = self.schedule.queries_if_due(query, decoded=decoded)
        runs = policy.running_scorer is not None
        evicted = False
        if runs or queries is not None:
            shown = self._shown(module, query, logits)
            with torch.no_grad():
                if runs:
                    accumulate(policy, forward.contents, forward.keys, shown)
                if queries is not None:
                    shown = attrs.evolve(shown, queries=queries)
                    evicted = self._evict(forward, shown, in_place=in_place)
        self.forward = None
        if self.session.storage is not None and not self.session.together.waits_for(self.index):
            self.memory.put_away(evicted=evicted)

    def _shown(self, module: nn.Module, query: Float[Tensor, "B H Q D"], logits: Logits) -> Shown:
        session, contents = self.session, self._forward().contents
        shard, weight = here(
            session.ranks,
            output_weight(module),
            session.config,
            heads=query.shape[1],
            value_dim=contents.values.buffer.shape[-1],
        )
        return Shown(
            layer=self.index,
            num_layers=session.num_layers,
            kv_heads=contents.slots.heads,
            queries=query,
            logits=logits,
            output_weight=weight,
            rotary=session.rotaries[self.index],
            shard=shard,
        )

    def _evict(self, forward: Forward, shown: Shown, *, in_place: bool) -> bool:
        """Evict at once, or when all layers have been ranked; return whether rows have gone."""
        policy, contents = self.session.policy, forward.contents
        if all(policy.keeps_all(seen) for seen in contents.slots.seen):
            return False
        if policy.model_allocator is not None:
            groups = ranked(policy, contents, forward.keys, shown)
            self.session.together.add(self.index, Waiting(groups, self._keep))
            return False
        found = evict(policy, contents, forward.keys, shown, in_place=in_place)
        return self._hold(found)

    def _keep(self, groups: Sequence[Ranked], budgets: Sequence[Budgets]) -> None:
        """Keep this layer's share of the model's budget."""
        contents = self.memory.contents
        if contents is None:
            raise CacheStateError(f"layer {self.index} was given a budget after it was put away.")
        found = kept(self.session.policy, contents, groups, budgets)
        self.memory.put_away(evicted=self._hold(found))

    def _hold(self, found: Contents | None) -> bool:
        if found is None:
            return False
        self.memory.contents = found
        return True

    def _forward(self) -> Forward:
        if self.forward is None:
            raise UnsupportedModelError(
                f"attention layer {self.index} attends twice with the same keys; policies are "
                "shown one attention only."
            )
        return self.forward
