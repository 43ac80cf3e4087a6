"""One cache in use, with all that was done to it, to be measured against a masked full cache."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedModel

from kvpolicy import load
from kvpolicy.errors import CacheStateError
from kvpolicy.exactness.replay import Call, recorded, replay_difference
from kvpolicy.huggingface.cache import PolicyCache
from kvpolicy.policy import Policy


@attrs.define(eq=False)
class Conversation:
    """A cache, the forwards that went through it, and the mask of its tokens; None before them."""

    model: PreTrainedModel
    cache: PolicyCache
    calls: list[Call] = attrs.field(factory=list)
    changes: list[Callable[[Any], None]] = attrs.field(factory=list)
    mask: Int[Tensor, "B T"] | None = None

    @classmethod
    def begun(cls, model: PreTrainedModel, policy: Policy) -> Conversation:
        """Begin with an empty cache."""
        return cls(model, policy.cache(model))

    @property
    def rows(self) -> int:
        """B, the sequences of the batch; 0 before the first turn."""
        return 0 if self.mask is None else self.mask.shape[0]

    @property
    def length(self) -> int:
        """T, the tokens seen, padding included."""
        return 0 if self.mask is None else self.mask.shape[1]

    @property
    def has_evicted(self) -> bool:
        """Whether a token that was seen is held no more."""
        return any(layer.held < layer.seen for layer in self.cache.policy_layers)

    def read(self, tokens: Int[Tensor, "B Q"], mask: Int[Tensor, "B Q"] | None = None) -> None:
        """Read a turn; the mask of the first one may hide padding on the left."""
        new = torch.ones_like(tokens) if mask is None else mask
        whole = new if self.mask is None else torch.cat([self.mask, new], 1)
        inputs: dict[str, Any] = {"input_ids": tokens, "past_key_values": self.cache}
        if not bool(whole.all()):
            inputs["attention_mask"] = whole
            inputs["position_ids"] = (whole.cumsum(1) - 1).clamp(min=0)[:, -tokens.shape[1] :]
        with torch.no_grad(), recorded(self.model, self.cache) as calls:
            self.model(**inputs)
        self.calls.append(attrs.evolve(calls[0], before=self.changes))
        self.mask, self.changes = whole, []

    def crop(self, count: int) -> bool:
        """Take tokens back; False if the cache refuses, which must leave it as it was."""
        before = state_of(self.cache)
        try:
            self.cache.crop(-count)
        except CacheStateError:
            check_same(before, state_of(self.cache))
            return False
        self.changes.append(lambda full: full.crop(-count))
        if self.mask is not None:
            self.mask = self.mask[:, :-count]
        return True

    def reorder(self, rows: Int[Tensor, " rows"]) -> None:
        """Let rows change places."""
        self._take(rows, "reorder_cache", rows)

    def select(self, rows: Int[Tensor, " rows"]) -> None:
        """Go on with some of the rows."""
        self._take(rows, "batch_select_indices", rows)

    def repeat(self, times: int) -> None:
        """Repeat every row."""
        rows = torch.arange(self.rows).repeat_interleave(times)
        self._take(rows, "batch_repeat_interleave", times)

    def _take(self, rows: Int[Tensor, " rows"], change: str, *arguments: Any) -> None:
        getattr(self.cache, change)(*arguments)
        self.changes.append(lambda full: getattr(full, change)(*arguments))
        if self.mask is not None:
            self.mask = self.mask[rows]

    def twin(self) -> Conversation:
        """Return a conversation that goes its own way from here."""
        return attrs.evolve(
            self, cache=self.cache.clone(), calls=self.calls[:], changes=self.changes[:]
        )

    def reloaded(self) -> Conversation:
        """Return the conversation as it goes on from a file."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "cache.safetensors")
            self.cache.save(path)
            loaded = load(path, self.model)
        check_same(state_of(self.cache), state_of(loaded))
        return attrs.evolve(self, cache=loaded, calls=self.calls[:], changes=self.changes[:])

    def reset(self) -> None:
        """Forget it all and begin anew."""
        self.cache.reset()
        if self.cache.get_seq_length() or self.cache.nbytes:
            raise AssertionError("something is held after a reset")
        self.calls, self.changes, self.mask = [], [], None

    def difference(self) -> float:
        """Return the largest difference of any logit so far to the masked full cache."""
        return replay_difference(self.model, self.calls, self.cache) if self.calls else 0.0


def state_of(cache: PolicyCache) -> list[Any]:
    """Return copies of all that a cache holds: tokens seen, positions, keys and values."""
    held = [
        [None if each is None else each.clone() for each in (layer.keys, layer.values)]
        for layer in cache.policy_layers
    ]
    return [cache.get_seq_length(), [each.clone() for each in cache.positions], held]


def check_same(before: list[Any], after: list[Any]) -> None:
    """Raise AssertionError unless two states are equal, bit for bit."""
    torch.testing.assert_close(after, before, rtol=0, atol=0, equal_nan=True)
