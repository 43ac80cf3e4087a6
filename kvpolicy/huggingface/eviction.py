"""From a layer of the cache to observations without padding, and from selections back to slots."""

from __future__ import annotations

import attrs
from jaxtyping import Float, Int
from torch import Tensor, nn

from kvpolicy.checks import title
from kvpolicy.errors import InvalidComponentError
from kvpolicy.policy import Policy
from kvpolicy.stages.observation import Observation
from kvpolicy.stages.selection import Selection


@attrs.frozen(kw_only=True, eq=False)
class Shown:
    """What an attention call shows beyond keys and values."""

    queries: Float[Tensor, "B H Q D"]
    scaling: float
    softcap: float | None
    output_weight: Float[Tensor, "M H*Dv"] | None

    @classmethod
    def of(
        cls, module: nn.Module, queries: Tensor, scaling: float | None, softcap: float | None
    ) -> Shown:
        """Collect it from the module that attended."""
        return cls(
            queries=queries,
            scaling=queries.shape[-1] ** -0.5 if scaling is None else float(scaling),
            softcap=softcap,
            output_weight=output_weight(module),
        )


@attrs.frozen(kw_only=True, eq=False)
class Held:
    """A layer before eviction: slots right-aligned, `lengths` of them real in each row."""

    layer: int
    num_layers: int
    keys: Float[Tensor, "B N S D"]
    values: Float[Tensor, "B N S Dv"]
    positions: Int[Tensor, "B N S"]
    lengths: list[int]
    seen: list[int]


@attrs.frozen(kw_only=True, eq=False)
class Kept:
    """A layer after eviction."""

    keys: Float[Tensor, "B N K D"]
    values: Float[Tensor, "B N K Dv"]
    positions: Int[Tensor, "B N K"]
    lengths: list[int]


def output_weight(module: nn.Module) -> Float[Tensor, "M H*Dv"] | None:
    """Return the weight of the attention's output projection; None where it cannot be seen."""
    for name in ("o_proj", "out_proj", "dense"):
        projection = getattr(module, name, None)
        if type(projection) is nn.Linear:
            return projection.weight
    return None


def evict(policy: Policy, held: Held, shown: Shown) -> Kept:
    """Let the policy choose, and compact what it chose.

    Rows that differ in what they hold or have seen are shown one by one. What is held is not
    changed: if a part raises, the layer still has it all.
    """
    whole = all(length == held.keys.shape[2] for length in held.lengths)
    if whole and len(set(held.seen)) == 1:
        return _evict_rows(policy, held, shown, slice(None), held.lengths[0])
    rows = [
        _evict_rows(policy, held, shown, slice(row, row + 1), length)
        for row, length in enumerate(held.lengths)
    ]
    return _stack(rows)


def _evict_rows(policy: Policy, held: Held, shown: Shown, rows: slice, length: int) -> Kept:
    """Evict rows that hold and have seen equally many real tokens, all of them rightmost."""
    first = held.keys.shape[2] - length
    keys, values = held.keys[rows, :, first:], held.values[rows, :, first:]
    positions = held.positions[rows, :, first:]
    if length == 0:
        return Kept(keys=keys, values=values, positions=positions, lengths=[0] * len(keys))
    observation = Observation(
        queries=shown.queries[rows, :, -_window(policy, shown, length) :],
        keys=keys,
        values=values,
        layer=held.layer,
        num_layers=held.num_layers,
        scaling=shown.scaling,
        softcap=shown.softcap,
        output_weight=shown.output_weight,
        positions=positions,
        seen=held.seen[rows][0],
    )
    selection = policy.select(observation)
    kept = _common_length(policy, selection)
    keys, values = policy.compact(keys, values, selection)
    positions = positions.gather(2, selection.indices.to(positions.device))
    return Kept(keys=keys, values=values, positions=positions, lengths=[kept] * len(keys))


def _window(policy: Policy, shown: Shown, length: int) -> int:
    """Return how many of the last queries are real and wanted by the scorer."""
    available = min(shown.queries.shape[2], length)
    return available if policy.scorer.window is None else min(policy.scorer.window, available)


def _common_length(policy: Policy, selection: Selection) -> int:
    low, high = (int(bound) for bound in selection.lengths.aminmax())
    if low != high:
        raise InvalidComponentError(
            f"{title(policy, 'allocator')} gave the heads of one layer {low} to {high} positions; "
            "this version stores heads of equal length only. Use allocator='uniform'."
        )
    return high


def _stack(rows: list[Kept]) -> Kept:
    """Put rows of unequal length into one batch, right-aligned."""
    longest = max(row.keys.shape[2] for row in rows)

    def aligned(name: str, fill: int) -> Tensor:
        parts: list[Tensor] = [getattr(row, name) for row in rows]
        shape = (len(rows), parts[0].shape[1], longest, *parts[0].shape[3:])
        batch = parts[0].new_full(shape, fill)
        for row, part in enumerate(parts):
            batch[row, :, longest - part.shape[2] :] = part[0]
        return batch

    return Kept(
        keys=aligned("keys", 0),
        values=aligned("values", 0),
        positions=aligned("positions", -1),
        lengths=[row.lengths[0] for row in rows],
    )
