"""Show and rank: a layer's groups of rows with their scores."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kvpolicy.cache.attention.keys import AttendedKeys
from kvpolicy.cache.eviction.division import Division
from kvpolicy.cache.eviction.protection import joined, without
from kvpolicy.cache.eviction.shown import Shown
from kvpolicy.cache.eviction.views import View, views_of
from kvpolicy.cache.eviction.within import counts_within
from kvpolicy.cache.memory.contents import Contents
from kvpolicy.observation.observation import Observation
from kvpolicy.observation.shard import Shard
from kvpolicy.pipeline.numbers import check_numbers
from kvpolicy.pipeline.pipeline import Pipeline


@attrs.frozen(kw_only=True, eq=False)
class Ranked:
    """A group of rows with its scores; `scores` is None where nothing is to be evicted.

    Where a budget is for each turn, the scores are those of the newest turn: the last positions.

    Uneven heads have a view and an observation each; their scores are filled up with -inf to the
    length of the longest head. `shard` says which heads of the layer these are, if not all.
    """

    views: Sequence[View]
    observations: Sequence[Observation] = ()
    scores: Float[Tensor, "b n S"] | None = None
    shard: Shard | None = None
    within: Int[Tensor, "b N"] | None = None
    """The counts of all heads of the layer, on the CPU, where the budget is an error target."""
    reserved: int = 0
    """How many positions every head keeps for protected spans; no allocator shares them out."""
    protected: Bool[Tensor, "b n S"] | None = None
    """Which positions these are, where some are reserved."""
    free: Float[Tensor, "b n _"] | None = None
    """The scores of the other positions."""
    division: Division | None = None
    """How each head's budget is divided among spans; None: not at all."""

    @property
    def observation(self) -> Observation:
        """The observation that allocators see: that of the head that holds the most."""
        found = max(self.observations, key=lambda each: each.length)
        return attrs.evolve(found, budget=found.budget - self.reserved) if self.reserved else found

    @property
    def rows(self) -> slice:
        """Which rows of the batch these are."""
        return self.views[0].rows

    @property
    def held(self) -> Sequence[int]:
        """How many positions each head of the layer holds; one number if all hold the same."""
        return self.views[0].held_by_head or (self.views[0].keys.shape[2],)

    @property
    def competing(self) -> Sequence[int]:
        """How many positions of each head are scored; one number if all heads hold the same."""
        return [min(each, self.views[0].newest) for each in self.held]

    @property
    def shared_out(self) -> Sequence[int]:
        """How many positions of each head an allocator may share out."""
        return [each - self.reserved for each in self.competing]

    @property
    def scores_of_layer(self) -> Float[Tensor, "b N _"] | None:
        """The scores that allocators see: of all heads of the layer, those elsewhere included."""
        scores = self.scores if self.free is None else self.free
        if scores is None or self.shard is None:
            return scores
        return torch.cat(list(self.shard.exchange(scores)), 1)

    def by_row(self) -> list[Ranked]:
        """Return a group for each row, with its share of the scores."""
        rows = range(len(self.views[0].keys))
        if len(rows) == 1:
            return [self]
        return [
            attrs.evolve(
                self,
                views=[view.row(row) for view in self.views],
                observations=[each.row(row) for each in self.observations],
                scores=None if self.scores is None else self.scores[row : row + 1],
                protected=None if self.protected is None else self.protected[row : row + 1],
                free=None if self.free is None else self.free[row : row + 1],
                division=None if self.division is None else self.division.row(row),
            )
            for row in rows
        ]

    def own(self, of_layer: Int[Tensor, "b N"]) -> Int[Tensor, "b n"]:
        """Return the part of a tensor of all heads that belongs to the heads of this process."""
        if self.shard is None or self.scores is None:
            return of_layer
        groups = self.observation.queries.shape[1] // self.observation.keys.shape[1]
        return of_layer.narrow(1, self.shard.first_head // groups, self.scores.shape[1])


def ranked(
    pipeline: Pipeline, contents: Contents, keys: AttendedKeys, shown: Shown
) -> list[Ranked]:
    """Show a layer to the policy without padding, and let the policy score each group of rows.

    Scores have no gradients; keys and values keep theirs.
    """
    groups = views_of(contents, keys, shard=shown.shard)
    if shown.spans is not None:
        groups = shown.spans.apart(groups)
    return [_ranked(pipeline, views, shown) for views in groups]


@torch.no_grad()
def _ranked(pipeline: Pipeline, views: Sequence[View], shown: Shown) -> Ranked:
    unranked = Ranked(views=views, shard=shown.shard)
    if not min(unranked.held) or pipeline.keeps_all(views[0].newest):
        return unranked
    observations = [shown.observation(pipeline, view, pipeline.scorer.window) for view in views]
    if shown.of_prompt:
        for observation in observations:
            check_numbers(observation)
    scores, reserved = [pipeline.rank(observation) for observation in observations], 0
    masks: list[Bool[Tensor, "b n S"]] = []
    division = None
    if shown.spans is not None:
        reserved, row = shown.spans.reserved(views[0]), views[0].rows.start
        masks = [shown.spans.protects(view.positions, row) for view in views]
        budget, longest = observations[0].budget, max(unranked.competing)
        division = shown.spans.division(pipeline, views, budget, longest)
        scores = [
            each.masked_fill(mask, torch.inf) for each, mask in zip(scores, masks, strict=True)
        ]
    within = _within(pipeline, views, shown, scores, reserved)
    if pipeline.per_turn:
        scores = [each[..., -views[0].newest :] for each in scores]
        masks = [each[..., -views[0].newest :] for each in masks]
    found = attrs.evolve(
        unranked,
        observations=observations,
        scores=_joined(scores, unranked.competing),
        within=within,
        reserved=reserved,
        division=division,
    )
    if not reserved:
        return found
    free = [without(*each, reserved) for each in zip(scores, masks, strict=True)]
    return attrs.evolve(
        found, protected=joined(masks, max(found.competing)), free=_joined(free, found.shared_out)
    )


def _within(
    pipeline: Pipeline,
    views: Sequence[View],
    shown: Shown,
    scores: Sequence[Float[Tensor, "b _ _"]],
    reserved: int,
) -> Int[Tensor, "b N"] | None:
    """Return the counts of an error target; None if the budget is none."""
    if pipeline.target is None:
        return None
    window = pipeline.target.window
    observations = [shown.observation(pipeline, view, window) for view in views]
    return counts_within(
        pipeline.target,
        list(zip(views, observations, scores, strict=True)),
        protected=pipeline.protected + reserved,
        shard=shown.shard,
    )


def _joined(
    scores: Sequence[Float[Tensor, "b _ _"]], held: Sequence[int]
) -> Float[Tensor, "b n S"]:
    """Return the scores of all heads, filled up to the length of the longest."""
    if len(scores) == 1 and scores[0].shape[-1] == max(held):
        return scores[0]
    filled = [
        torch.nn.functional.pad(each, (0, max(held) - each.shape[-1]), value=-torch.inf)
        for each in scores
    ]
    return torch.cat(filled, 1)
