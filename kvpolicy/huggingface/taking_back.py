"""Take the tokens of a refused forward out of a layer again."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import attrs


def taking_back(layer: Any) -> Callable[[], None]:
    """Return a function that makes a PolicyLayer what it is now, as long as nothing was evicted.

    It keeps the present rows alive, so it is let go before anything is evicted.
    """
    memory, seen, contents = layer.memory, layer.seen, layer.memory.contents
    schedule = attrs.evolve(layer.schedule)
    if contents is None:
        slots, state, ragged = None, None, None
        before: list[Any] = []
    else:
        # No list or tensor of slots is written to: each change makes new ones.
        slots, state, ragged = copy.copy(contents.slots), contents.state, contents.ragged
        before = [(each, each.buffer, each.held) for each in (contents.keys, contents.values)]

    def take_back() -> None:
        layer.seen, layer.forward, memory.contents = seen, None, contents
        layer.schedule = schedule
        if contents is not None and slots is not None:
            contents.slots, contents.state, contents.ragged = slots, state, ragged
        for table, buffer, held in before:
            table.buffer, table.held = buffer, held

    return take_back
