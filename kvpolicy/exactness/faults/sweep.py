"""Inject an exception at every line of an operation, and look at what the cache answers then.

After the exception the cache reads on. It may answer as if the operation had not been begun, or as
if it was completed; or it may refuse, and be exact after a reset. Anything else is wrong (another
answer) or unclear (an exception that is no KvpolicyError).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any, Literal

import attrs
from torch import Tensor

from kvpolicy.errors import KvpolicyError
from kvpolicy.exactness.faults.injection import EXCEPTIONS, Injected, first_and_last
from kvpolicy.exactness.faults.operations import OPERATIONS, probe
from kvpolicy.exactness.limits import LIMIT
from kvpolicy.exactness.usages.inputs import small_policy
from kvpolicy.huggingface.cache import PolicyCache
from kvpolicy.testing.models import tiny_model

Outcome = Literal["exact", "refused", "wrong", "unclear"]
SETTINGS: tuple[tuple[str, str, str | None], ...] = (
    ("llama", "snapkv", None),
    ("llama", "adakv", None),
    ("llama", "h2o", None),
    ("llama", "streamingllm", None),
    ("llama", "lacache", None),
    ("llama", "layerdefensivekv", None),
    ("llama", "snapkv", "quantized"),
    ("llama", "adakv", "quantized"),
    ("llama", "snapkv", "offloaded"),
    ("gemma3_text", "snapkv", None),
)
"""Model family, recipe and storage: even and uneven heads, running state, renumbered slots, budgets
of all layers, storages, and layers of transformers beside ours."""


@attrs.frozen
class Fault:
    """What came of one injection."""

    where: str
    outcome: Outcome
    detail: str = ""


@attrs.frozen
class Subject:
    """A conversation, and one operation on it."""

    family: str
    recipe: str
    storage: str | None
    operation: str

    def faults(self, *, step: int = 1, repeated: bool = True) -> Iterator[Fault]:
        """Inject at every `step`-th line that runs; at none if a cache refuses the operation.

        A line in a loop runs many times. Without `repeated` only its first and its last time count.
        """
        model = tiny_model(self.family)
        start = self._conversation(model)
        run = OPERATIONS[self.operation]
        done = start.clone()
        try:
            with Injected() as counted:
                result = run(model, done)
        except KvpolicyError:
            return
        expected = [probe(model, each, 9, 3) for each in (start.clone(), done)]
        fresh = probe(model, self._cache(model), 8, 60)
        lines = counted.lines
        places = range(len(lines)) if repeated else first_and_last(lines)
        for number, place in enumerate(places[::step]):
            cache = start.clone()
            injected = Injected(place, EXCEPTIONS[number % len(EXCEPTIONS)])
            try:
                with injected:
                    result = run(model, cache)  # kept until nothing is injected any more
            except BaseException as error:  # noqa: BLE001 - what was injected, or what it became
                if "injected" not in str(error):
                    yield Fault(injected.where, "unclear", repr(error)[:200])
                    continue
            yield self._judged(model, cache, injected.where, expected, fresh)
        del result

    def _cache(self, model: Any) -> PolicyCache:
        return small_policy(self.recipe).cache(model, storage=self.storage)

    def _conversation(self, model: Any) -> PolicyCache:
        cache = self._cache(model)
        for seed, length in enumerate((60, 1, 1, 1)):
            probe(model, cache, seed, length)
        return cache

    def _judged(
        self, model: Any, cache: PolicyCache, where: str, expected: list[Tensor], fresh: Tensor
    ) -> Fault:
        try:
            answer = probe(model, cache, 9, 3)
        except KvpolicyError:
            return self._after_reset(model, cache, where, fresh)
        except Exception as error:  # noqa: BLE001 - to be counted
            return Fault(where, "unclear", repr(error)[:200])
        if any(_alike(answer, each) for each in expected):
            return Fault(where, "exact")
        return Fault(where, "wrong", "another answer")

    def _after_reset(self, model: Any, cache: PolicyCache, where: str, fresh: Tensor) -> Fault:
        try:
            cache.reset()
            answer = probe(model, cache, 8, 60)
        except Exception as error:  # noqa: BLE001 - to be counted
            return Fault(where, "unclear", f"after a reset: {error!r}"[:200])
        if _alike(answer, fresh):
            return Fault(where, "refused")
        return Fault(where, "wrong", "another answer after a reset")


def counts(faults: list[Fault]) -> Counter[Outcome]:
    """Count the outcomes."""
    return Counter(fault.outcome for fault in faults)


def _alike(found: Tensor, expected: Tensor) -> bool:
    return found.shape == expected.shape and bool((found - expected).abs().max() <= LIMIT)
