"""A pipeline: five parts and their settings. It runs the stages and checks their results."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import attrs
from attrs.validators import optional
from jaxtyping import Float, Int
from torch import Tensor

from kvpolicy.budget import Budget, Within, checked_budget, plain
from kvpolicy.observation.fold import Fold
from kvpolicy.observation.observation import Observation
from kvpolicy.options import boolean, count, natural, natural_or_share, one_of
from kvpolicy.pipeline import combination
from kvpolicy.pipeline.allocating import Allocating
from kvpolicy.pipeline.capabilities import keeps_remainder
from kvpolicy.pipeline.checks import (
    at_work,
    checked_fold,
    checked_scores,
    checked_state,
    doubt_numbers,
)
from kvpolicy.pipeline.compacting import Compacting
from kvpolicy.pipeline.counting import Counting
from kvpolicy.pipeline.describe import described
from kvpolicy.pipeline.selections import checked_selection
from kvpolicy.pipeline.targets import needs_of_all
from kvpolicy.pipeline.title import Titles, title_of
from kvpolicy.stages import grouping
from kvpolicy.stages.allocation import Allocator
from kvpolicy.stages.compaction import Compactor
from kvpolicy.stages.grouping import Group, GroupOrder, LayerGroup, order_of
from kvpolicy.stages.scoring import NotingScorer, RunningScorer, Scorer, with_state
from kvpolicy.stages.selection import Selection, Selector, protect
from kvpolicy.stages.smoothing import MeanSmoother, Smoother, fold_of


@attrs.frozen(kw_only=True)
class Pipeline(Counting, Allocating, Compacting):
    """Five parts and their settings. It knows neither plugins nor models.

    Every method runs one stage and checks what the part returned. Its errors name the part and its
    plugin: InvalidComponentError if the part returned what its interface forbids, and
    ComponentFailedError if it raised.
    """

    scorer: Scorer
    smoother: Smoother
    allocator: Allocator
    selector: Selector
    compactor: Compactor
    budget: Budget = attrs.field(converter=checked_budget)
    group: Group = attrs.field(default="mean", validator=one_of("mean", "max", "sum"))
    group_order: GroupOrder = attrs.field(validator=one_of("before", "after"))
    layer_group: LayerGroup | None = attrs.field(default=None, validator=grouping.layer_group)
    sinks: int = attrs.field(default=0, validator=natural)
    recent: int | float = attrs.field(default=0, validator=natural_or_share)
    every: int | None = attrs.field(default=None, validator=optional(count))
    per_turn: bool = attrs.field(default=False, validator=boolean)
    slot_positions: bool = attrs.field(default=False, validator=boolean)
    titles: Titles = attrs.field(factory=dict, eq=False, repr=False)

    @group_order.default
    def _as_published(self) -> GroupOrder:
        return order_of(self.group)

    def __attrs_post_init__(self) -> None:
        """Raise InvalidValueError for parts and settings that do not go together."""
        object.__setattr__(self, "titles", self._complete_titles())
        combination.check_window(self.scorer, self.titles)
        combination.check_all(self.parts, self.titles, self.settings, self.protected)

    def _complete_titles(self) -> Titles:
        return {kind: title_of(kind, part, self.titles) for kind, part in self.parts.items()}

    @property
    def parts(self) -> dict[str, object]:
        """The five parts, by kind."""
        kinds = ("scorer", "smoother", "allocator", "selector", "compactor")
        return {kind: getattr(self, kind) for kind in kinds}

    @property
    def settings(self) -> dict[str, object]:
        """All arguments of `compose` that are not parts, by name."""
        names = (field.name for field in attrs.fields(Pipeline))
        return {name: getattr(self, name) for name in names if name not in (*self.parts, "titles")}

    @property
    def needs(self) -> dict[str, str]:
        """The optional fields of an observation that must be there, and what needs each."""
        return needs_of_all(self.parts, self.titles, self.target)

    # Layers read these at every token, and isinstance with a Protocol is slow.
    @cached_property
    def running_scorer(self) -> RunningScorer | None:
        """The scorer if it keeps running state, else None."""
        return self.scorer if isinstance(self.scorer, RunningScorer) else None

    @cached_property
    def noting_scorer(self) -> NotingScorer | None:
        """The scorer if it takes notes, which neither a smoother nor turns change; else None."""
        is_plain = type(self.smoother) is MeanSmoother and not self.per_turn
        return self.scorer if is_plain and isinstance(self.scorer, NotingScorer) else None

    @cached_property
    def remainder_rows(self) -> int:
        """How many rows of a head's budget stand for what it has evicted: 1, or 0."""
        return int(keeps_remainder(self.compactor))

    @cached_property
    def target(self) -> Within | None:
        """The budget if it is an error target, else None."""
        return self.budget if isinstance(self.budget, Within) else None

    @cached_property
    def window(self) -> int | None:
        """How many of the last queries are shown: to the scorer, or to measure an error target."""
        least = 0 if self.target is None else self.target.window
        return None if self.scorer.window is None else max(self.scorer.window, least)

    @cached_property
    def fold(self) -> Fold:
        """The smoother's temporal part, as it is passed to the scorer."""
        return checked_fold(self.titles["smoother"], fold_of(self.smoother))

    def rank(self, observation: Observation) -> Float[Tensor, "B N S"]:
        """Score every position for every key/value head. Protected positions get +inf."""
        scores = self.group_scores(observation)
        doubt_numbers(scores, observation)
        recent = self.recent_of(observation.budget)
        return protect(scores, observation, sinks=self.sinks, recent=recent)

    def group_scores(self, observation: Observation) -> Float[Tensor, "B N S"]:
        """Score every position for every key/value head, and smooth the scores.

        N is 1 for a layer whose heads keep a position all together.
        """
        heads = 1 if observation.kept_together else observation.keys.shape[1]
        how = (heads, observation.readers, self.group, self.layer_group)
        if self.group_order == "after":
            return grouping.reduce_readers(self.score(observation), *how)
        grouped = grouping.reduce_readers(self._scored(observation), *how)
        spread = grouping.spread_groups(grouped, observation.queries.shape[1])
        return grouping.reduce_groups(self._smoothed(spread, observation), heads, "mean")

    def score(self, observation: Observation) -> Float[Tensor, "B H S"]:
        """Score every position for every query head, and smooth the scores."""
        return self._smoothed(self._scored(observation), observation)

    def _scored(self, observation: Observation) -> Float[Tensor, "B H S"]:
        scorer = self.titles["scorer"]
        with at_work(scorer, observation):
            if self.running_scorer is not None:
                observation = with_state(self.running_scorer, observation)
            scores = self.scorer.score(observation, self.fold)
        return checked_scores(scorer, scores, observation)

    def _smoothed(
        self, scores: Float[Tensor, "B H S"], observation: Observation
    ) -> Float[Tensor, "B H S"]:
        smoother = self.titles["smoother"]
        with at_work(smoother, scores, observation):
            smooth = self.smoother.spatial(scores, observation)
        return scores if smooth is scores else checked_scores(smoother, smooth, observation)

    def accumulate(self, observation: Observation) -> Float[Tensor, "B H S *rest"] | None:
        """Return the scorer's running state after one more forward; None if it keeps none."""
        if self.running_scorer is None:
            return None
        with at_work(self.titles["scorer"], observation):
            state = self.running_scorer.accumulate(observation)
        return checked_state(self.titles["scorer"], state, observation)

    def choose(self, scores: Float[Tensor, "B N S"], budgets: Int[Tensor, "B N"]) -> Selection:
        """Select as many positions for each head as its budget says."""
        with at_work(self.titles["selector"], scores, budgets):
            selection = self.selector.select(scores, budgets)
        return checked_selection(self.titles["selector"], selection, budgets, scores)

    def to_dict(self) -> dict[str, Any]:
        """Return compose's arguments as JSON data; InvalidComponentError for parts of no plugin."""
        parts = {kind: described(self.titles[kind], part) for kind, part in self.parts.items()}
        return parts | self.settings | {"budget": plain(self.budget)}
