"""One cell: a usage of one model under one policy, and what came of it."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import attrs
import torch

from kvpolicy import Policy
from kvpolicy.errors import KvpolicyError
from kvpolicy.exactness.usages import AGAINST_ITSELF, BITWISE, MODES, USAGES
from kvpolicy.stages.compaction import GatherCompactor

COLUMNS = USAGES | MODES
LIMIT = 1e-4
"""Logits of float32 models may differ by this much: the order of sums differs, nothing else."""
CRASHED = "crashed"
ULPS = 4
"""In half precision: by so many units in the last place of the largest logit; every layer rounds.

transformers' own eager and sdpa differ by more on these models, a position off by one by logits.
"""


@attrs.frozen(kw_only=True)
class Line:
    """All usages of one model under one policy; a cell is a difference or the reason of a refusal.

    >>> line = Line(table="recipes", subject="h2o", cells={"one prompt": 2e-6})
    >>> line.outcomes
    {'one prompt': 'exact'}
    """

    table: str
    subject: str
    cells: Mapping[str, float | str] = attrs.field(factory=dict)
    limit: float = LIMIT
    note: str = ""
    refused: str | None = None
    """Why there is no cache for this model at all."""

    @property
    def outcomes(self) -> dict[str, str]:
        """Say of each cell whether it is exact, wrong, refused or not comparable ("changed")."""
        return {usage: self._outcome(usage, cell) for usage, cell in self.cells.items()}

    def _outcome(self, usage: str, cell: float | str) -> str:
        if isinstance(cell, str):
            known = {"changed": "changed", CRASHED: "wrong"}
            return known.get(cell.partition(":")[0], "refused")
        return "exact" if cell <= (0 if usage in BITWISE else self.limit) else "wrong"


def measure(table: str, subject: str, build: Callable[[], Any], policy: Policy) -> Line:
    """Measure every usage of one model; what kvpolicy refuses it must refuse by a sentence."""
    try:
        model = build()
    except Exception as error:  # noqa: BLE001 - whatever transformers raises: it is reported
        reason = f"transformers cannot build it tiny: {_sentence(error)}"
        return Line(table=table, subject=subject, refused=reason)
    limit = limit_of(model)
    try:
        policy.cache(model)
    except KvpolicyError as error:
        return Line(table=table, subject=subject, refused=_sentence(error))
    # What a compactor changes, the full cache of the yardstick does not.
    unchanged = isinstance(policy.compactor, GatherCompactor)
    cells: dict[str, float | str] = {}
    for usage, run in COLUMNS.items():
        if not unchanged and usage not in AGAINST_ITSELF | set(MODES):
            cells[usage] = "changed"
            continue
        try:
            cells[usage] = run(model, policy)
        except KvpolicyError as error:
            cells[usage] = _sentence(error)
        except Exception as error:  # noqa: BLE001 - no sentence of ours: the cell is wrong
            cells[usage] = f"{CRASHED}: {_sentence(error)}"
    return Line(table=table, subject=subject, cells=cells, limit=limit)


@torch.no_grad()
def limit_of(model: Any) -> float:
    """Return by how much a model's logits may differ."""
    if model.dtype == torch.float32:
        return LIMIT
    largest = model(torch.arange(5, 65)[None], use_cache=False).logits.abs().max()
    return ULPS * torch.finfo(model.dtype).eps * float(largest)


def _sentence(error: Exception) -> str:
    first = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {first[0]}"


def quietly() -> None:
    """Keep transformers' remarks on random tiny models out of the table."""
    import transformers

    warnings.filterwarnings("ignore")
    torch._logging.set_logs(dynamo=logging.ERROR)
    transformers.logging.set_verbosity_error()
    torch.set_grad_enabled(False)
    torch.set_num_threads(1)
