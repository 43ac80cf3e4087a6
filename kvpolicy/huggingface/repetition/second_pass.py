"""What one forward of a cache has left to do: its layers wait until the prompt was repeated."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from kvpolicy.cache.memory.contents import Contents
from kvpolicy.errors import UnsupportedModelError
from kvpolicy.observation.repetition import Repetition
from kvpolicy.pipeline.pipeline import Pipeline
from kvpolicy.pipeline.repetition import repetition_of

UNKNOWN_IDS = (
    "{scorer} has the model repeat its prompts, and this cache was not told the ids of the tokens "
    "that were read. Call the model, or its generate, with input_ids and without torch.compile, "
    "and give the cache by name; or use another recipe, such as 'snapkv'."
)


class Ready(NamedTuple):
    """A layer that has read a prompt: its attention module, what it holds, and how it evicts."""

    module: nn.Module
    contents: Contents
    finish: Callable[[], None]


class SecondPass:
    """Knows the ids of the tokens that are read now, and collects the layers that wait.

    >>> import kvpolicy
    >>> SecondPass.of(kvpolicy.recipe("snapkv", budget=64)) is None
    True
    """

    def __init__(self, repetition: Repetition, scorer: str) -> None:
        """Know nothing; `scorer` is what the scorer is called in messages."""
        self.repetition = repetition
        self.refusal = UNKNOWN_IDS.format(scorer=scorer)
        self._ids: Int[Tensor, "B Q"] | None = None
        self._waiting: dict[int, Ready] = {}

    @classmethod
    def of(cls, policy: Pipeline) -> SecondPass | None:
        """Return what a policy needs; None if its scorer has no prompt repeated."""
        found = repetition_of(policy)
        return None if found is None else cls(found, str(policy.titles["scorer"]))

    @contextmanager
    def reading(self, ids: Int[Tensor, "B Q"]) -> Iterator[None]:
        """Say in a block which tokens are read. Layers that wait stay known behind it."""
        self._ids, self._waiting = ids, {}
        try:
            yield
        finally:
            self._ids = None

    def check_known(self) -> None:
        """Raise UnsupportedModelError unless the ids of what is read are known."""
        if self._ids is None:
            raise UnsupportedModelError(self.refusal)

    def new_ids(self, real: Bool[Tensor, "B Q"] | None) -> Int[Tensor, "B Q"]:
        """Return the ids of the tokens that are read now; -1 for those that are not real."""
        if self._ids is None:
            raise UnsupportedModelError(self.refusal)
        ids = self._ids.to(torch.int32)
        return ids if real is None else ids.where(real.to(ids.device), -1)

    def wait(self, layer: int, ready: Ready) -> None:
        """Let a layer wait."""
        self._waiting[layer] = ready

    @property
    def waiting(self) -> list[Ready]:
        """The layers that wait, in order."""
        return [each for _, each in sorted(self._waiting.items())]

    def finish(self) -> None:
        """Let the layers evict, one after another; those that have are forgotten."""
        for layer in sorted(self._waiting):
            self._waiting.pop(layer).finish()

    def clear(self) -> None:
        """Forget the layers that wait."""
        self._waiting = {}
