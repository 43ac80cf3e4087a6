"""What layers that attend with the same keys show: as one layer with larger groups of heads.

The query heads of a key/value head are those of the first layer, then those of the next.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import torch
from jaxtyping import Float
from torch import Tensor, nn

from kvpolicy.errors import UnsupportedModelError
from kvpolicy.huggingface.model.output_projection import output_weight
from kvpolicy.observation.logits import Logits
from kvpolicy.observation.projection import mark_of
from kvpolicy.pipeline.pipeline import Pipeline


@attrs.frozen(eq=False)
class Reading:
    """One layer's attention call: its module, how it makes logits, and its last queries or all."""

    module: nn.Module
    queries: Float[Tensor, "B H Q D"]
    logits: Logits
    count: int
    """How many queries the call had."""
    has_gradients: bool
    """Whether a backward pass needs the queries."""


class JoinedWeights:
    """Output projections of layers that share keys, joined once and remembered by cache layer.

    Parts remember what they compute of a weight by its identity.
    """

    def __init__(self) -> None:
        """Remember nothing."""
        self._known: dict[int, tuple[list[object], Tensor]] = {}

    def of(
        self, layer: int, readings: Sequence[Reading], kv_heads: int, *, needed: bool
    ) -> Float[Tensor, "M columns"] | None:
        """Return the columns of all readings, in the order of `joined_queries`.

        None where one of them cannot be read, and where no part needs them.
        """
        if not needed:
            return None
        found = [output_weight(each.module, needed=True, like=each.queries) for each in readings]
        weights = [each.detach() for each in found if each is not None]
        if len(weights) < len(readings):
            return None
        marks: list[object] = [mark_of(each) for each in weights]
        known = self._known.get(layer)
        if known is None or known[0] != marks:
            by_head = [each.unflatten(1, (kv_heads, -1)).to(weights[0]) for each in weights]
            known = self._known[layer] = (marks, torch.cat(by_head, 2).flatten(1))
        return known[1]


def queries_used(policy: Pipeline, seen: int) -> bool:
    """Whether the queries of a forward are used, after which rows have seen at most `seen`."""
    keeps = policy.running_scorer is None and policy.every is None and policy.keeps_all(seen)
    return not keeps


def queries_to_keep(policy: Pipeline, seen: int, logits: int) -> int:
    """Return of how many last tokens layers that share keys are to compute queries; 0: of all.

    `logits` are those that the model computes anyway.
    """
    if not queries_used(policy, seen):
        return logits
    if policy.running_scorer is not None or policy.window is None:
        return 0
    return max(logits, policy.window)


def shown_of(readings: Sequence[Reading], policy: Pipeline, seen: int) -> Sequence[Reading]:
    """Return the calls that are shown: the first alone where others dropped what is not used."""
    if _are_alike(readings) or queries_used(policy, seen):
        return readings[:]
    return readings[:1]


def _are_alike(readings: Sequence[Reading]) -> bool:
    return len({each.queries.shape for each in readings}) == 1


def joined_queries(readings: Sequence[Reading], kv_heads: int) -> Float[Tensor, "B heads Q D"]:
    """Return the queries of all calls, by key/value head.

    Raises UnsupportedModelError if one of them had fewer queries than another.
    """
    if len(readings) == 1:
        return readings[0].queries
    if not _are_alike(readings):
        counts = ", ".join(str(each.count) for each in readings)
        raise UnsupportedModelError(
            f"{type(readings[0].module).__name__}: the layers that share keys and values attended "
            f"with unlike numbers of queries ({counts}). The policy scores by the queries of all "
            "of them. Call the model with logits_to_keep=0."
        )
    by_head = [each.queries.unflatten(1, (kv_heads, -1)) for each in readings]
    return torch.cat(by_head, 2).flatten(1, 2)


def joined_logits(readings: Sequence[Reading], kv_heads: int) -> Logits:
    """Return how all calls make logits.

    Raises UnsupportedModelError if they scale or cap them differently.
    """
    first = readings[0].logits
    if len(readings) == 1:
        return first
    settings = {(each.logits.scaling, each.logits.softcap) for each in readings}
    sinks = [each.logits.sinks for each in readings if each.logits.sinks is not None]
    if len(settings) > 1 or len(sinks) not in (0, len(readings)):
        raise UnsupportedModelError(
            f"{type(readings[0].module).__name__}: the layers that share keys and values scale or "
            "cap their logits differently, so they cannot be shown as one."
        )
    if not sinks:
        return first
    by_head = [each.unflatten(0, (kv_heads, -1)) for each in sinks]
    return attrs.evolve(first, sinks=torch.cat(by_head, 1).flatten())
