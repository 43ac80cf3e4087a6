"""A policy: five parts and a budget, run in order on one layer's observation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import attrs
from attrs.validators import optional
from jaxtyping import Float
from torch import Tensor

from kvpolicy.budget import Budget, checked_budget, positions_of
from kvpolicy.checks import (
    at_work,
    checked_budgets,
    checked_compaction,
    checked_scores,
    checked_selection,
)
from kvpolicy.errors import InvalidValueError
from kvpolicy.options import count, natural, one_of
from kvpolicy.stages.allocation import Allocator
from kvpolicy.stages.compaction import Compactor
from kvpolicy.stages.observation import Observation
from kvpolicy.stages.scoring import Scorer
from kvpolicy.stages.selection import Selection, Selector, protect
from kvpolicy.stages.smoothing import Smoother, fold_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from kvpolicy.huggingface.cache import PolicyCache

Group = Literal["mean", "max", "sum"]


@attrs.frozen(kw_only=True)
class Policy:
    """Decides which cached positions of a layer survive, and writes the smaller cache.

    `budget` counts positions per key/value head and layer, observation window included (int), or
    is the share of the prompt that is kept (float in (0, 1]). `group` reduces the scores of the
    query heads that share a key/value head. The first `sinks` and the last `recent` tokens are
    always kept. `every` evicts again after so many decoded tokens; None: only when a prompt ends.

    Raises InvalidValueError if a value cannot be, or if the budget cannot hold what is protected.
    """

    scorer: Scorer
    smoother: Smoother
    allocator: Allocator
    selector: Selector
    compactor: Compactor
    budget: Budget = attrs.field(converter=checked_budget)
    group: Group = attrs.field(default="mean", validator=one_of("mean", "max", "sum"))
    sinks: int = attrs.field(default=0, validator=natural)
    recent: int = attrs.field(default=0, validator=natural)
    every: int | None = attrs.field(default=None, validator=optional(count))
    names: Mapping[str, str] = attrs.field(factory=dict, eq=False, repr=False)

    def __attrs_post_init__(self) -> None:
        """Refuse a scorer without a window, and a budget smaller than what it must hold."""
        window = self.scorer.window
        if window is not None and (type(window) is not int or window < 1):
            raise InvalidValueError(
                f"the window of {type(self.scorer).__name__} must be an int of at least 1, or None "
                f"for all queries, but is {window!r}."
            )
        if isinstance(self.budget, int) and self.budget < self.protected:
            raise InvalidValueError(
                f"budget {self.budget} is smaller than the {self.protected} positions that are "
                f"always kept: sinks {self.sinks} + recent {self.recent}. Raise the budget, or "
                "lower sinks or recent (recent defaults to the scorer's window)."
            )

    @property
    def protected(self) -> int:
        """Positions that are kept whatever their score."""
        return self.sinks + self.recent

    def positions(self, seen: int) -> int:
        """Return the budget in positions after `seen` tokens."""
        return positions_of(self.budget, seen, protected=self.protected)

    def keeps_all(self, held: int, seen: int) -> bool:
        """Whether a layer that holds `held` of `seen` tokens is left as it is.

        True below the budget, and for a prompt shorter than the scorer's window.
        """
        return held <= self.positions(seen) or seen < (self.scorer.window or 0)

    def select(self, observation: Observation) -> Selection:
        """Choose the rows of a layer that survive.

        Raises InvalidComponentError if a part returns what its interface forbids, and
        ComponentFailedError if it raises; either names the part and the plugin.
        """
        if self.keeps_all(observation.length, observation.seen):
            return Selection.everything(observation)
        budget = self.positions(observation.seen)
        observation = attrs.evolve(observation, budget=budget)
        scores = reduce_groups(self.score(observation), observation.keys.shape[1], self.group)
        scores = protect(scores, observation, sinks=self.sinks, recent=self.recent)
        with at_work(self, "allocator"):
            budgets = self.allocator.allocate(scores, observation, budget)
        budgets = checked_budgets(self, budgets, scores)
        with at_work(self, "selector"):
            selection = self.selector.select(scores, budgets)
        return checked_selection(self, selection, budgets, scores)

    def score(self, observation: Observation) -> Float[Tensor, "B H S"]:
        """Score every position for every query head, smoothed over time and space."""
        with at_work(self, "scorer"):
            scores = self.scorer.score(observation, fold_of(self.smoother))
        scores = checked_scores(self, "scorer", scores, observation)
        with at_work(self, "smoother"):
            scores = self.smoother.spatial(scores, observation)
        return checked_scores(self, "smoother", scores, observation)

    def evict(
        self, observation: Observation
    ) -> tuple[Float[Tensor, "B N K D"], Float[Tensor, "B N K Dv"]]:
        """Take one layer from its observation to its smaller keys and values."""
        return self.compact(observation.keys, observation.values, self.select(observation))

    def compact(
        self,
        keys: Float[Tensor, "B N S D"],
        values: Float[Tensor, "B N S Dv"],
        selection: Selection,
    ) -> tuple[Float[Tensor, "B N K D"], Float[Tensor, "B N K Dv"]]:
        """Write the selected rows into a smaller cache."""
        with at_work(self, "compactor"):
            compacted = self.compactor.compact(keys, values, selection)
        return checked_compaction(self, compacted, keys, values, selection)

    def cache(self, model: PreTrainedModel) -> PolicyCache:
        """Return an empty cache for `generate`, `forward` or a pipeline of `model`.

        Raises UnsupportedModelError, with the reason, if the model cannot be served exactly.
        """
        from kvpolicy.huggingface.cache import PolicyCache

        return PolicyCache(self, model)

    def to_dict(self) -> dict[str, Any]:
        """Return the arguments of `compose` that build this policy, as plain JSON data.

        Raises InvalidComponentError for a part that no installed plugin offers.
        """
        from kvpolicy.compose import to_dict

        return to_dict(self)

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Policy:
        """Build the policy that `to_dict` described."""
        from kvpolicy.compose import from_dict

        return from_dict(data)


def reduce_groups(
    scores: Float[Tensor, "B H S"], heads: int, group: Group
) -> Float[Tensor, "B N S"]:
    """Reduce the scores of the query heads that share one key/value head.

    >>> import torch
    >>> reduce_groups(torch.tensor([[[1.0], [3.0]]]), 1, "mean")
    tensor([[[2.]]])
    """
    batch, _, length = scores.shape
    grouped = scores.view(batch, heads, -1, length)
    if group == "max":
        return grouped.amax(2)
    return grouped.mean(2) if group == "mean" else grouped.sum(2)
