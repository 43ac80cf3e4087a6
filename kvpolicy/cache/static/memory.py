"""One layer's contents in a static cache: as they are in a prompt, static rows behind it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs

from kvpolicy.cache.memory.contents import Contents
from kvpolicy.cache.storage.layer_memory import LayerMemory


@attrs.frozen(kw_only=True, eq=False)
class StaticStorage:
    """Takes the place of a storage: between two prompts contents are in static rows.

    `form_of` returns the static rows of contents, or the contents themselves where no step can be
    captured yet. It takes those of an earlier conversation, to use their buffers again, and which
    of the layers that evict it is.
    """

    form_of: Callable[[Contents, Any, int], Any]

    def load(self, stored: Any) -> Contents:
        """Return the contents as a prompt reads and evicts them."""
        contents: Contents = stored if isinstance(stored, Contents) else stored.load()
        return contents

    def prefetch(self, stored: Any) -> None:
        """Do nothing: everything is on the device."""


@attrs.define(eq=False)
class StaticMemory(LayerMemory):
    """The contents of one layer; `stored` is there between two forwards.

    `spare` are the static rows of the conversation before this one. `base` counts the columns that
    the layer had read when its rows were stored.
    """

    storage: Any = None
    layer: int = 0
    spare: Any = None
    base: int = 0

    @property
    def step(self) -> Any:
        """The static rows, if a step may be captured; else None."""
        return None if self.stored is None or isinstance(self.stored, Contents) else self.stored

    @property
    def layout(self) -> Contents | None:
        """The contents; of static rows the slots alone."""
        if self.contents is not None or self.stored is None:
            return self.contents
        layout: Contents = self.stored if self.step is None else self.stored.layout
        return layout

    @property
    def added(self) -> int:
        """Tokens that steps have added since the rows were stored. Waits for the device."""
        return 0 if self.step is None else self.step.added

    def put_away(self, *, evicted: bool = False) -> None:
        """Keep the contents in static rows until the next prompt."""
        if self.contents is None:
            return
        before, seen = self.step or self.spare, self.base + self.added
        self.stored = self.storage.form_of(self.contents, before, self.layer)
        self.contents, self.base = None, seen
        if self.step is not None:
            self.spare = None
            self.step.count.restart(seen)

    def is_consistent(self, seen: int) -> bool:
        """Whether all that is held fits together, after `seen` tokens."""
        contents = self.loaded()
        return seen == 0 if contents is None else contents.is_consistent(seen)
