"""Evict: take one layer from what it holds to what it keeps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kvpolicy.cache.attention.keys import AttendedKeys
from kvpolicy.cache.eviction.budgets import Budgets, budgets_of
from kvpolicy.cache.eviction.protection import before_others
from kvpolicy.cache.eviction.ranked import Ranked, ranked
from kvpolicy.cache.eviction.shown import Shown
from kvpolicy.cache.eviction.spare import Spare
from kvpolicy.cache.eviction.views import View
from kvpolicy.cache.memory.assembly import Piece, assembled, remainder_of
from kvpolicy.cache.memory.contents import Contents
from kvpolicy.cache.memory.remainder import Remainder
from kvpolicy.errors import InvalidComponentError
from kvpolicy.observation.observation import Observation
from kvpolicy.pipeline.capabilities import across_heads
from kvpolicy.pipeline.doubts import is_patient
from kvpolicy.pipeline.pipeline import Pipeline
from kvpolicy.stages.compaction import GatherCompactor
from kvpolicy.stages.selection import Selection
from kvpolicy_kernels import compact_in_place


def evict(
    pipeline: Pipeline,
    contents: Contents,
    keys: AttendedKeys,
    shown: Shown,
    spare: Spare | None = None,
    *,
    in_place: bool = False,
) -> Contents | None:
    """Return what a layer keeps; None if it keeps all.

    `spare` is what earlier layers of the forward have left; None: this is the first layer.
    `in_place` allows rows to move within their memory: nothing else may need them as they are.
    Raises InvalidComponentError and ComponentFailedError as the stages of a pipeline do; then the
    layer still holds all it held.
    """
    groups = ranked(pipeline, contents, keys, shown)
    spare = Spare() if spare is None else spare
    budgets = [budgets_of(pipeline, each, spare) for each in groups]
    return kept(pipeline, contents, groups, budgets, in_place=in_place)


def kept(
    pipeline: Pipeline,
    contents: Contents,
    groups: Sequence[Ranked],
    budgets: Sequence[Budgets],
    *,
    in_place: bool = False,
) -> Contents | None:
    """Return what the policy chooses within the budgets of each group of rows; None if all is."""
    if in_place and len(groups) == 1 and _moved(pipeline, contents, groups[0], budgets[0]):
        return contents
    pieces = [_chosen(pipeline, *each) for each in zip(groups, budgets, strict=True)]
    if all(each is None for each in pieces):
        return None
    whole = [
        _everything(group.views) if chosen is None else chosen
        for group, chosen in zip(groups, pieces, strict=True)
    ]
    even = all(_is_even(*each) for each in zip(groups, budgets, strict=True))
    found = assembled(whole, contents.slots, even=even)
    found.remainder = remainder_of(contents.remainder, whole)
    return found


def _is_even(group: Ranked, budgets: Budgets) -> bool:
    """Whether all heads of the layer hold equally many of these rows afterwards."""
    if budgets is None:
        return len(group.held) == 1
    if len(group.views) > 1:
        settled = [held - own for held, own in zip(group.held, group.competing, strict=True)]
        rows: list[list[int]] = budgets.tolist()
        return len({own + old for row in rows for own, old in zip(row, settled, strict=True)}) == 1
    low, high = budgets.aminmax()
    return bool(low == high)


def _everything(views: Sequence[View]) -> list[Piece]:
    return [
        Piece(
            keys=view.keys,
            values=view.values,
            positions=view.positions,
            state=view.state,
            bias=view.bias,
        )
        for view in views
    ]


def _chosen(pipeline: Pipeline, group: Ranked, budgets: Budgets) -> list[Piece] | None:
    """Select within the budgets and compact; None if that is all that is held."""
    if group.scores is None or budgets is None:
        return None
    of_layer: list[list[int]] = budgets.tolist()
    if all(length == each for row in of_layer for length, each in _paired(row, group.competing)):
        return None
    selection = _selected(pipeline, group, group.scores, group.own(budgets))
    if len({length for row in of_layer for length in row}) > 1:
        _check_uneven(pipeline, of_layer)
    lengths = group.own(budgets)
    if len(group.views) == 1:
        return [_compacted(pipeline, group.views[0], group.observations[0], selection, lengths)]
    pieces = []
    for head, shown in enumerate(zip(group.views, group.observations, strict=True)):
        own = slice(head, head + 1)
        alone = Selection(
            indices=selection.indices[:, own, : int(lengths[0, head])],
            lengths=selection.lengths[:, own],
        )
        pieces.append(_compacted(pipeline, *shown, alone, lengths[:, own]))
    return pieces


def _selected(
    pipeline: Pipeline,
    group: Ranked,
    scores: Float[Tensor, "b n S"],
    lengths: Int[Tensor, "b n"],
) -> Selection:
    """Select as many positions of each head, and of each span its part of them."""
    if group.protected is not None:
        scores = before_others(scores, group.protected, lengths)
    if group.division is not None:
        scores = group.division.of(scores, lengths)
    return pipeline.choose(scores, lengths)


def _moved(pipeline: Pipeline, contents: Contents, group: Ranked, budgets: Budgets) -> bool:
    """Move the kept rows to the front of their memory; False if they must not move.

    Rows move where few of them go, as in decoding: what is left of a prompt would hold on to the
    memory of all of it. A part that raises does so before any row has moved. So rows of a selector
    whose faults are read later do not move.
    """
    if group.scores is None or budgets is None or type(pipeline.compactor) is not GatherCompactor:
        return False
    if is_patient(group.scores.device) and not pipeline.titles["selector"].is_proved:
        return False
    if len(group.views) > 1 or group.views[0].keys.shape[2] < contents.slots.held:
        return False
    of_layer: list[list[int]] = budgets.tolist()
    low, high = min(map(min, of_layer)), max(map(max, of_layer))
    tables, view, uneven = (contents.keys, contents.values), group.views[0], low < high
    high += max(0, contents.slots.held - view.newest)
    if uneven or high >= contents.slots.held or not all(each.fits(high) for each in tables):
        return False
    selection = _selected(pipeline, group, group.scores, group.own(budgets))
    selection, _ = _behind_settled(selection, selection.lengths, view)
    compact_in_place(contents.keys.view, contents.values.view, selection.indices)
    for table in tables:
        table.truncate(high)
    rows = selection.indices.to(contents.slots.device)
    contents.slots.replace(view.positions.gather(2, rows), [high] * len(view.keys))
    contents.state = _gathered(view.state, rows)
    return True


def _behind_settled(
    selection: Selection, lengths: Int[Tensor, "b n"], view: View
) -> tuple[Selection, Int[Tensor, "b n"]]:
    """Put the positions that earlier turns kept before those chosen of the newest turn."""
    settled = view.keys.shape[2] - view.newest
    if settled <= 0:
        return selection, lengths
    indices = selection.indices
    first = torch.arange(settled, device=indices.device).expand(*indices.shape[:2], -1)
    both = torch.cat([first, indices + settled], -1)
    return Selection(indices=both, lengths=selection.lengths + settled), lengths + settled


def _paired(lengths: Sequence[int], held: Sequence[int]) -> zip[tuple[int, int]]:
    return zip(lengths, [*held] * len(lengths) if len(held) == 1 else held, strict=True)


def _compacted(
    pipeline: Pipeline,
    view: View,
    observation: Observation,
    selection: Selection,
    lengths: Int[Tensor, "b n"],
) -> Piece:
    selection, lengths = _behind_settled(selection, lengths, view)
    keys, values, bias = pipeline.compact_with_bias(
        view.keys, view.values, selection, observation, view.bias
    )
    # Rows beyond a head's length are fillers, which assembly cuts off.
    rows = selection.rows(view.keys.shape[2]).to(view.positions.device)
    return Piece(
        keys=keys,
        values=values,
        positions=view.positions.gather(2, rows),
        state=_gathered(view.state, rows),
        lengths=None if bool((lengths == keys.shape[2]).all()) else lengths,
        bias=bias,
        evicted=_remainder(pipeline, view, observation, selection, lengths),
    )


def _remainder(
    pipeline: Pipeline,
    view: View,
    observation: Observation,
    selection: Selection,
    lengths: Int[Tensor, "b n"],
) -> Remainder | None:
    """Return what stands for the evicted rows of each head; None if the compactor keeps none."""
    if not pipeline.remainder_rows:
        return None
    keys, values = pipeline.remainder(view.keys, view.values, selection, observation)
    counts = (view.keys.shape[2] - lengths).to(keys.device, non_blocking=True)
    return Remainder(keys=keys, values=values, counts=counts)


def _gathered(
    state: Float[Tensor, "b h S *rest"] | None, rows: Int[Tensor, "b n K"]
) -> Float[Tensor, "b h K *rest"] | None:
    if state is None:
        return None
    heads, entry = rows.shape[1], state.shape[3:]
    by_group = state.unflatten(1, (heads, -1))
    rows = rows[:, :, None].expand(*by_group.shape[:3], -1)
    rows = rows.view(*rows.shape, *[1] * len(entry)).expand(*rows.shape, *entry)
    kept: Tensor = by_group.gather(3, rows).flatten(1, 2)
    return kept


def _check_uneven(pipeline: Pipeline, lengths: list[list[int]]) -> None:
    """Refuse uneven heads beside a part that needs even ones."""
    flat = [length for row in lengths for length in row]
    for kind, part in pipeline.parts.items():
        if across_heads(part) and any(len(set(row)) > 1 for row in lengths):
            raise InvalidComponentError(
                f"{pipeline.titles['allocator']} gave the heads of one layer {min(flat)} to "
                f"{max(flat)} positions, but {pipeline.titles[kind]} needs them alike. Set "
                "`uneven = True` on the allocator: `compose` then refuses the combination."
            )
