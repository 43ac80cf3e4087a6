"""Divide the budget of each head of a layer among the spans of a text."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real
from typing import Any

import attrs
import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from kvpolicy.pipeline.checks import at_work
from kvpolicy.pipeline.refusals import refuse
from kvpolicy.pipeline.title import Title
from kvpolicy.stages.division import Divider, divided

LARGEST_PART = 2.0**53
"""Parts are multiplied with counts, in float64."""


@attrs.frozen(kw_only=True, eq=False)
class Division:
    """The span of each position that is scored, and the part of each span."""

    spans: Int[Tensor, "b n S"]
    parts: Float64[Tensor, " G"]

    def of(
        self, scores: Float[Tensor, "b n S"], budgets: Int[Tensor, "b n"]
    ) -> Float[Tensor, "b n S"]:
        """Return the scores with -inf for what no span can keep."""
        return divided(scores, self.spans, budgets, self.parts)

    def row(self, index: int) -> Division:
        """Return the division of one row."""
        return attrs.evolve(self, spans=self.spans[index : index + 1])


def parts_of(
    divider: Divider, title: Title, lengths: Mapping[str, int], device: torch.device
) -> Float64[Tensor, " G"]:
    """Ask a divider for the parts of spans, in their order.

    Raises InvalidComponentError for what no divider may return, and ComponentFailedError for a
    divider that raised.
    """
    with at_work(title):
        parts: Any = divider.divide(dict(lengths))
    if not isinstance(parts, Mapping) or set(parts) != set(lengths):
        got = list(parts) if isinstance(parts, Mapping) else f"a {type(parts).__name__}"
        refuse(title, f"parts of {got}", f"parts of {list(lengths)}")
    numbers = [parts[name] for name in lengths]
    if not all(_is_part(each) for each in numbers):
        refuse(title, f"parts {numbers}", "plain numbers (int or float), finite and at least 0")
    table = torch.tensor([float(each) for each in numbers], dtype=torch.float64, device="cpu")
    return table.to(device, non_blocking=True)


def _is_part(number: Any) -> bool:
    plain = isinstance(number, Real) and not isinstance(number, bool)
    return plain and 0 <= float(number) <= LARGEST_PART
