"""The kinds of parts: their names, interfaces and hooks, and the settings of a policy."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from kvpolicy.cache.storage.protocol import Storage
from kvpolicy.prefill.pattern import PrefillPattern
from kvpolicy.stages.allocation import Allocator
from kvpolicy.stages.compaction import Compactor
from kvpolicy.stages.division import Divider
from kvpolicy.stages.scoring import Scorer
from kvpolicy.stages.selection import Selector
from kvpolicy.stages.smoothing import Smoother
from kvpolicy.task import Task


@attrs.frozen
class Kind:
    """One kind of part that plugins offer under a name.

    `title` is what messages call the kind, with its `article`. `argument` is the argument of
    `compose`, or of `policy.cache`, that takes a part of this kind; None for recipes and tasks.
    """

    name: str
    interface: type
    argument: str | None
    article: str = "a"

    @property
    def title(self) -> str:
        """The kind's name in messages.

        >>> KINDS["prefill_pattern"].title
        'prefill pattern'
        """
        return self.name.replace("_", " ")

    @property
    def hook(self) -> str:
        """The hook by which plugins offer parts of this kind.

        >>> KINDS["scorer"].hook
        'kvpolicy_scorers'
        """
        return f"kvpolicy_{self.name}s"

    @property
    def verbs(self) -> tuple[str, ...]:
        """What a part of this kind must have.

        >>> KINDS["selector"].verbs
        ('select',)
        """
        return tuple(name for name in vars(self.interface) if not name.startswith("_"))


KINDS: Mapping[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("scorer", Scorer, "scorer"),
        Kind("smoother", Smoother, "smoother"),
        Kind("allocator", Allocator, "allocator", "an"),
        Kind("selector", Selector, "selector"),
        Kind("compactor", Compactor, "compactor"),
        Kind("storage", Storage, "storage"),
        Kind("prefill_pattern", PrefillPattern, "prefill"),
        Kind("divider", Divider, "divider"),
        Kind("recipe", Mapping, None),
        Kind("task", Task, None),
    )
}
"""Every kind, in the order in which lists show them."""

PARTS = ("scorer", "smoother", "allocator", "selector", "compactor")
"""The kinds that a policy is composed of."""

SETTINGS = (
    *("budget", "group", "group_order", "layer_group", "sinks", "recent"),
    *("every", "per_turn", "slot_positions"),
)
"""The other arguments of `compose`."""
