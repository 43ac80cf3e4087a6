"""What layers that do not evict hold before a forward: a refused forward gives it back to them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import attrs
from transformers.cache_utils import DynamicSlidingWindowLayer, LinearAttentionLayer


@attrs.define(eq=False)
class OtherLayers:
    """The layers that a forward changes before the first layer that evicts.

    >>> OtherLayers().bring_back()
    True
    """

    before: list[tuple[Any, dict[str, Any]]] | None = attrs.field(factory=list)
    """Each layer with its attributes; None if a layer cannot be brought back."""

    def note(self, layers: Iterable[Any]) -> None:
        """Take note of them, of all the layers of a cache, when a forward begins."""
        self.before = []
        for layer in layers:
            if isinstance(layer, LinearAttentionLayer):
                # It writes into the state that it has.
                self.before = None
                return
            if type(layer) is DynamicSlidingWindowLayer:
                # It makes new tensors at each forward.
                self.before.append((layer, vars(layer).copy()))
            elif type(layer).__name__ != "DummyLayer":
                return

    def bring_back(self) -> bool:
        """Make the layers as they were noted, and let go. Return False if one cannot be."""
        before, self.before = self.before, []
        for layer, attributes in before or []:
            vars(layer).clear()
            vars(layer).update(attributes)
        return before is not None

    def forget(self) -> None:
        """Let go of what was noted, since more is changed from here on."""
        self.before = []
