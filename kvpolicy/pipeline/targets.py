"""Which parts and settings go with an error target, and what it needs of a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from kvpolicy.budget import Within, written
from kvpolicy.errors import InvalidValueError
from kvpolicy.pipeline.capabilities import across_heads, counts_budget, needs_of
from kvpolicy.pipeline.checks import at_work
from kvpolicy.pipeline.title import Titles
from kvpolicy.stages.allocation import UniformAllocator
from kvpolicy.stages.compaction import GatherCompactor
from kvpolicy.stages.selection import TopKSelector

ONLY = {
    "allocator": (UniformAllocator, "uniform", "shares out a number of positions"),
    "selector": (TopKSelector, "topk", "may choose others than the highest scores"),
    "compactor": (GatherCompactor, "gather", "changes the rows that are kept"),
}
"""The part that an error target needs of a kind, its name, and why not others."""


def check_target(
    target: Within,
    parts: Mapping[str, object],
    titles: Titles,
    settings: Mapping[str, Any],
) -> None:
    """Raise InvalidValueError for parts and settings with which no error can be promised."""
    for reason, way in _reasons(parts, titles, settings["every"], settings["recent"]):
        raise InvalidValueError(
            f"a budget that is an error target ({written(target)}) does not go with {reason}. "
            f"{way}, or give a number of positions."
        )


def needs_of_all(
    parts: Mapping[str, object], titles: Titles, target: Within | None
) -> dict[str, str]:
    """Return the optional fields of an observation that a policy needs, and what needs each."""
    found = {need: str(titles[kind]) for kind, part in parts.items() for need in needs_of(part)}
    if target is not None:
        found.setdefault("output_weight", f"the budget '{written(target)}'")
    return found


def _reasons(
    parts: Mapping[str, object], titles: Titles, every: int | None, recent: int | float
) -> Iterator[tuple[str, str]]:
    for kind, (default, name, why) in ONLY.items():
        if type(parts[kind]) is not default:
            yield f"{titles[kind]}, which {why}", f"Use {kind}={name!r}"
    if every is not None:
        yield (
            f"every={every}: each eviction while decoding errs anew, and nothing bounds the sum",
            "Leave every=None",
        )
    for kind, part in parts.items():
        with at_work(titles[kind]):
            counts, even = counts_budget(part), across_heads(part)
        if counts:
            yield (
                f"{titles[kind]}, which computes with a number of positions",
                f"Use another {kind}",
            )
        if even:
            yield (
                f"{titles[kind]}, which needs all heads of a layer to hold the same positions",
                f"Use another {kind}",
            )
    if isinstance(recent, float):
        yield f"recent={recent}, a share of the budget", "Give recent as a number of tokens"
