"""What the layers of one cache share: the policy, the model's config and how the cache is doing."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from jaxtyping import Bool
from torch import Tensor

from kvpolicy.cache.eviction.budgets import budgets_of_layers
from kvpolicy.cache.eviction.evict import Ranked
from kvpolicy.errors import CacheStateError
from kvpolicy.huggingface.attention.call import is_attached
from kvpolicy.huggingface.attention.masks import check_causal, new_real_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from kvpolicy.cache.storage import Storage
    from kvpolicy.huggingface.layer import PolicyLayer
    from kvpolicy.huggingface.model.ranks import Ranks
    from kvpolicy.observation.rotary import Rotary
    from kvpolicy.policy import Policy
    from kvpolicy.prefill.pattern import PrefillPattern


class CacheState:
    """One per cache; layers hold it, so that they need not hold the cache."""

    def __init__(
        self,
        policy: Policy,
        config: PreTrainedConfig,
        rotaries: Sequence[Rotary | None],
        prefill: PrefillPattern | None = None,
        ranks: Ranks | None = None,
        storage: Storage | None = None,
    ) -> None:
        """Start with nothing wrong; there is an entry of `rotaries` for every layer that evicts."""
        self.policy = policy
        self.prefill = prefill
        self.ranks = ranks
        self.storage = storage
        self.config = config
        self.rotaries = rotaries
        self._waiting: list[tuple[PolicyLayer, Sequence[Ranked]]] = []
        self.failure: str | None = None
        self._mask: weakref.ref[Any] | None = None
        self._causal: weakref.ref[Any] | None = None
        self._seen: list[int] = []
        self._real: Bool[Tensor, "B Q"] | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> CacheState:
        """Copy the state; the policy and the model's config stay the ones they are."""
        shared = (self.policy, self.config, self.rotaries, self.prefill, self.ranks, self.storage)
        twin = CacheState(*shared)
        twin.failure = self.failure
        return twin

    @property
    def num_layers(self) -> int:
        """How many layers evict."""
        return len(self.rotaries)

    def slot_rotary(self, index: int) -> Rotary | None:
        """Return by what a layer's keys are turned to their slots; None if they are not."""
        return self.rotaries[index] if self.policy.slot_positions else None

    def wait_for_all_layers(self, layer: PolicyLayer, ranked: Sequence[Ranked]) -> None:
        """Collect a layer's scores; share out the budget of all when the last one has come."""
        if layer.index == 0:
            self._waiting.clear()
        self._waiting.append((layer, ranked))
        if layer.index < self.num_layers - 1:
            return
        layers, of_layers = zip(*self._waiting, strict=True)
        self._waiting.clear()
        budgets = [budgets_of_layers(self.policy, group) for group in zip(*of_layers, strict=True)]
        for each, groups, counts in zip(layers, of_layers, zip(*budgets, strict=True), strict=True):
            each.keep(groups, counts)

    def is_waited_for(self, layer: PolicyLayer) -> bool:
        """Whether a layer is to be evicted when those behind it have been ranked."""
        return any(each is layer for each, _ in self._waiting)

    def check(self) -> None:
        """Refuse to go on where an answer would be wrong.

        Raises CacheStateError after a forward that failed, and after `kvpolicy.restore(model)`.
        """
        if self.failure is not None:
            raise CacheStateError(
                f"an earlier forward through this cache failed ({self.failure}), so its layers do "
                "not agree on what they hold. Call cache.reset() and start over; the model is fine."
            )
        if not is_attached(self.config):
            raise CacheStateError(
                "the model was restored, or its attention set anew "
                f"({self.config._attn_implementation!r}), while this cache was in use, so eviction "
                "cannot observe it. Use the cache inside its `with`, or make a new one: "
                "policy.cache(model)."
            )

    def new_real_tokens(
        self, mask: Any, seen: list[int], length: int, held: int
    ) -> Bool[Tensor, "B Q"] | None:
        """Read a mask once for all layers that are given it."""
        if mask is None:
            return new_real_tokens(None, seen, length, held)
        if self._mask is None or self._mask() is not mask or self._seen != seen:
            self._real = new_real_tokens(mask, seen, length, mask.shape[-1])
            self._mask, self._seen = weakref.ref(mask), seen
        return self._real

    def check_causal(self, mask: Any, lengths: list[int]) -> None:
        """Find out once for all layers whether a prompt's mask only hides padding."""
        if mask is not None and (self._causal is None or self._causal() is not mask):
            check_causal(mask, lengths)
            self._causal = weakref.ref(mask)

    @contextmanager
    def recording_failure(self) -> Iterator[None]:
        """Remember what went wrong in the middle of a forward."""
        try:
            yield
        except BaseException as error:
            self.failure = f"{type(error).__name__}: {error}"
            raise

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what is remembered of a mask: it belongs to one forward."""
        forgotten: dict[str, Any] = {"_mask": None, "_causal": None, "_real": None, "_waiting": []}
        return vars(self) | forgotten
