"""A policy: five parts and a budget, run in order on one layer's observation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import attrs
from attrs.validators import optional
from jaxtyping import Float, Int
from torch import Tensor

from kvpolicy.budget import Budget, checked_budget, positions_of
from kvpolicy.observation.fold import Fold
from kvpolicy.observation.observation import Observation
from kvpolicy.options import boolean, count, natural, natural_or_share, one_of
from kvpolicy.pipeline.checks import (
    at_work,
    checked_budgets,
    checked_compaction,
    checked_fold,
    checked_layer_budgets,
    checked_scores,
    checked_selection,
    checked_state,
)
from kvpolicy.pipeline.combination import check_combination
from kvpolicy.stages.allocation import Allocator, ModelAllocator
from kvpolicy.stages.compaction import Compactor
from kvpolicy.stages.scoring import RunningScorer, Scorer, with_state
from kvpolicy.stages.selection import Selection, Selector, protect
from kvpolicy.stages.smoothing import Smoother, fold_of
from kvpolicy_kernels import sums_dtype

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from kvpolicy.cache.storage import StorageOption
    from kvpolicy.huggingface.cache import PolicyCache
    from kvpolicy.prefill import Prefill

Group = Literal["mean", "max", "sum"]


@attrs.frozen(kw_only=True)
class Policy:
    """Decides which cached positions of a layer survive, and writes the smaller cache.

    `budget` counts positions per key/value head and layer, observation window included (int), or
    is the share of the prompt that is kept (float in (0, 1]). `group` reduces the scores of the
    query heads that share a key/value head. The first `sinks` and the last `recent` tokens are
    always kept; a float `recent` is a share of the budget. `every` evicts again after so many
    decoded tokens; None: only when a prompt ends. With `slot_positions` the tokens held count as
    neighbours: rotary positions follow a key's place in the cache, not in the text.

    Raises InvalidValueError if a value cannot be, if the budget cannot hold what is protected, or
    if the parts do not go together.
    """

    scorer: Scorer
    smoother: Smoother
    allocator: Allocator
    selector: Selector
    compactor: Compactor
    budget: Budget = attrs.field(converter=checked_budget)
    group: Group = attrs.field(default="mean", validator=one_of("mean", "max", "sum"))
    sinks: int = attrs.field(default=0, validator=natural)
    recent: int | float = attrs.field(default=0, validator=natural_or_share)
    every: int | None = attrs.field(default=None, validator=optional(count))
    slot_positions: bool = attrs.field(default=False, validator=boolean)
    names: Mapping[str, str] = attrs.field(factory=dict, eq=False, repr=False)

    def __attrs_post_init__(self) -> None:
        """Refuse parts and settings that cannot work together."""
        check_combination(self)

    # Asked for every token and layer; what a part can do is slow to find out.
    @cached_property
    def running_scorer(self) -> RunningScorer | None:
        """The scorer, if it keeps running state."""
        return self.scorer if isinstance(self.scorer, RunningScorer) else None

    @cached_property
    def model_allocator(self) -> ModelAllocator | None:
        """The allocator, if it compares layers."""
        return self.allocator if isinstance(self.allocator, ModelAllocator) else None

    @cached_property
    def fold(self) -> Fold:
        """What scorers are handed of the smoother."""
        return checked_fold(self, fold_of(self.smoother))

    @property
    def protected(self) -> int:
        """Positions that are kept whatever their score; of a share budget, the least of them."""
        return self.sinks + self.recent_of(self.budget if isinstance(self.budget, int) else 0)

    def recent_of(self, budget: int) -> int:
        """Return how many of the last tokens are always kept within a budget of positions."""
        # Like a share of a prompt, one of a budget is not to lose a position to rounding.
        share = isinstance(self.recent, float)
        return math.floor(self.recent * budget + 1e-9) if share else int(self.recent)

    def positions(self, seen: int) -> int:
        """Return the budget in positions after `seen` tokens."""
        return positions_of(self.budget, seen, protected=self.protected)

    def keeps_all(self, seen: int) -> bool:
        """Whether a sequence of `seen` tokens is left as it is.

        True within the budget, and for a prompt shorter than the scorer's window.
        """
        return seen <= self.positions(seen) or seen < (self.scorer.window or 0)

    def select(self, observation: Observation) -> Selection:
        """Choose the rows of a layer that survive.

        Raises InvalidComponentError if a part returns what its interface forbids, and
        ComponentFailedError if it raises; either names the part and the plugin.
        """
        if self.keeps_all(observation.seen):
            return Selection.everything(observation)
        observation = attrs.evolve(observation, budget=self.positions(observation.seen))
        scores = self.rank(observation)
        return self.choose(scores, self.allocate(scores, observation))

    def rank(self, observation: Observation) -> Float[Tensor, "B N S"]:
        """Score every position for every key/value head; +inf protects sinks and recent tokens."""
        scores = reduce_groups(self.score(observation), observation.keys.shape[1], self.group)
        recent = self.recent_of(observation.budget)
        return protect(scores, observation, sinks=self.sinks, recent=recent)

    def score(self, observation: Observation) -> Float[Tensor, "B H S"]:
        """Score every position for every query head, smoothed over time and space."""
        with at_work(self, "scorer", observation):
            if self.running_scorer is not None:
                observation = with_state(self.running_scorer, observation)
            scores = self.scorer.score(observation, self.fold)
        scores = checked_scores(self, "scorer", scores, observation)
        with at_work(self, "smoother", scores, observation):
            smooth = self.smoother.spatial(scores, observation)
        return scores if smooth is scores else checked_scores(self, "smoother", smooth, observation)

    def accumulate(self, observation: Observation) -> Float[Tensor, "B H S *rest"] | None:
        """Bring the scorer's running state up to date with one forward; None if it has none."""
        if self.running_scorer is None:
            return None
        with at_work(self, "scorer", observation):
            state = self.running_scorer.accumulate(observation)
        return checked_state(self, state, observation)

    def allocate(
        self, scores: Float[Tensor, "B N S"], observation: Observation
    ) -> Int[Tensor, "B N"]:
        """Share out one layer's budget among its heads."""
        with at_work(self, "allocator", scores, observation):
            budgets = self.allocator.allocate(scores, observation, observation.budget)
        return checked_budgets(self, budgets, scores)

    def allocate_layers(
        self, scores: Sequence[Float[Tensor, "B N S"]], observations: Sequence[Observation]
    ) -> list[Int[Tensor, "B N"]]:
        """Share out the budget of all layers, for an allocator that compares them."""
        if self.model_allocator is None:
            return [self.allocate(*each) for each in zip(scores, observations, strict=True)]
        with at_work(self, "allocator", *scores, *observations):
            budgets = self.model_allocator.allocate_layers(
                scores, observations, observations[0].budget
            )
        return checked_layer_budgets(self, budgets, scores)

    def choose(self, scores: Float[Tensor, "B N S"], budgets: Int[Tensor, "B N"]) -> Selection:
        """Pick as many positions for each head as its budget says."""
        with at_work(self, "selector", scores, budgets):
            selection = self.selector.select(scores, budgets)
        return checked_selection(self, selection, budgets, scores)

    def evict(
        self, observation: Observation
    ) -> tuple[Float[Tensor, "B N K D"], Float[Tensor, "B N K Dv"]]:
        """Take one layer from its observation to its smaller keys and values."""
        selection = self.select(observation)
        return self.compact(observation.keys, observation.values, selection, observation)

    def compact(
        self,
        keys: Float[Tensor, "B N S D"],
        values: Float[Tensor, "B N S Dv"],
        selection: Selection,
        observation: Observation,
    ) -> tuple[Float[Tensor, "B N K D"], Float[Tensor, "B N K Dv"]]:
        """Write the selected rows into a smaller cache."""
        with at_work(self, "compactor", keys, values, selection, observation):
            compacted = self.compactor.compact(keys, values, selection, observation)
        return checked_compaction(self, compacted, keys, values, selection)

    def cache(
        self,
        model: PreTrainedModel,
        *,
        prefill: Prefill | None = None,
        storage: StorageOption | None = None,
        bits: int | None = None,
    ) -> PolicyCache:
        """Return an empty cache for `generate`, `forward` or a pipeline of `model`.

        By `prefill` a first prompt attends to less than all keys: "a-shape", "vertical-slash", a
        mapping of a name and options, or a `kvpolicy.prefill.PrefillPattern`. Scores are made of
        all keys all the same.

        `storage` says how layers keep what they hold between two forwards: "quantized", of `bits` 4
        or 8; "offloaded", in the host's memory; a mapping of a name and options, or a
        `kvpolicy.cache.storage.Storage`.

        Raises UnsupportedModelError, with the reason, if the model cannot be served exactly.
        """
        from kvpolicy.huggingface.cache import PolicyCache

        return PolicyCache(self, model, prefill=prefill, storage=storage, bits=bits)

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
    # Heads that agree tie, wherever they stand: in float32 the order of a sum would show.
    wide = sums_dtype(scores.device)
    reduced = grouped.mean(2, dtype=wide) if group == "mean" else grouped.sum(2, dtype=wide)
    return reduced.to(scores.dtype)
