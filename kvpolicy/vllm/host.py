"""What the layers of one engine share: the policy, the model's facts, the step that runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor

from kvpolicy.vllm.asked import Asked
from kvpolicy.vllm.batches import rows_of
from kvpolicy.vllm.eviction import kept_rows, write
from kvpolicy.vllm.layers import LayerFacts
from kvpolicy.vllm.pages import Pages
from kvpolicy.vllm.prompts import Prompts
from kvpolicy.vllm.rounding import Rounding
from kvpolicy.vllm.step import Row, Step, step_of

Listener: TypeAlias = Callable[[str, int, Tensor], None]
"""Is told the request, the layer's index and the positions [N K] that the layer keeps."""


class Host:
    """One for each engine and process; `facts` are those of its layers, by name."""

    def __init__(self, asked: Asked, runner: Any, facts: dict[str, LayerFacts]) -> None:
        """Serve the layers of a model runner."""
        self.policy, self.runner, self.facts = asked.policy, runner, facts
        self.rounding = Rounding.of(asked.policy)
        self.prompts = Prompts(asked.policy)
        self.pages: dict[str, Pages] = {}
        self.listeners: list[Listener] = []
        self._is_running = False

    @contextmanager
    def running(self, scheduled: Any) -> Iterator[None]:
        """Serve the requests of one step; batches outside of it are no requests."""
        self.prompts.forget(scheduled.finished_req_ids)
        self.prompts.forget(scheduled.preempted_req_ids or ())
        self._is_running = True
        try:
            yield
        finally:
            self._is_running = False

    def step(self, common: Any, block: int) -> Step | None:
        """Return what happens to the requests of a batch; None if no policy concerns it."""
        if not self._is_running:
            return None
        found = step_of(rows_of(self.runner, common), self.rounding, block=block)
        return None if found.is_plain else found

    def observe(
        self,
        impl: Any,
        layer: Any,
        step: Step,
        tables: Tensor,
        batch: tuple[Tensor, ...],
        cache: Tensor,
    ) -> None:
        """Remember the queries of prompts that go on, and evict those that end.

        `batch` are the queries, keys and values of the step, and `tables` the whole block tables of
        its rows.
        """
        facts = self.facts[layer.layer_name]
        for at in step.reading:
            row = step.rows[at]
            self.prompts.remember(row.request, facts.index, self._queries(row, facts, batch[0]))
        for at in step.ending:
            row = step.rows[at]
            self._evict(impl, layer, row, tables[at], batch, cache)

    def _queries(self, row: Row, facts: LayerFacts, queries: Tensor) -> Tensor:
        own = queries[row.first : row.first + row.of_prompt]
        return self.prompts.read(row.request, facts.index, own, first=row.before == 0)

    def _evict(
        self,
        impl: Any,
        layer: Any,
        row: Row,
        table: Tensor,
        batch: tuple[Tensor, ...],
        cache: Tensor,
    ) -> None:
        facts, block = self.facts[layer.layer_name], cache.shape[2]
        queries, *rows = batch
        own = slice(row.first, row.first + row.of_prompt)
        keys, values = (each[own] for each in rows)
        if row.before:
            blocks = table[: -(-row.before // block)].long()
            earlier = self.pages[layer.layer_name].read(cache, blocks, row.before)
            keys, values = (torch.cat(each) for each in zip(earlier, (keys, values), strict=True))
        observation = facts.observation(self._queries(row, facts, queries), keys, values)
        kept = self.rounding.kept(row.prompt, block=block)
        contents = kept_rows(self.policy, observation, kept)
        for listener in self.listeners:
            listener(row.request, facts.index, contents.positions[0])
        full, last = kept // block, row.prompt // block
        places = torch.cat([table[:full], table[last : last + 1]])
        write(impl, layer, cache, (contents.keys.view, contents.values.view), places)
        if facts.index == facts.num_layers - 1:
            self.prompts.forget([row.request])
