"""The spans of a batch: which positions stay whatever their scores, and how many these are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from kvpolicy.budget import Within
from kvpolicy.cache.eviction.division import Division, parts_of
from kvpolicy.cache.eviction.protection import joined
from kvpolicy.cache.eviction.views import View
from kvpolicy.cache.memory.sent import sent
from kvpolicy.cache.memory.slots import Slots
from kvpolicy.errors import InvalidValueError, shown
from kvpolicy.pipeline.describe import described
from kvpolicy.pipeline.pipeline import Pipeline
from kvpolicy.pipeline.title import Title
from kvpolicy.spans import (
    EXAMPLE,
    LARGEST,
    GivenSpans,
    Spans,
    checked_protect,
    checked_spans,
)
from kvpolicy.stages.division import OUTSIDE, Divider


@attrs.define(eq=False)
class BatchSpans:
    """The spans of every row of a batch. They follow the rows; a reset leaves them as given.

    `given` has the spans of each sequence, or one entry for all. Spans whose name is in `protect`
    stay whole: all heads of all layers keep their positions. They are part of the budget.
    """

    given: tuple[Spans, ...]
    protect: frozenset[str]
    divider: Divider | None = None
    """How the budget is divided among the spans; None: not at all."""
    divider_title: Title | None = None
    rows: list[int] = attrs.field(factory=list)
    """For each row of the batch its entry of `given`; empty where one is for all."""
    prompt: int | None = None
    """Tokens of the first prompt, padding included, where `generate` says it; else a forward's."""

    @classmethod
    def of_texts(
        cls,
        pipeline: Pipeline,
        spans: GivenSpans | None,
        protect: Sequence[str] | bool,
        divider: tuple[Divider, Title] | None = None,
    ) -> BatchSpans | None:
        """Return what a user says of the texts to come; None if that is nothing.

        Raises InvalidValueError for spans and names that are none, for spans that nothing uses,
        and for a budget that cannot hold what is protected.
        """
        if spans is None:
            if protect or divider:
                what = f"protect={shown(protect)}" if protect else str(divider and divider[1])
                raise InvalidValueError(
                    f"{what} is about spans, and there are none. Give spans=..., {EXAMPLE}."
                )
            return None
        given = checked_spans(spans)
        if protect is True and not divider and not any(each.ranges for each in given):
            return None  # `find_spans` found no image in these texts
        found = cls(given, checked_protect(protect, given), *(divider or ()))
        if not (found.protect or divider):
            raise InvalidValueError(
                "spans are given, and nothing uses them. Give the names of those that stay whole, "
                "protect=['system'], or divider='fair' to give each its share of the budget."
            )
        if divider and pipeline.target:
            raise InvalidValueError(
                f"{divider[1]} divides a number of positions among spans, and a budget that is an "
                "error target counts the best positions of a head. Give a number or a share as "
                "budget, or no divider."
            )
        found.check_budget(pipeline)
        return found

    def copied(self) -> BatchSpans:
        """Return the same spans, to go their own way from here."""
        return attrs.evolve(self, rows=list(self.rows), prompt=None)

    def to_dict(self) -> dict[str, Any] | None:
        """Return the arguments of `policy.cache` as plain data; None if no row needs them.

        Each row has a mapping, or one is for all.
        """
        rows = self.rows or range(len(self.given))
        spans = [{name: list(each) for name, each in self.given[at].ranges.items()} for at in rows]
        # Rows may have gone, and their spans with them.
        protect = sorted(self.protect & {name for row in spans for name in row})
        divider = None
        if self.divider is not None and self.divider_title is not None:
            divider = described(self.divider_title, self.divider)
        found = {"spans": spans, "protect": protect, "divider": divider}
        return found if protect or divider else None

    def clear(self) -> None:
        """Forget the batch."""
        self.rows, self.prompt = [], None

    def select_rows(self, rows: Tensor) -> None:
        """Keep, repeat or reorder the sequences of the batch."""
        if self.rows:
            self.rows = [self.rows[row] for row in rows.tolist()]

    def of(self, row: int) -> Spans:
        """Return the spans of a row."""
        return self.given[self.rows[row] if self.rows else 0]

    def protected(self, row: int, first: int, end: int) -> int:
        """Return how many of a row's positions `first` to `end` are protected."""
        return self.of(row).between(first, end, self.protect)

    def check_budget(self, pipeline: Pipeline) -> None:
        """Raise InvalidValueError for a number of positions that cannot hold what is protected."""
        target = pipeline.budget.cap if isinstance(pipeline.budget, Within) else pipeline.budget
        if isinstance(target, int):
            for spans in self.given:
                self._check_room(pipeline, spans, 0, LARGEST, target)

    def check(self, pipeline: Pipeline, slots: Slots, *, read: int, new: int) -> None:
        """Check a forward before anything is evicted: `new` of `read` tokens are new.

        Raises InvalidValueError as `begin` does, and for a share that cannot hold what is
        protected.
        """
        if read == new:
            later = max(0, (self.prompt or read) - read)
            lengths = [seen + later for seen in slots.seen]
            self.begin(pipeline, lengths, expanded=self.prompt is not None)
        if read > new > 1 or read == new:
            for row, (seen, newest) in enumerate(zip(slots.seen, slots.newest, strict=True)):
                self._check_share(pipeline, row, seen - newest, seen)

    def begin(self, pipeline: Pipeline, lengths: Sequence[int], *, expanded: bool = False) -> None:
        """Give each row of a first prompt its spans; `lengths` are the real tokens of each.

        If `expanded`, `generate` may have made several beams or samples of each sequence, which
        stand side by side. Raises InvalidValueError for spans that
        the prompt does not hold, for another number of sequences than have spans, and for a share
        that cannot hold what is protected.
        """
        sequences, rows = len(self.given), len(lengths)
        if rows % sequences or (sequences > 1 and rows > sequences and not expanded):
            raise InvalidValueError(
                f"there are spans for {sequences} sequences, but the batch has {rows}. Give a "
                "mapping for each sequence, or one for all."
            )
        self.rows = [row // (rows // sequences) for row in range(rows)] if sequences > 1 else []
        for row, length in enumerate(lengths):
            self.of(row).check_within(length, row)
            self._check_share(pipeline, row, 0, length)

    def _check_share(self, pipeline: Pipeline, row: int, first: int, end: int) -> None:
        """Check the budget of a turn with these positions of a row."""
        if not pipeline.keeps_all(end - first):
            budget = pipeline.kept_of(end - first)
            self._check_room(pipeline, self.of(row), first, end, budget)

    def _check_room(
        self, pipeline: Pipeline, spans: Spans, first: int, end: int, budget: int
    ) -> None:
        sinks = max(0, min(end, pipeline.sinks) - first)
        recent = pipeline.recent_of(budget)
        protected = spans.between(max(first, pipeline.sinks), end, self.protect)
        if protected and sinks + protected + recent > budget:
            names = [name for name in spans.ranges if name in self.protect]
            room = f"the budget of {budget}"
            if rows := pipeline.remainder_rows:
                room = f"the budget of {budget + rows}, of which {rows} is the remainder's"
            raise InvalidValueError(
                f"protect keeps {protected} positions of {', '.join(map(repr, names))}. "
                f"With sinks {sinks} + recent {recent} these are "
                f"{sinks + protected + recent}, more than {room}. Raise the "
                "budget, or protect fewer or shorter spans."
            )

    def apart(self, groups: Sequence[list[View]]) -> list[list[View]]:
        """Return the groups of rows such that the rows of each have the same spans."""
        if not self.rows:
            return list(groups)
        return [part for views in groups for part in self._apart(views)]

    def _apart(self, views: list[View]) -> list[list[View]]:
        rows = range(views[0].rows.start, views[0].rows.stop)
        if all(self.of(row) == self.of(rows[0]) for row in rows):
            return [views]
        return [[view.row(at) for view in views] for at in range(len(rows))]

    def reserved(self, view: View) -> int:
        """Return how many positions of the newest turn each head of a view keeps for spans."""
        return self.protected(view.rows.start, view.seen - view.newest, view.seen)

    def protects(self, positions: Int[Tensor, "b n S"], row: int) -> Bool[Tensor, "b n S"]:
        """Return which positions of rows with the spans of `row` are protected."""
        ranges, positions = self.of(row).ranges.items(), positions.contiguous()
        ends = [end for name, both in ranges if name in self.protect for end in both]
        # Inside of a span, an odd number of ends have been passed.
        return torch.searchsorted(sent(ends, positions.device), positions, right=True) % 2 == 1

    def division(
        self, pipeline: Pipeline, views: Sequence[View], budget: int, longest: int
    ) -> Division | None:
        """Return how heads that are shown in these views divide their budgets among spans.

        `longest` positions of a head are scored at most, heads of other processes included.
        """
        if self.divider is None or self.divider_title is None:
            return None
        view, device = views[0], views[0].positions.device
        first = max(view.seen - view.newest, pipeline.sinks)
        end = view.seen - pipeline.recent_of(budget)
        lengths = self._competing(view.rows.start, first, end)
        ranges = self.of(view.rows.start).ranges.values()
        ends = sent([each for both in ranges for each in both], device)
        found = []
        for each in views:
            passed = torch.searchsorted(ends, each.positions.contiguous(), right=True)
            of_each = torch.where(passed % 2 == 1, (passed + 1) // 2, 0)
            found.append(of_each[..., -view.newest :])
        parts = parts_of(self.divider, self.divider_title, lengths, device)
        return Division(spans=joined(found, longest), parts=parts)

    def _competing(self, row: int, first: int, end: int) -> dict[str, int]:
        """Return how many tokens of each span compete; the text outside of all comes first."""
        spans, names = self.of(row), frozenset(self.of(row).ranges)
        outside = max(0, end - first) - spans.between(first, end, names)
        return {OUTSIDE: outside} | {
            name: 0 if name in self.protect else spans.between(first, end, frozenset([name]))
            for name in spans.ranges
        }
