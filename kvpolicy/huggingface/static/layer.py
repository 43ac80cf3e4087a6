"""One attention layer's cache whose decode step can be captured."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from kvpolicy.cache.static.memory import StaticMemory
from kvpolicy.errors import UnsupportedModelError
from kvpolicy.huggingface.layer import PolicyLayer
from kvpolicy.huggingface.static.forward import StaticForward

COMPILED_PROMPT = (
    "a compiled model read several tokens at once, and the policy computes with rotary positions, "
    "which compiled code does not tell it. Read prompts with the model itself, as generate does, "
    "and compile the decoded tokens only."
)


class StaticPolicyLayer(PolicyLayer):
    """Reads prompts as any other layer does, and holds static rows behind each of them."""

    is_compileable = True
    forward_class = StaticForward

    def reset(self) -> None:
        """Forget everything; buffers are used again by the next conversation, if they fit."""
        spare = self.memory.step or self.memory.spare if hasattr(self, "memory") else None
        super().reset()
        self.memory: StaticMemory = StaticMemory(
            storage=self.session.storage, layer=self.index, spare=spare
        )

    @property
    def seen(self) -> int:
        """Tokens that the layer has read, padding included. Waits for the device."""
        return self.memory.base + self.memory.added

    @seen.setter
    def seen(self, tokens: int) -> None:
        if hasattr(self, "memory"):
            self.memory.base = tokens - self.memory.added

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Add the tokens of a prompt, or of a step that nothing captures.

        Raises UnsupportedModelError for a prompt that a compiled model reads, where the policy
        computes with rotary positions.
        """
        handed_out = super().update(key_states, value_states, *args, **kwargs)
        positions = self.session.rotary_positions
        if positions is not None and positions.of_new(*key_states.shape[0:3:2]) is None:
            raise UnsupportedModelError(COMPILED_PROMPT)
        return handed_out

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last -`tokens_to_remove` tokens; what was evicted stays evicted.

        Raises CacheStateError if rows or heads would then hold different numbers of positions.
        """
        if tokens_to_remove and -tokens_to_remove < self.seen:
            seen = self.seen + tokens_to_remove
            contents = self.memory.loaded()
            if contents is None:
                return
            contents.forget_last(-tokens_to_remove)
            self._hold(contents, seen)
        elif tokens_to_remove:
            self.reset()

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keep, repeat or reorder the sequences of the batch."""
        contents = self.memory.loaded()
        if contents is not None:
            seen = self.seen
            contents.select_rows(beam_idx)
            self.schedule.select_rows(beam_idx)
            self._hold(contents, seen)

    def _hold(self, contents: Any, seen: int) -> None:
        self.memory.contents = contents
        self.memory.base = seen - self.memory.added
        self.memory.put_away(evicted=True)

    @property
    def nbytes(self) -> int:
        """Bytes held: rows with their room, positions, and remembered queries."""
        spare = self.memory.spare
        return super().nbytes + (0 if spare is None else spare.nbytes)
