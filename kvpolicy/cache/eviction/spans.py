"""The spans of a batch: which positions stay whatever their scores, and how many these are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad

from kvpolicy.budget import Within
from kvpolicy.cache.eviction.division import Division, parts_of
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

    def to_dict(self) -> dict[str, Any]:
        """Return the arguments of `policy.cache` as plain data, a mapping for each row."""
        rows = self.rows or range(len(self.given))
        spans = [{name: list(each) for name, each in self.given[at].ranges.items()} for at in rows]
        title, divider = self.divider_title, None
        if self.divider is not None and title is not None:
            divider = described(title, self.divider)
        return {"spans": spans, "protect": sorted(self.protect), "divider": divider}

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

        Raises InvalidValueError for spans that the first prompt does not hold, for another number
        of sequences than have spans, and for a share that cannot hold what is protected.
        """
        if read == new:
            self._begin(slots, read)
        if read > new > 1 or read == new:
            for row, (seen, newest) in enumerate(zip(slots.seen, slots.newest, strict=True)):
                if not pipeline.keeps_all(newest):
                    budget = pipeline.positions(newest)
                    self._check_room(pipeline, self.of(row), seen - newest, seen, budget)

    def _begin(self, slots: Slots, read: int) -> None:
        """Give each row its spans; beams and samples of a sequence stand side by side."""
        sequences, later = len(self.given), max(0, (self.prompt or read) - read)
        if slots.batch % sequences:
            raise InvalidValueError(
                f"there are spans for {sequences} sequences, but the batch has {slots.batch}. Give "
                "a mapping for each sequence, or one for all. Nothing was changed."
            )
        times = slots.batch // sequences
        self.rows = [row // times for row in range(slots.batch)] if sequences > 1 else []
        for row, seen in enumerate(slots.seen):
            self.of(row).check_within(seen + later, row)

    def _check_room(
        self, pipeline: Pipeline, spans: Spans, first: int, end: int, budget: int
    ) -> None:
        sinks = max(0, min(end, pipeline.sinks) - first)
        recent = pipeline.recent_of(budget)
        protected = spans.between(max(first, pipeline.sinks), end, self.protect)
        if sinks + protected + recent > budget:
            names = [name for name in spans.ranges if name in self.protect]
            raise InvalidValueError(
                f"protect keeps {protected} positions of {', '.join(map(repr, names))}. "
                f"With sinks {sinks} + recent {recent} these are "
                f"{sinks + protected + recent}, more than the budget of {budget}. Raise the "
                "budget, or protect fewer or shorter spans. Nothing was changed."
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

    def division(self, pipeline: Pipeline, views: Sequence[View], budget: int) -> Division | None:
        """Return how heads that are shown in these views divide their budgets among spans."""
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
        return Division(spans=joined(found, [each.shape[-1] for each in found]), parts=parts)

    def _competing(self, row: int, first: int, end: int) -> dict[str, int]:
        """Return how many tokens of each span compete; the text outside of all comes first."""
        spans, names = self.of(row), frozenset(self.of(row).ranges)
        outside = max(0, end - first) - spans.between(first, end, names)
        return {OUTSIDE: outside} | {
            name: 0 if name in self.protect else spans.between(first, end, frozenset([name]))
            for name in spans.ranges
        }


def joined(of_heads: Sequence[Tensor], held: Sequence[int]) -> Tensor:
    """Return what is said of all heads [b n S]; behind a shorter head nothing is (0, False)."""
    if len(of_heads) == 1 and of_heads[0].shape[-1] == max(held):
        return of_heads[0]
    return torch.cat([pad(each, (0, max(held) - each.shape[-1])) for each in of_heads], 1)


def before_others(
    scores: Float[Tensor, "b n S"],
    protected: Bool[Tensor, "b n S"],
    lengths: Int[Tensor, "b n"],
) -> Float[Tensor, "b n S"]:
    """Return scores by which a head that keeps few positions loses none of a protected span.

    An allocator may give a head fewer positions than sinks, recent tokens and protected spans are
    together. All of them have the score +inf. There sinks and recent tokens get a finite one.
    """
    forced = scores.isposinf()
    few = forced.sum(-1) > lengths.to(scores.device, non_blocking=True)
    most = torch.finfo(scores.dtype).max
    return scores.masked_fill(forced & ~protected & few[..., None], most)


def without(
    scores: Float[Tensor, "b n S"], protected: Bool[Tensor, "b n S"], count: int
) -> Float[Tensor, "b n _"]:
    """Return the scores without those of `count` protected positions of each head, in order."""
    order = protected.to(torch.uint8).sort(dim=-1, stable=True).indices
    return scores.gather(-1, order[..., : scores.shape[-1] - count])
