"""One attention layer's cache, as transformers holds it."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from kvpolicy.cache.attention.keys import attended
from kvpolicy.cache.eviction.schedule import Schedule
from kvpolicy.cache.memory.remainder import Remainder
from kvpolicy.cache.storage.layer_memory import LayerMemory
from kvpolicy.errors import InvalidValueError
from kvpolicy.huggingface.attention.marks import mark
from kvpolicy.huggingface.drafts import parted
from kvpolicy.huggingface.forward import Forward
from kvpolicy.huggingface.session import Session
from kvpolicy.huggingface.taking_back import taking_back


class PolicyLayer(DynamicLayer):
    """Grows like any other layer, shows its attention to the policy, and keeps what it chooses.

    To transformers it reports tokens *seen*, so that positions stay true, and masks for the slots
    that are *held*.
    """

    forward_class: ClassVar[type[Forward]] = Forward

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
        self.schedule = Schedule(policy.every, policy.window)
        self.forward: Forward | None = None
        self._density: Float64[Tensor, ""] | None = None

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
        """Add the new tokens, and hand out all dense rows, marked for the attention call.

        Raises InvalidValueError, before anything is written, for tensors that do not fit.
        """
        title = self.session.storage_title
        if title is not None and key_states.requires_grad and torch.is_grad_enabled():
            raise InvalidValueError(
                f"{title} has no gradients, but the new keys need them. Read under "
                "torch.no_grad(), or use storage=None."
            )
        undo = taking_back(self) if self.index == 0 else None
        rest, are_drafts = None, False
        if self.session.drafts.end is not None:
            parts = self.session.drafts, self.seen, key_states, value_states
            key_states, value_states, rest, are_drafts = parted(*parts, self.update)
        contents = self.memory.with_new(key_states, value_states)
        self.seen += key_states.shape[2]
        positions, new = self.session.rotary_positions, None
        if positions is not None:
            if self.index == 0:
                positions.begin()
            new = positions.of_new(*key_states.shape[0:3:2])
        keys = attended(contents, self._slot_rotary, new)
        self._density = self.density
        self.forward = self.forward_class(
            session=self.session,
            memory=self.memory,
            schedule=self.schedule,
            layer=self.index,
            seen=self.seen,
            held=contents.held,
            contents=contents,
            keys=keys,
            undo=undo,
            rest=rest,
            decodes=are_drafts,
            readers=len(self.session.readers[self.index]),
        )
        return mark(keys.dense, self.forward), contents.values.view

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last -`tokens_to_remove` tokens; what was evicted stays evicted.

        Raises CacheStateError if rows or heads would then hold different numbers of positions.
        """
        count, owned = abs(tokens_to_remove), self.memory.owned
        if owned is not None and count >= self.seen:
            self.reset()
        elif owned is not None and count:
            owned.forget_last(count)
            self.seen -= count
            self.schedule.forget_last(count)

    def check_crop(self, count: int) -> None:
        """Raise CacheStateError if `crop(-count)` would."""
        layout, ranks = self.memory.layout, self.session.ranks
        if layout is not None and 0 < count < self.seen:
            layout.check_crop(count, ranks.exchange if ranks else None)

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
        nothing = torch.empty((0, 0, 0), dtype=torch.long, device="cpu")
        return nothing if layout is None else layout.positions

    @property
    def remainder(self) -> Remainder | None:
        """What stands for evicted positions, one row of each head; None if nothing does."""
        return self.memory.layout.remainder if self.memory.layout else None

    @property
    def is_croppable(self) -> bool:  # type: ignore[override]
        """Whether tokens are taken back without a trace: drafts are, as none of them evicts."""
        return self.session.drafts.end is not None

    @property
    def is_uneven(self) -> bool:
        """Whether heads hold different numbers of positions."""
        return self.memory.layout is not None and self.memory.layout.ragged is not None

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
        """Whether keys were handed out, and not all attention has shown its queries yet."""
        return self.forward is not None and self.forward.keys is not None

    @property
    def is_unread(self) -> bool:
        """Whether keys were handed out, and no attention has shown its queries yet."""
        return self.is_unobserved and not (self.forward and self.forward.readings)

    @property
    def density(self) -> Float64[Tensor, ""] | None:
        """The share of the first prompt's query-key pairs that was computed; None: all."""
        forward = self.forward
        return self._density if forward is None or forward.density is None else forward.density
