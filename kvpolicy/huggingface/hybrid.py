"""A layer with attention and a linear state in one: attention is evicted, the state left alone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor
from transformers import cache_utils
from transformers.cache_utils import LinearAttentionLayer

from kvpolicy.errors import CacheStateError
from kvpolicy.huggingface.layer import PolicyLayer
from kvpolicy.huggingface.session import Session

# transformers looks for layers with attention by this type. Older ones have no such layers.
_Both = getattr(cache_utils, "LinearAttentionAndFullAttentionLayer", LinearAttentionLayer)


def linear_nbytes(layer: Any) -> int:
    """Return the bytes of a layer's linear states; 0 for a layer that has none."""
    states = (getattr(layer, name, None) for name in ("conv_states", "recurrent_states"))
    each = (one for some in states for one in (some.values() if isinstance(some, dict) else [some]))
    return sum(state.nbytes for state in each if state is not None)


_KEPT = {"dtype", "device", "record_past"}
"""Attributes of a linear state that no conversation changes."""


def reset_layers(layers: Iterable[Any]) -> None:
    """Make every layer as it was before its first token.

    transformers sets linear states to zero and keeps them, but the next batch may have another
    number of sequences.
    """
    for layer in layers:
        layer.reset()
        if isinstance(layer, LinearAttentionLayer):
            number = getattr(layer, "number_of_states", None)
            fresh = LinearAttentionLayer(**({} if number is None else {"number_of_states": number}))
            for name in vars(fresh).keys() - _KEPT:
                setattr(layer, name, getattr(fresh, name))


class HybridLayer(_Both, PolicyLayer):  # type: ignore[misc,valid-type]
    """A layer that evicts, beside the states of transformers' linear attention."""

    # What was evicted cannot be brought back, and neither can an earlier state.
    is_croppable = False
    is_compileable = False

    def __init__(self, session: Session, index: int, number_of_states: int) -> None:
        """Start empty; `index` counts the layers that evict."""
        LinearAttentionLayer.__init__(self, number_of_states=number_of_states)
        PolicyLayer.__init__(self, session, index)

    def reset(self) -> None:
        """Forget everything."""
        LinearAttentionLayer.reset(self)
        PolicyLayer.reset(self)

    def crop(self, tokens_to_remove: int) -> None:
        """Take tokens back; `check_crop` has refused all but none."""
        PolicyLayer.crop(self, tokens_to_remove)

    def check_crop(self, count: int) -> None:
        """Raise CacheStateError: a linear state has no way back."""
        if count:
            raise CacheStateError(
                f"cannot crop: layer {self.index} is linear attention beside full attention, and "
                "its state has no way back. Start over with cache.reset()."
            )

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keep, repeat or reorder the sequences of the batch."""
        LinearAttentionLayer.reorder_cache(self, beam_idx)  # type: ignore[arg-type]
        PolicyLayer.reorder_cache(self, beam_idx)

    def offload(self) -> None:
        """Do nothing: the contents are put away when the layer's forward ends."""

    def prefetch(self) -> None:
        """Begin to bring what the next forward needs of this layer to the device."""
        PolicyLayer.prefetch(self)

    @property
    def nbytes(self) -> int:
        """Bytes held: those of the attention, and of the states."""
        return PolicyLayer.nbytes.fget(self) + linear_nbytes(self)  # type: ignore[attr-defined, no-any-return]

    @property
    def full_nbytes(self) -> int:
        """Bytes that the keys and values of all tokens seen would need, and those of the states."""
        return PolicyLayer.full_nbytes.fget(self) + linear_nbytes(self)  # type: ignore[attr-defined, no-any-return]
