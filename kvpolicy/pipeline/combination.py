"""Checks of which parts and settings go together. `compose` refuses the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from kvpolicy.budget import Within
from kvpolicy.errors import InvalidValueError, shown
from kvpolicy.pipeline.capabilities import (
    ChecksParts,
    ChecksSettings,
    across_heads,
    is_prefill_only,
    is_uneven,
    keeps_remainder,
)
from kvpolicy.pipeline.checks import at_work
from kvpolicy.pipeline.targets import check_target
from kvpolicy.pipeline.title import Titles
from kvpolicy.stages.scoring import Scorer

Parts = Mapping[str, object]
"""The five parts of a policy, by kind."""


def check_all(parts: Parts, titles: Titles, settings: Mapping[str, Any], protected: int) -> None:
    """Raise InvalidValueError for parts and settings that do not go together."""
    budget, every = settings["budget"], settings["every"]
    bound = budget.cap if isinstance(budget, Within) else budget
    if isinstance(bound, int):
        check_protected(bound, settings["sinks"], protected)
        check_room_for_remainder(bound, parts, titles, protected)
    if isinstance(budget, Within):
        check_target(budget, parts, titles, settings)
    check_heads(parts, titles)
    check_slots(parts, titles, slot_positions=settings["slot_positions"])
    if every is not None:
        check_every(every, parts, titles)
        check_turns(every, per_turn=settings["per_turn"])
    check_parts(parts, titles)
    check_settings(parts, titles, settings)


def check_window(scorer: Scorer, titles: Titles) -> None:
    """Raise InvalidValueError unless the scorer's window is a count or None."""
    with at_work(titles["scorer"]):
        window = scorer.window
    if window is not None and (type(window) is not int or window < 1):
        raise InvalidValueError(
            f"the window of {type(scorer).__name__} must be an int of at least 1, or None for all "
            f"queries, but is {shown(window)}."
        )


def check_protected(budget: int, sinks: int, protected: int) -> None:
    """Raise InvalidValueError if a budget is smaller than the number of protected positions."""
    if budget < protected:
        raise InvalidValueError(
            f"budget {budget} is smaller than the {protected} positions that are always kept: "
            f"sinks {sinks} + recent {protected - sinks}. Raise the budget, or lower sinks or "
            "recent (recent defaults to the scorer's window)."
        )


def check_room_for_remainder(budget: int, parts: Parts, titles: Titles, protected: int) -> None:
    """Raise InvalidValueError if a budget has no room for the row of a remainder."""
    least = max(1, protected) + 1
    if budget < least and _says(parts, titles, "compactor", keeps_remainder):
        raise InvalidValueError(
            f"budget {budget} is smaller than {least}: {titles['compactor']} keeps one row for "
            f"what is evicted, and {max(1, protected)} positions are always kept. Raise the "
            "budget, lower sinks or recent, or use compactor='gather'."
        )


def check_slots(parts: Parts, titles: Titles, *, slot_positions: bool) -> None:
    """Raise InvalidValueError if keys turn to their slots, and a remainder has none."""
    if slot_positions and _says(parts, titles, "compactor", keeps_remainder):
        raise InvalidValueError(
            f"slot_positions=True turns each key to its place in the cache, but the row of "
            f"{titles['compactor']} stands for many keys and has no place. Use "
            "slot_positions=False, or compactor='gather'."
        )


def check_heads(parts: Parts, titles: Titles) -> None:
    """Raise InvalidValueError if the allocator makes heads uneven and another part forbids that."""
    if not _says(parts, titles, "allocator", is_uneven):
        return
    for kind in parts:
        if _says(parts, titles, kind, across_heads):
            raise InvalidValueError(
                f"{titles[kind]} needs all heads of a layer to hold the same positions, but "
                f"{titles['allocator']} gives each head a budget of its own. Use an allocator "
                "that treats the heads of a layer alike, such as 'uniform'."
            )


def check_every(every: int, parts: Parts, titles: Titles) -> None:
    """Raise InvalidValueError if a part cannot evict while the model decodes."""
    for kind in parts:
        if _says(parts, titles, kind, is_prefill_only):
            raise InvalidValueError(
                f"every={every} evicts while decoding, but {titles[kind]} needs the queries of a "
                "whole prompt. Leave every=None, or use another part."
            )


def check_turns(every: int, *, per_turn: bool) -> None:
    """Raise InvalidValueError if what earlier turns kept would be evicted while decoding."""
    if per_turn:
        raise InvalidValueError(
            f"per_turn=True keeps what earlier turns kept, but every={every} lets everything held "
            "compete while decoding. Use every=None, or per_turn=False."
        )


def check_parts(parts: Parts, titles: Titles) -> None:
    """Call `check_parts` of each part that has it."""
    for kind, part in parts.items():
        with at_work(titles[kind]):
            if isinstance(part, ChecksParts):
                part.check_parts(parts)


def check_settings(parts: Parts, titles: Titles, settings: Mapping[str, object]) -> None:
    """Let each part that goes with some settings only check those of its policy."""
    for kind, part in parts.items():
        with at_work(titles[kind]):
            if isinstance(part, ChecksSettings):
                part.check_settings(settings)


def _says(parts: Parts, titles: Titles, kind: str, demand: Callable[[object], bool]) -> bool:
    """Return what a part declares, and name the part if that fails."""
    with at_work(titles[kind]):
        return bool(demand(parts[kind]))
