"""From names and options to a policy."""

from __future__ import annotations

from typing import Never, TypedDict, Unpack

from kvpolicy.arguments import changed, checked_names, policy_fields
from kvpolicy.budget import Budget
from kvpolicy.discovery.registry import find
from kvpolicy.named import Part
from kvpolicy.policy import Policy
from kvpolicy.stages.allocation import Allocator
from kvpolicy.stages.compaction import Compactor
from kvpolicy.stages.grouping import Group, GroupOrder, LayerGroup
from kvpolicy.stages.scoring import Scorer
from kvpolicy.stages.selection import Selector
from kvpolicy.stages.smoothing import Smoother


class Settings(TypedDict, total=False):
    """The arguments of `compose`, each of which may be left out; see `Policy` for what they mean.

    A part may also be a mapping of options without a name: it changes these options only.
    """

    scorer: Part[Scorer]
    smoother: Part[Smoother]
    allocator: Part[Allocator]
    selector: Part[Selector]
    compactor: Part[Compactor]
    budget: Budget
    group: Group
    group_order: GroupOrder | None
    layer_group: LayerGroup | None
    sinks: int
    recent: int | float | None
    every: int | None
    per_turn: bool
    slot_positions: bool


def compose(
    *,
    scorer: Part[Scorer],
    smoother: Part[Smoother] = "mean",
    allocator: Part[Allocator] = "uniform",
    selector: Part[Selector] = "topk",
    compactor: Part[Compactor] = "gather",
    budget: Budget = 1024,
    group: Group = "mean",
    group_order: GroupOrder | None = None,
    layer_group: LayerGroup | None = None,
    sinks: int = 0,
    recent: int | float | None = None,
    every: int | None = None,
    per_turn: bool = False,
    slot_positions: bool = False,
    **unknown: Never,
) -> Policy:
    """Build a policy from its parts and settings.

    Each part is a name, a mapping of `name` and options, or an object that has the interface of its
    kind; `kvpolicy list` prints the names and the options. See `Policy` for the settings.

    `recent` defaults to the scorer's window: the scorer judges by the queries of these tokens.

    >>> policy = compose(scorer="restkv", smoother={"name": "spatiotemporal", "alpha": 0.5})
    >>> policy.smoother.alpha, policy.recent
    (0.5, 32)

    Raises UnknownComponentError for a name that no plugin offers, InvalidOptionError for an option
    or a setting that does not exist, InvalidValueError for a value that is refused and for parts
    that do not go together, InvalidComponentError for an object that is no such part.
    """
    arguments = {
        "scorer": scorer,
        "smoother": smoother,
        "allocator": allocator,
        "selector": selector,
        "compactor": compactor,
        "budget": budget,
        "group": group,
        "group_order": group_order,
        "layer_group": layer_group,
        "sinks": sinks,
        "recent": recent,
        "every": every,
        "per_turn": per_turn,
        "slot_positions": slot_positions,
    }
    checked_names(unknown, "a policy", arguments)
    return Policy.from_dict(arguments)


def recipe(name: str, /, **changes: Unpack[Settings]) -> Policy:
    """Build the method of that name, with some arguments of `compose` changed.

    A mapping without a name changes options of the recipe's own part.

    >>> recipe("restkv", budget=128, scorer={"window": 16})
    kvpolicy.recipe('restkv', scorer={'window': 16}, budget=128)
    >>> recipe("restkv", budget=128) == compose(
    ...     scorer="restkv", smoother="spatiotemporal", budget=128)
    True

    Raises what `compose` raises.
    """
    arguments = find("recipe", name).build()
    checked_names(changes, f"recipe {name!r}", arguments)
    return Policy(**policy_fields(changed(arguments, changes)), recipe=name)
