"""One attention layer's cache: it grows like any other, and is evicted when a prompt ends."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers.cache_utils import DynamicLayer

from kvpolicy.errors import CacheStateError, UnsupportedModelError
from kvpolicy.huggingface.attention import hand_out, take_given_mask
from kvpolicy.huggingface.eviction import Held, Shown, evict
from kvpolicy.huggingface.masks import check_given_mask, fit, with_own_padding
from kvpolicy.huggingface.slots import Slots
from kvpolicy.huggingface.state import CacheState
from kvpolicy.huggingface.storage import Contents, Rows


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
        self._queries: Tensor | None = None
        self._decoded = 0
        self._unobserved = False

    # transformers keeps plain attributes here; they follow from what is held.
    @property
    def keys(self) -> Float[Tensor, "B N K D"] | None:  # type: ignore[override]
        """The keys held."""
        return None if self._contents is None else self._contents.keys.view

    @property
    def values(self) -> Float[Tensor, "B N K Dv"] | None:  # type: ignore[override]
        """The values held."""
        return None if self._contents is None else self._contents.values.view

    @property
    def is_initialized(self) -> bool:  # type: ignore[override]
        """Whether any token has been seen."""
        return self._contents is not None

    @property
    def held(self) -> int:
        """Slots in use, padding included."""
        return 0 if self._contents is None else self._contents.slots.held

    @property
    def positions(self) -> Int[Tensor, "B N K"]:
        """The true position of every slot, -1 for padding (leftmost)."""
        if self._contents is None:
            return torch.empty((0, 0, 0), dtype=torch.long)
        return self._contents.slots.positions

    @property
    def nbytes(self) -> int:
        """Bytes held: keys, values, slack, positions and remembered queries."""
        queries = 0 if self._queries is None else self._queries.nbytes
        return queries + (0 if self._contents is None else self._contents.nbytes)

    @property
    def is_unobserved(self) -> bool:
        """Whether keys were handed out that no attention has shown a query for yet."""
        return self._unobserved

    def get_seq_length(self) -> int:
        """Return the tokens seen: rotary positions and `generate` count with them."""
        return self.seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return how many columns a mask needs, and the token count of the first."""
        return self.held + query_length, self.seen - self.held

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Add the new tokens and hand out all that is held."""
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
        self._unobserved = True
        return hand_out(self._contents.keys.view, self), self._contents.values.view

    def mask_for(self, mask: Any, query: Tensor, backend: str) -> Any:
        """Return the shared attention mask as it fits this layer's slots.

        Raises InvalidValueError for a mask that the slots cannot follow.
        """
        slots, length = self._filled().slots, query.shape[2]
        if not self._unobserved:
            raise UnsupportedModelError(
                f"attention layer {self.index} attends twice with the same keys; policies are "
                "shown one attention only."
            )
        before = [seen - length for seen in slots.seen]
        given, given_mask = take_given_mask()
        # The first layer reads it; a decoded token's mask only grows.
        if given and length > 1:
            check_given_mask(given_mask, before, self.seen - length)
        real = self.state.new_real_tokens(mask, before, length, slots.held)
        if real is not None:
            slots.mark_padding(real)
        mask = fit(mask, slots.held)
        if slots.follow_the_count:
            return mask
        return with_own_padding(mask, slots.lengths, length, slots.held, query, backend)

    def observe(
        self,
        module: nn.Module,
        query: Float[Tensor, "B H Q D"],
        *,
        scaling: float | None,
        softcap: float | None,
    ) -> None:
        """Take note of the queries that just attended, and evict where the policy says so."""
        queries = self._queries_if_due(query.detach())
        if queries is not None:
            self._evict(Shown.of(module, queries, scaling, softcap))
        self._unobserved = False

    def _queries_if_due(self, query: Float[Tensor, "B H Q D"]) -> Float[Tensor, "B H W D"] | None:
        """Return the queries since eviction was last due if it is due now, else remember them.

        Their keys are all held, so that they see one another as in the model. It is due when a
        prompt ends and after every so many decoded tokens, whether or not there is anything to
        evict: so a row's turns never depend on its batch mates.
        """
        policy, decoded = self.state.policy, query.shape[2] == 1 and self.seen > 1
        if decoded and policy.every is None:
            return None
        if self._queries is not None:
            query = torch.cat([self._queries, query], dim=2)
        window = policy.scorer.window
        query = query if window is None else query[:, :, -window:]
        self._decoded = self._decoded + 1 if decoded else 0
        if decoded and self._decoded < (policy.every or 0):
            self._queries = query
            return None
        self._queries, self._decoded = None, 0
        return query

    def _evict(self, shown: Shown) -> None:
        contents, policy = self._filled(), self.state.policy
        slots = contents.slots
        lengths = zip(slots.lengths, slots.seen, strict=True)
        if all(policy.keeps_all(held, seen) for held, seen in lengths):
            return
        held = Held(
            layer=self.index,
            num_layers=self.state.num_layers,
            keys=contents.keys.view,
            values=contents.values.view,
            positions=slots.positions,
            lengths=slots.lengths,
            seen=slots.seen,
        )
        with torch.no_grad():
            kept = evict(policy, held, shown)
        contents.keys, contents.values = Rows(kept.keys), Rows(kept.values)
        slots.replace(kept.positions, kept.lengths)

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
        slots = self._contents.slots
        slots.forget_last(count)
        self._contents.keys.truncate(slots.held)
        self._contents.values.truncate(slots.held)
        self.seen -= count
        self._decoded = max(0, self._decoded - count)
        if self._queries is not None:
            kept = self._queries[:, :, :-count]
            self._queries = kept if kept.shape[2] else None

    def check_crop(self, count: int) -> None:
        """Raise CacheStateError if `crop(-count)` would."""
        if self._contents is not None and 0 < count < self.seen:
            self._contents.slots.held_of_last(count)

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
        for owned in (self._contents.keys, self._contents.values, self._contents.slots):
            owned.select_rows(batch)
        if self._queries is not None:
            self._queries = self._queries.index_select(0, batch.to(self._queries.device))
