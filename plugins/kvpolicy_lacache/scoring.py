"""Score by the ladder: rows that it keeps, later ones higher, before rows that it drops."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import attrs
import torch
from attrs.validators import optional
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kvpolicy.errors import InvalidValueError
from kvpolicy.observation.fold import Reduce
from kvpolicy.observation.note import Note
from kvpolicy.observation.observation import Observation
from kvpolicy.options import count, natural, one_of
from kvpolicy.pipeline.capabilities import ModelFacts
from kvpolicy_lacache.ladder import Ladder
from kvpolicy_lacache.noting import known_cursors, noted_of
from kvpolicy_lacache.planning import Plan, Planner

DROPPED = -1.0  # in the plan; 1 is compacted and kept, 0 is unchanged


@attrs.frozen(kw_only=True)
class LadderScorer:
    """Gives rows that the ladder keeps scores of at least 0, and rows that it drops lower ones.

    score_i = i / S, minus 1 if the ladder drops row i of S

    The running state has two numbers for a position. The first says whether it is compacted
    already. The second is the plan for this eviction: 1 is compacted and kept, -1 is dropped, 0 is
    unchanged. A plan counts as carried out if no row is left that it dropped.

    `span` is how many layers a rung of the ladder covers; None is half of those that evict.
    `overlap` is how many of these the next rung covers too. The first `start` positions are always
    kept. For `groups` see `kvpolicy_lacache.planning`.

    Shi et al., ICML 2025, https://arxiv.org/abs/2507.14204.

    >>> from kvpolicy.testing import observation
    >>> layer = observation(positions=10, budget=8, layer=1, num_layers=2)
    >>> LadderScorer(start=2).accumulate(layer)[0, 0, :, 1]
    tensor([ 1.,  1., -1.,  1., -1.,  1.,  0.,  0.,  0.,  0.])
    """

    across_heads: ClassVar[bool] = True
    counts_budget: ClassVar[bool] = True
    position_bias: ClassVar[bool] = True

    window: int = attrs.field(default=1, validator=count)
    span: int | None = attrs.field(default=None, validator=optional(count))
    overlap: int = attrs.field(default=0, validator=natural)
    start: int = attrs.field(default=4, validator=natural)
    groups: Literal["fitting", "authors"] = attrs.field(
        default="fitting", validator=one_of("fitting", "authors")
    )

    def __attrs_post_init__(self) -> None:
        """Raise InvalidValueError unless `overlap` is below `span`."""
        if self.span is not None and self.overlap >= self.span:
            raise InvalidValueError(f"overlap={self.overlap} must be below span={self.span}")

    def check_model(self, model: ModelFacts) -> None:
        """Raise InvalidValueError if the span covers all layers: then nothing could be evicted."""
        span = self.ladder(model.layers).span
        if span >= model.layers:
            raise InvalidValueError(
                f"'span' must be below the number of layers that evict, so that each position is "
                f"kept by some of them only, but it is {span} and {model.name} has {model.layers}. "
                "Give a smaller 'span' or 'overlap'. For a model of one layer use another method."
            )

    def ladder(self, layers: int) -> Ladder:
        """Return the ladder over `layers` layers."""
        span = max(layers // 2, self.overlap + 1) if self.span is None else self.span
        return Ladder(layers=layers, span=span, overlap=self.overlap)

    def planner(self, layers: int, budget: int) -> Planner:
        """Return the planner for a budget. A small budget makes `start` smaller, down to 1."""
        ladder = self.ladder(layers)
        start = min(self.start, max(1, budget - ladder.layers - ladder.teeth))
        return Planner(ladder=ladder, budget=budget, start=start, groups=self.groups)

    def accumulate(self, observation: Observation) -> Float[Tensor, "B H S 2"]:
        """Return which rows are compacted, and the plan for an eviction of the layer now."""
        return self.accumulate_noted(observation)[0]

    def accumulate_noted(
        self, observation: Observation, *, sinks: int = 0, recent: int = 0
    ) -> tuple[Float[Tensor, "B H S 2"], list[Note] | None]:
        """Return what `accumulate` returns, and how many rows it plans to keep.

        Nothing is noted if a plan drops one of the first `sinks` or of the last `recent` rows.
        """
        planner = self.planner(observation.num_layers, observation.budget)
        cursors, noted = known_cursors(observation, planner.start), None
        if observation.length > planner.budget:
            if cursors is None:
                cursors = _read_cursors(observation, planner.start)
            state, plans = _planned(planner, cursors, observation)
            noted = noted_of(plans, cursors, observation, sinks=sinks, recent=recent)
        else:
            state = _unchanged(planner, cursors, observation)
            if cursors is not None:
                noted = noted_of({}, cursors, observation)
        return state[:, None].expand(-1, observation.queries.shape[1], -1, -1), noted

    def score(self, observation: Observation, reduce: Reduce) -> Float[Tensor, "B H S"]:
        """Return scores in the order of the rows, lower for dropped rows. Queries are not used."""
        state = observation.state
        if state is None:
            state = self.accumulate(observation)
        length = observation.length
        order = torch.arange(length, dtype=torch.float32, device=observation.keys.device) / length
        # All heads have the same plan: 1, 0, or -1 for a row that is dropped.
        scores = order + state[:, :1, :, 1].clamp(max=0)
        return scores.expand(-1, observation.queries.shape[1], -1)


def _read_cursors(observation: Observation, start: int) -> list[int]:
    """Return how many rows of each sequence are compacted; they come first. Waits for the device.

    The host must know these numbers, which decide how many rows are left.
    """
    if observation.state is None:
        raise TypeError("a layer without state has nothing compacted")
    cursors: list[int] = _places(observation.state[:, 0].cpu(), start).flatten().tolist()
    return cursors


def _places(state: Float[Tensor, "B S 2"], start: int) -> Int[Tensor, "B 1"]:
    return _compacted(state).sum(-1, keepdim=True).clamp(min=start)


def _unchanged(
    planner: Planner, cursors: Sequence[int] | None, observation: Observation
) -> Float[Tensor, "B S 2"]:
    """Return the state of a layer that is not evicted now."""
    rows = torch.arange(observation.length, device=observation.keys.device)
    if cursors is not None and len(set(cursors)) == 1:
        before = (rows < cursors[0]).float().expand(len(cursors), -1)
    elif observation.state is not None:
        before = (rows < _places(observation.state[:, 0], planner.start)).float()
    else:
        raise TypeError("a layer without state has the same cursor in all rows")
    return before[..., None].expand(-1, -1, 2)


def _planned(
    planner: Planner, cursors: Sequence[int], observation: Observation
) -> tuple[Float[Tensor, "B S 2"], dict[int, Plan]]:
    """Return which rows are compacted, and the plan for each sequence and each cursor."""
    device, length = observation.keys.device, observation.length
    plans = {
        cursor: planner.plan(cursor, length=length, layer=observation.layer)
        for cursor in dict.fromkeys(cursors)
    }
    # Sequences with the same cursor have the same plan.
    apart = cursors if len(plans) > 1 else cursors[:1]
    state = torch.zeros(
        (len(apart), length, 2),
        dtype=torch.float32,
        device="cpu",
        pin_memory=device.type == "cuda",
    )
    for of_row, cursor in zip(state, apart, strict=True):
        before, planned = of_row.unbind(-1)
        plan = plans[cursor]
        before[:cursor] = 1.0
        planned.fill_(DROPPED)
        planned[plan.rows] = 0.0
        planned[plan.rows[: plan.cursor]] = 1.0
    return state.to(device, non_blocking=True).expand(len(cursors), -1, -1), plans


def _compacted(state: Float[Tensor, "B S 2"]) -> Bool[Tensor, "B S"]:
    """Return which rows are compacted, from the last plan if it was carried out."""
    before, planned = state.unbind(-1)
    carried_out = ~(planned == DROPPED).any(-1, keepdim=True)
    return torch.where(carried_out, planned, before) > 0
