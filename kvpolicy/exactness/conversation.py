"""One cache in use, its forwards and changes, and how far its logits are from a full cache's."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import attrs
import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedModel

from kvpolicy import Policy, load
from kvpolicy.errors import CacheStateError
from kvpolicy.exactness.forwards import Change, Forward, recorded
from kvpolicy.exactness.replay import replay_difference
from kvpolicy.exactness.told import Told
from kvpolicy.huggingface.cache import PolicyCache
from kvpolicy.huggingface.cache_argument import handed
from kvpolicy.huggingface.layer import PolicyLayer


@attrs.define(eq=False)
class Conversation:
    """A cache, the forwards through it, the changes since the last one, and the tokens' mask."""

    model: PreTrainedModel
    cache: PolicyCache
    forwards: list[Forward] = attrs.field(factory=list)
    changes: list[Change] = attrs.field(factory=list)
    mask: Int[Tensor, "B T"] | None = None
    """None before the first turn."""
    protected: list[frozenset[int]] = attrs.field(factory=list)
    """For each row the positions that no head may evict; empty: none of any row."""

    @classmethod
    def begun(cls, model: PreTrainedModel, policy: Policy) -> Conversation:
        """Begin with an empty cache."""
        return cls(model, policy.cache(model))

    def tell(self, policy: Policy, told: Told | None) -> None:
        """Begin anew with a cache that is told of spans, or of none.

        Raises InvalidValueError if the budget cannot hold them; then the cache is as it was.
        """
        cache = policy.cache(self.model, **({} if told is None else told.arguments))
        self.cache.close()
        self.cache, self.protected = cache, [] if told is None else told.protected

    def check_protected(self) -> None:
        """Raise AssertionError if a head lacks a protected position that its row has seen."""
        if self.mask is None:
            return
        seen: list[int] = self.mask.sum(1).tolist()
        for layer in self.cache.policy_layers:
            for row, whole in enumerate(self.protected):
                for head in layer.positions[row].tolist():
                    lost = {at for at in whole if at < seen[row]}.difference(head)
                    if lost:
                        raise AssertionError(f"row {row} has lost protected {sorted(lost)}")

    @property
    def rows(self) -> int:
        """B, the sequences of the batch; 0 before the first turn."""
        return 0 if self.mask is None else self.mask.shape[0]

    @property
    def length(self) -> int:
        """T, the number of tokens seen, padding included."""
        return 0 if self.mask is None else self.mask.shape[1]

    @property
    def has_evicted(self) -> bool:
        """Whether a layer has evicted a token."""
        return any(layer.held < layer.seen for layer in self.cache.policy_layers)

    def read(self, tokens: Int[Tensor, "B Q"], mask: Int[Tensor, "B Q"] | None = None) -> None:
        """Read a turn. The mask of the first turn may hide padding on the left."""
        new = torch.ones_like(tokens) if mask is None else mask
        whole = new if self.mask is None else torch.cat([self.mask, new], 1)
        inputs: dict[str, Any] = {"input_ids": tokens, **handed(self.cache, to=self.model)}
        if not bool(whole.all()):
            inputs["attention_mask"] = whole
            inputs["position_ids"] = (whole.cumsum(1) - 1).clamp(min=0)[:, -tokens.shape[1] :]
        with torch.no_grad(), recorded(self.model, self.cache) as forwards:
            self.model(**inputs)
        self.forwards.append(attrs.evolve(forwards[0], changes=self.changes))
        self.mask, self.changes = whole, []

    def crop(self, count: int) -> bool:
        """Take the last tokens back. Return False if the cache refuses, and check it then."""
        before = contents_of(self.cache)
        try:
            self.cache.crop(-count)
        except CacheStateError:
            check_equal(before, contents_of(self.cache))
            return False
        if self.cache.get_seq_length() != self.length - count:
            raise AssertionError(
                f"{self.length} tokens less {count} are {self.cache.get_seq_length()} in the cache"
            )
        self.changes.append(lambda full: full.crop(-count))
        if self.mask is not None:
            self.mask = self.mask[:, :-count]
        return True

    def reorder(self, rows: Int[Tensor, " rows"]) -> None:
        """Put the rows in another order."""
        self._take(rows, "reorder_cache", rows)

    def select(self, rows: Int[Tensor, " rows"]) -> None:
        """Keep some of the rows."""
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
        if self.protected:
            self.protected = [self.protected[row] for row in rows.tolist()]

    def twin(self) -> Conversation:
        """Return a copy that goes on independently."""
        return attrs.evolve(
            self, cache=self.cache.clone(), forwards=self.forwards[:], changes=self.changes[:]
        )

    def reloaded(self) -> Conversation:
        """Save the cache, and return a copy of the conversation that goes on from the file."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "cache.safetensors")
            self.cache.save(path)
            loaded = load(path, self.model)
        check_equal(contents_of(self.cache), contents_of(loaded))
        return attrs.evolve(self, cache=loaded, forwards=self.forwards[:], changes=self.changes[:])

    def reset(self) -> None:
        """Reset the cache, and begin anew."""
        self.cache.reset()
        if self.cache.get_seq_length() or self.cache.nbytes:
            raise AssertionError("the cache holds tokens or memory after a reset")
        self.forwards, self.changes, self.mask = [], [], None

    def difference(self) -> float:
        """Return the largest difference of a logit so far to those of the masked full cache."""
        return replay_difference(self.model, self.forwards, self.cache)


def contents_of(cache: PolicyCache) -> list[Any]:
    """Return copies of what a cache holds: tokens seen, positions, keys, values, remainders."""
    held = [
        [None if each is None else each.clone() for each in _rows_of(layer)]
        for layer in cache.policy_layers
    ]
    return [cache.get_seq_length(), [each.clone() for each in cache.positions], held]


def _rows_of(layer: PolicyLayer) -> list[Tensor | None]:
    """Return keys and values, and those of the remainder with its counts if there is one."""
    remainder = layer.remainder
    rows = [layer.keys, layer.values]
    if remainder is None:
        return rows
    return [*rows, remainder.keys, remainder.values, remainder.counts]


def check_equal(before: list[Any], after: list[Any]) -> None:
    """Raise AssertionError unless two such lists are equal, bit for bit."""
    torch.testing.assert_close(after, before, rtol=0, atol=0, equal_nan=True)
