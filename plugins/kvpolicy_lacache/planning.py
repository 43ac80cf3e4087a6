"""The rows that a full layer drops: first from the cursor on, then in passes from the start."""

from __future__ import annotations

from typing import Literal

import attrs
import torch
from jaxtyping import Int
from torch import Tensor

from kvpolicy_lacache.ladder import Ladder, ceil_div


@attrs.frozen(kw_only=True, eq=False)
class Plan:
    """The rows that are kept, on the CPU, and the cursor: how many of them are compacted."""

    rows: Int[Tensor, " K"]
    cursor: int


@attrs.frozen(kw_only=True)
class Planner:
    """Plans how layers are compacted to `budget` rows. The first `start` rows are always kept.

    With `groups` "authors", teeth may be behind the last group, so a plan may have a row twice.
    Groups may also reach into the last rows. "fitting" prevents both.

    Shi et al., ICML 2025, https://arxiv.org/abs/2507.14204.

    >>> planner = Planner(ladder=Ladder(layers=2, span=1), budget=8, start=2)
    >>> planner.plan(2, length=10, layer=0)
    Plan(rows=tensor([0, 1, 2, 4, 6, 7, 8, 9]), cursor=4)
    """

    ladder: Ladder
    budget: int
    start: int
    groups: Literal["fitting", "authors"] = "fitting"

    def plan(self, cursor: int, *, length: int, layer: int) -> Plan:
        """Return which of `length` rows are kept. Rows before the cursor are already compacted."""
        plan = Plan(rows=torch.arange(length, device="cpu"), cursor=cursor)
        if self._at_once and length > self.budget:
            plan = self._continued(plan, layer)
            # Coarse groups end before the last rows, so a second pass may be needed.
            for _ in range(2):
                plan = self._started_over(plan, layer)
        return self._without_the_oldest(plan)

    @property
    def _at_once(self) -> int:
        """How many rows a pass from the start can drop without making groups coarser."""
        room = self.budget - self.start - self.ladder.layers
        return max(0, room // self.ladder.teeth) * self.ladder.drops

    def _excess(self, plan: Plan) -> int:
        return max(0, len(plan.rows) - self.budget)

    def _continued(self, plan: Plan, layer: int) -> Plan:
        """Compact from the cursor on, up to the last rows; these are as many as the layers."""
        room = self.budget - plan.cursor - self.ladder.layers
        needed = ceil_div(self._excess(plan), self.ladder.drops)
        groups = max(0, min(needed, room // self.ladder.teeth))
        return self._thinned(plan, first=plan.cursor, groups=groups, gap=1, layer=layer)

    def _started_over(self, plan: Plan, layer: int) -> Plan:
        """Compact from the start, in groups that are coarse enough for one pass."""
        ladder, excess = self.ladder, self._excess(plan)
        gap = max(1, ceil_div(excess, self._at_once))
        groups = ceil_div(excess, ladder.size(gap) - ladder.teeth)
        if self.groups == "fitting":
            room = len(plan.rows) - self.start - ladder.layers + ladder.drops - 1
            groups = max(0, min(groups, room // ladder.size(gap)))
        return self._thinned(plan, first=self.start, groups=groups, gap=gap, layer=layer)

    def _thinned(self, plan: Plan, *, first: int, groups: int, gap: int, layer: int) -> Plan:
        if not groups:
            return plan
        ladder = self.ladder
        # The places of the first tooth for which the last tooth is still in the group.
        places = 1 + gap * ladder.drops
        if self.groups == "authors":
            places = 1 + ladder.size(gap) - ladder.teeth
        rows = ladder.thinned(plan.rows, first=first, groups=groups, gap=gap, offset=layer % places)
        return Plan(rows=rows, cursor=first + groups * ladder.teeth)

    def _without_the_oldest(self, plan: Plan) -> Plan:
        """Drop the rows after the start that still exceed the budget, as StreamingLLM does."""
        excess = self._excess(plan)
        rows = torch.cat([plan.rows[: self.start], plan.rows[self.start + excess :]])
        return Plan(rows=rows, cursor=max(self.start, plan.cursor - excess))
