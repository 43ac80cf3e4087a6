"""Prompts that are read in several steps: the queries that a scorer must be shown at the end."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor

from kvpolicy.pipeline.pipeline import Pipeline


class Prompts:
    """The last queries of each prompt that is not at its end, by request and layer.

    A request that is finished, aborted or preempted is forgotten.
    """

    def __init__(self, policy: Pipeline) -> None:
        """Remember nothing; the policy says how many queries it needs."""
        # Running state is made of all queries at once, when the prompt ends.
        self._window = None if policy.running_scorer is not None else policy.scorer.window
        self._queries: dict[str, dict[int, Tensor]] = {}

    def __len__(self) -> int:
        """Return how many prompts are remembered."""
        return len(self._queries)

    def read(
        self, request: str, layer: int, queries: Float[Tensor, "Q H D"], *, first: bool
    ) -> Float[Tensor, "W H D"]:
        """Return the last queries of a prompt, these included. With `first` none came before."""
        before = None if first else self._queries.get(request, {}).get(layer)
        if before is not None:
            queries = torch.cat([before, queries])
        return queries if self._window is None else queries[-self._window :]

    def remember(self, request: str, layer: int, queries: Float[Tensor, "W H D"]) -> None:
        """Keep a copy of the queries for the next step."""
        self._queries.setdefault(request, {})[layer] = queries.clone()

    def forget(self, requests: Iterable[str]) -> None:
        """Forget requests, whether known or not."""
        for request in requests:
            self._queries.pop(request, None)
