"""What one layer's cache holds, whatever is done with it: tokens seen, rows held, memory taken."""

from __future__ import annotations

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from kvpolicy.cache.eviction.schedule import Schedule
from kvpolicy.cache.eviction.views import Turned
from kvpolicy.cache.memory.contents import Contents
from kvpolicy.cache.storage.protocol import Stored
from kvpolicy.errors import CacheStateError
from kvpolicy.huggingface.session import CacheState


class HoldingLayer(DynamicLayer):
    """Keys and values of one layer, in position order, real tokens right-aligned.

    To transformers it reports tokens *seen*, so that positions stay true, and masks for the slots
    that are *held*. Between forwards a storage may hold them in another form.
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
        self._stored: Stored | None = None
        self._schedule = Schedule(self.state.policy)
        self._turned: Turned | None = None
        self._may_move = False
        self.density: Float64[Tensor, ""] | None = None

    # transformers keeps plain attributes here; they follow from what is held.
    @property
    def keys(self) -> Float[Tensor, "B N K D"] | None:  # type: ignore[override]
        """The keys held; where heads hold different numbers, a copy with zeros on the left."""
        contents = self._taken_out()
        return None if contents is None else contents.joined("keys")

    @property
    def values(self) -> Float[Tensor, "B N K Dv"] | None:  # type: ignore[override]
        """The values held; where heads hold different numbers, a copy with zeros on the left."""
        contents = self._taken_out()
        return None if contents is None else contents.joined("values")

    @property
    def is_initialized(self) -> bool:  # type: ignore[override]
        """Whether any token has been seen."""
        return self._layout is not None

    @property
    def batch(self) -> int:
        """B, the sequences that are held."""
        return 0 if self._layout is None else self._layout.slots.batch

    @property
    def held(self) -> int:
        """Slots in use by the head that holds the most, padding included."""
        return 0 if self._layout is None else self._layout.held

    @property
    def mean_held(self) -> float:
        """Slots in use by a head on average, padding included."""
        return 0.0 if self._layout is None else self._layout.mean_held

    @property
    def has_evicted(self) -> bool:
        """Whether a token that was seen is held no more; until then all is as without a policy."""
        return self.held < self.seen

    @property
    def is_uneven(self) -> bool:
        """Whether heads hold different numbers of positions, so that attention is our own."""
        return self._layout is not None and self._layout.prefix is not None

    @property
    def positions(self) -> Int[Tensor, "B N K"]:
        """The true position of every slot, -1 for padding (leftmost)."""
        if self._layout is None:
            return torch.empty((0, 0, 0), dtype=torch.long)
        return self._layout.positions

    @property
    def nbytes(self) -> int:
        """Bytes held: keys, values, slack, positions, running state and remembered queries."""
        return self._schedule.nbytes + (0 if self._owned is None else self._owned.nbytes)

    @property
    def full_nbytes(self) -> int:
        """Bytes that the keys and values of all tokens seen would need."""
        if self._layout is None or self._owned is None:
            return 0
        slots = self._layout.slots
        return slots.batch * slots.heads * self.seen * self._owned.row_nbytes

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

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last -`tokens_to_remove` tokens; transformers passes a negative count.

        What was evicted stays evicted. Raises CacheStateError if rows or heads would then hold
        different numbers of positions.
        """
        count = abs(tokens_to_remove)
        if self._owned is None or count == 0:
            return
        if count >= self.seen:
            self.reset()
            return
        self._owned.forget_last(count)
        self.seen -= count
        self._schedule.forget_last(count)

    def check_crop(self, count: int) -> None:
        """Raise CacheStateError if `crop(-count)` would."""
        if self._layout is not None and 0 < count < self.seen:
            slots = self._layout.slots
            ranks = self.state.ranks
            exchange = None if ranks is None else ranks.exchange
            slots.check_seen(count) if self.is_uneven else slots.held_of_last(count, exchange)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Reorder the sequences of the batch."""
        self._select_rows(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every sequence of the batch."""
        self._select_rows(torch.arange(self.batch).repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep only these sequences of the batch."""
        self._select_rows(torch.arange(self.batch)[indices.cpu()])

    def _select_rows(self, batch: Tensor) -> None:
        if self._owned is None:
            return
        self._owned.select_rows(batch)
        self._schedule.select_rows(batch)

    @property
    def _layout(self) -> Contents | None:
        """What is held; where it was put away, its rows may be in another form."""
        if self._contents is None and self._stored is not None:
            return self._stored.layout
        return self._contents

    @property
    def _owned(self) -> Contents | Stored | None:
        return self._stored if self._contents is None else self._contents

    def _taken_out(self) -> Contents | None:
        """Return what is held as the model computes with it."""
        storage = self.state.storage
        if self._contents is None and self._stored is not None and storage is not None:
            return storage.restored(self._stored)
        return self._contents

    def _put_away(self, *, evicted: bool = False) -> None:
        """Leave what is held to the storage until the next forward."""
        storage, contents = self.state.storage, self._contents
        if storage is None or contents is None:
            return
        with torch.no_grad():
            if self._stored is None or evicted:
                self._stored = storage.store(contents, self._stored)
            else:
                storage.extend(self._stored, contents)
        self._contents = None

    def prefetch(self) -> None:
        """Begin to bring what the next forward needs of this layer."""
        if self.state.storage is not None and self._stored is not None:
            self.state.storage.prefetch(self._stored)

    def offload(self) -> None:
        """Do nothing: what is held is put away when the layer's forward ends."""

    @property
    def is_consistent(self) -> bool:
        """Whether keys, values and positions are of as many sequences, heads and slots."""
        if self._contents is not None and self._stored is not None:
            return False
        contents = self._taken_out()
        if contents is None:
            return self.seen == 0
        return isinstance(contents, Contents) and contents.is_consistent(self.seen)

    def _filled(self) -> Contents:
        if self._contents is None:
            raise CacheStateError(f"layer {self.index} was observed before it was given any keys.")
        return self._contents
