"""Static rows of a policy that evicts at every token: score, select and compact as one operation.

All rows hold K tokens. A step writes the next one behind them, attends to K + 1, and evicts one of
each head: the same operations on tensors of the same shapes, so that a step can be captured.
"""

from __future__ import annotations

from typing import ClassVar, TypeAlias

import attrs
import torch
from jaxtyping import Float, Int32, Int64, Shaped
from torch import Tensor

from kvpolicy.cache.memory.contents import Contents
from kvpolicy.cache.memory.rows import Rows
from kvpolicy.cache.memory.sent import sent
from kvpolicy.cache.memory.slots import Slots
from kvpolicy.cache.static.buffers import (
    Count,
    buffers_for,
    fill,
    kept,
    longer,
    nbytes,
    writable,
)
from kvpolicy.cache.static.fixed import SteadyRows
from kvpolicy.cache.static.owners import number_for
from kvpolicy.observation.observation import Observation
from kvpolicy.pipeline.doubts import Doubts, collected
from kvpolicy.pipeline.pipeline import Pipeline
from kvpolicy.stages.compaction import GatherCompactor
from kvpolicy_kernels import compact_in_place

Tables: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor | None]
"""The keys, values, positions and running state of K + 1 rows."""


@attrs.define(eq=False)
class StaticEvicting(SteadyRows):
    """Buffers of one layer, and the positions and running state of its rows."""

    SHARED: ClassVar[frozenset[str]] = frozenset({"pipeline"})
    known: Int32[Tensor, "B N C"]
    """The positions."""
    state: Float[Tensor, "B H C *rest"] | None
    newest: Int64[Tensor, "B 1 1"]
    """The position of the next token of each row."""
    budgets: Int64[Tensor, "B N"]
    """K for each head; on the CPU."""
    pipeline: Pipeline
    layer: int
    num_layers: int

    @classmethod
    def of(
        cls,
        contents: Contents,
        before: StaticEvicting | None,
        *,
        pipeline: Pipeline,
        layer: int,
        num_layers: int,
    ) -> StaticEvicting:
        """Hold these contents, of rows that all hold as many tokens as the budget allows."""
        slots = contents.slots
        keys, values = buffers_for(contents, 1, before)
        fill(keys, contents.keys.view)
        fill(values, contents.values.view)
        known = longer(slots.positions.int(), None if before is None else before.known)
        state = contents.state
        if state is not None:
            state = longer(state, None if before is None else before.state)
        newest = kept(
            None if before is None else before.newest,
            (slots.batch, 1, 1),
            torch.long,
            slots.device,
        )
        with writable():
            newest.copy_(sent(slots.seen, slots.device)[:, None, None])
        shape = (slots.batch, slots.heads)
        found = cls(
            keys,
            values,
            known=known,
            state=state,
            newest=newest,
            count=Count.new(slots.device) if before is None else before.count,
            slots=slots,
            budgets=torch.full(shape, slots.held, dtype=torch.long, device="cpu"),
            pipeline=pipeline,
            layer=layer,
            num_layers=num_layers,
        )
        found.number = number_for(found, before)
        return found

    def write(
        self, keys: Shaped[Tensor, "B N 1 D"], values: Shaped[Tensor, "B N 1 Dv"]
    ) -> tuple[Shaped[Tensor, "B N C D"], Shaped[Tensor, "B N C Dv"]]:
        """Write one token behind the others, and return all rows."""
        self.keys.narrow(2, self.held, 1).copy_(keys)
        self.values.narrow(2, self.held, 1).copy_(values)
        self.known.narrow(2, self.held, 1).copy_(self.newest)
        self.newest.add_(1)
        self.count.step()
        return self.keys, self.values

    def evict(
        self,
        queries: Float[Tensor, "B H 1 D"],
        tables: Tables,
        scaling: float,
        softcap: float | None,
        sinks: Float[Tensor, " H"] | None,
    ) -> None:
        """Evict one token of each head from the tables, by the stages of the policy."""
        keys, values, known, state = tables
        observation = Observation(
            queries=queries,
            keys=keys,
            values=values,
            layer=self.layer,
            num_layers=self.num_layers,
            scaling=scaling,
            softcap=softcap,
            sink_logits=sinks,
            positions=known.long(),
            seen=self.slots.seen[0],
            budget=self.held,
            state=state,
        )
        # Parts of kvpolicy only: what they return is not in doubt.
        with torch.no_grad(), collected(Doubts()):
            self._keep(observation, tables)

    def _keep(self, observation: Observation, tables: Tables) -> None:
        policy, (keys, values, known, state) = self.pipeline, tables
        accumulated = policy.accumulate(observation)
        if state is not None and accumulated is not None:
            state.copy_(accumulated)
        scores = self._protected(policy.group_scores(observation))
        selection = policy.choose(scores, self.budgets)
        rows = selection.indices
        if type(policy.compactor) is GatherCompactor:
            compact_in_place(keys, values, rows)
        else:
            compacted = policy.compact(keys, values, selection, observation)
            for table, of_kept in zip((keys, values), compacted, strict=True):
                table[:, :, : self.held] = of_kept
        known[:, :, : self.held] = known.gather(2, rows)
        if state is not None:
            self._move_state(state, rows)

    def _protected(self, scores: Float[Tensor, "B N C"]) -> Float[Tensor, "B N C"]:
        """Set the scores of sinks and of the newest tokens to +inf; they are the outermost rows."""
        recent, sinks = self.pipeline.recent_of(self.held), self.pipeline.sinks
        if not recent and not sinks:
            return scores
        row = torch.arange(self.width, device=scores.device)
        return scores.masked_fill((row < sinks) | (row >= self.width - recent), torch.inf)

    def _move_state(
        self, state: Float[Tensor, "B H C *rest"], rows: Int64[Tensor, "B N K"]
    ) -> None:
        groups = state.shape[1] // rows.shape[1]
        of_queries = rows.repeat_interleave(groups, dim=1, output_size=state.shape[1])
        of_queries = of_queries.view(*of_queries.shape, *[1] * (state.dim() - 3))
        of_queries = of_queries.expand(*of_queries.shape[:3], *state.shape[3:])
        state[:, :, : self.held] = state.gather(2, of_queries)
        state[:, :, self.held :] = 0

    @property
    def slots_now(self) -> Slots:
        """The slots as they are now. Waits for the device."""
        slots, added = self.slots.copied(), self.added
        if added:
            slots.replace(self.known[:, :, : self.held].long(), list(slots.lengths))
            slots.seen = [seen + added for seen in slots.seen]
        return slots

    def load(self) -> Contents:
        """Return a copy of the rows that stay."""
        state = self.state
        keys, values = (table[:, :, : self.held].clone() for table in (self.keys, self.values))
        state = None if state is None else state[:, :, : self.held].clone()
        return Contents(Rows(keys), Rows(values), slots=self.slots_now, state=state)

    @property
    def nbytes(self) -> int:
        """Bytes allocated."""
        return nbytes(self.keys, self.values, self.known, self.state, self.slots)
