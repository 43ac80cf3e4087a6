"""What the layers of one cache share: the policy, the model's config and how the cache is doing."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from jaxtyping import Bool
from torch import Tensor

from kvpolicy.errors import CacheStateError
from kvpolicy.huggingface.attention import is_attached
from kvpolicy.huggingface.masks import new_real_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from kvpolicy.policy import Policy


class CacheState:
    """One per cache; layers hold it, so that they need not hold the cache."""

    def __init__(self, policy: Policy, config: PreTrainedConfig, num_layers: int) -> None:
        """Start with nothing wrong."""
        self.policy = policy
        self.config = config
        self.num_layers = num_layers
        self.failure: str | None = None
        self._mask: weakref.ref[Any] | None = None
        self._seen: list[int] = []
        self._real: Bool[Tensor, "B Q"] | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> CacheState:
        """Copy the state; the policy and the model's config stay the ones they are."""
        twin = CacheState(self.policy, self.config, self.num_layers)
        twin.failure = self.failure
        return twin

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
        return vars(self) | {"_mask": None, "_real": None}
