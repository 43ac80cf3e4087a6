"""Whether what a file says of a layer can be true: counts, shapes, kinds of numbers, positions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import LinearAttentionLayer

from kvpolicy.cache.eviction.schedule import Schedule
from kvpolicy.cache.eviction.spans import BatchSpans
from kvpolicy.cache.memory.contents import Contents
from kvpolicy.cache.memory.ragged import RaggedRows
from kvpolicy.cache.memory.slots import Slots
from kvpolicy.cache.storage.residual import Residual
from kvpolicy.huggingface.file.remainders import check_remainder
from kvpolicy.huggingface.layer import PolicyLayer

_LARGEST = 2**31
"""Positions are int32."""


def check_layers(layers: Sequence[Any]) -> None:
    """Raise ValueError unless all layers have read the same tokens of the same sequences."""
    evicting = [layer for layer in layers if isinstance(layer, PolicyLayer)]
    _require(len({layer.seen for layer in evicting}) == 1, "layers have seen unlike numbers")
    _require(len({layer.batch for layer in evicting}) == 1, "layers have unlike batches")
    slots = [layout.slots.seen for layer in evicting if (layout := layer.memory.layout)]
    _require(all(each == slots[0] for each in slots), "sequences are of unlike lengths")
    for layer in layers:
        if not isinstance(layer, PolicyLayer):
            _check_other(layer, evicting[0].seen, evicting[0].batch)
        if isinstance(layer, LinearAttentionLayer):
            _check_states(layer, evicting[0].seen, evicting[0].batch)


def restore_spans(spans: BatchSpans | None, layers: Sequence[PolicyLayer]) -> None:
    """Give each row its spans; raise ValueError unless all layers hold what these protect."""
    batch = layers[0].batch
    if spans is None or not batch:
        return
    _require(len(spans.given) in (1, batch), "spans of another number of sequences")
    spans.rows = list(range(batch)) if len(spans.given) > 1 else []
    for layer in layers:
        layout = layer.memory.layout
        for row, seen in enumerate([] if layout is None else layout.slots.seen):
            held = spans.protects(layer.positions[row : row + 1], row).sum(-1)
            own = spans.protected(row, 0, seen)
            _require(bool((held == own).all()), "a protected position is not held")


def check_policy_layer(layer: PolicyLayer, query_heads: int) -> None:
    """Raise ValueError unless all that a layer holds fits together."""
    _require(0 <= layer.seen < _LARGEST, f"{layer.seen} tokens are seen")
    memory = layer.memory
    _require(memory.stored is None or memory.contents is None, "it is stored, and it is not")
    if memory.layout is not None and memory.layout.ragged is not None:
        # A storage makes room for as many rows as the lengths say.
        _check_lengths(memory.layout.ragged, memory.layout.slots)
    contents = memory.loaded()
    if contents is None:
        _require(layer.seen == 0, "it has seen tokens, and holds nothing")
        _check_schedule(layer.schedule, None, (query_heads, None))
        return
    _require(contents.is_consistent(layer.seen), "its tensors do not fit one another")
    _check_slots(contents.slots, layer.seen)
    _check_contents(contents, query_heads)
    check_remainder(contents, keeps=bool(layer.session.policy.remainder_rows))
    # Queries have the channels of keys, but not those of latents.
    channels = None if layer.session.is_latent else contents.keys.view.shape[3]
    _check_schedule(layer.schedule, contents, (query_heads, channels))
    residual = getattr(memory.stored, "residual", None)
    if isinstance(residual, Residual):
        _check_residual(residual, contents)


def _check_slots(slots: Slots, seen: int) -> None:
    _require(slots.batch > 0 and slots.heads > 0, "it has no sequence, or no head")
    _require(0 <= slots.moved <= slots.held <= seen, "it holds more than it has seen")
    for length, own in zip(slots.lengths, slots.seen, strict=True):
        _require(0 <= length <= min(slots.held, own), "a sequence is longer than what is held")
        _require(own <= seen, "a sequence is longer than what was seen")
    _require(slots.known.dtype == torch.int32, f"positions are {slots.known.dtype}")
    _require(slots.known.shape[-1] <= slots.held, "more positions than slots")
    for settled, own in zip(slots.settled, slots.seen, strict=True):
        _require(0 <= settled <= own, "a turn begins behind what was seen")
    if slots.columns is not None:
        _check_columns(slots.columns, slots.seen, seen)
    positions = slots.positions
    ends = torch.tensor(slots.seen, device=positions.device)[:, None, None]
    is_real = positions >= 0
    _require(bool((positions >= -1).all() & (positions < ends).all()), "a position is not in text")
    _require(_ascends(positions) and _ascends(is_real.int(), strictly=False), "unordered positions")
    counts = torch.tensor(slots.lengths, device=positions.device)[:, None]
    _require(bool((is_real.sum(-1) == counts).all()), "lengths are not those of the positions")


def _check_columns(columns: Tensor, own: list[int], seen: int) -> None:
    """Check which tokens were padding, in rows with padding behind older tokens."""
    shape = tuple(columns.shape)
    _require(columns.dtype == torch.bool, f"columns are {columns.dtype}")
    _require(
        len(shape) == 2 and shape[0] == len(own) and shape[1] <= seen, "columns of another shape"
    )
    counts: list[int] = columns.sum(1).tolist()
    later = seen - shape[1]
    _require([each + later for each in counts] == own, "columns are not those of the sequences")


def _check_contents(contents: Contents, query_heads: int) -> None:
    keys, values, slots = contents.keys.view, contents.values.view, contents.slots
    _require(_are_floats(keys, values), "keys or values are no floating-point numbers")
    _require(query_heads % slots.heads == 0, f"{query_heads} query heads share {slots.heads}")
    if contents.state is not None:
        expected = (slots.batch, query_heads, slots.held)
        _require(tuple(contents.state.shape[:3]) == expected, "running state of another shape")
    if contents.ragged is not None:
        _check_ragged(contents.ragged, contents, query_heads)


def _check_ragged(ragged: RaggedRows, contents: Contents, query_heads: int) -> None:
    slots = contents.slots
    _require(_are_floats(ragged.keys, ragged.values), "ragged rows are no floating-point numbers")
    same = ragged.keys.shape[-1] == contents.keys.view.shape[-1]
    same = same and ragged.values.shape[-1] == contents.values.view.shape[-1]
    _require(same, "ragged rows are of another width")
    _require(ragged.positions.dtype == torch.int32, f"positions are {ragged.positions.dtype}")
    first_dense = [own - length for own, length in zip(slots.seen, slots.lengths, strict=True)]
    for row, _, rows in ragged.heads():
        own = ragged.positions[rows]
        _require(bool(((own >= 0) & (own < first_dense[row])).all()), "a position is not in text")
        _require(bool((own.diff() > 0).all()), "unordered positions")
    _require(ragged.bias is None or bool(ragged.bias.isfinite().all()), "a bias is not finite")
    if ragged.state is not None:
        expected = (len(ragged.positions), query_heads // slots.heads)
        _require(tuple(ragged.state.shape[:2]) == expected, "running state of another shape")


def _check_lengths(ragged: RaggedRows, slots: Slots) -> None:
    lengths = ragged.lengths
    _require(lengths.dtype == torch.int64, f"lengths are {lengths.dtype}")
    _require(tuple(lengths.shape) == (slots.batch, slots.heads), "lengths of another shape")
    _require(bool((lengths >= 0).all()), "a head has a negative length")
    _require(int(lengths.sum()) == len(ragged.positions), "lengths are not those of the rows")


def _check_residual(residual: Residual, contents: Contents) -> None:
    keys, values, slots = residual.keys, residual.values, contents.slots
    shape = (slots.batch, slots.heads, residual.count)
    same = tuple(keys.shape[:3]) == tuple(values.shape[:3]) == shape
    _require(same, "residual rows of another shape")
    _require(residual.count <= contents.held, "more residual rows than slots")


def _check_schedule(
    schedule: Schedule, contents: Contents | None, sizes: tuple[int, int | None]
) -> None:
    """Check the queries that are remembered; `sizes` are their heads and channels, if known."""
    due, queries = schedule.every or 1, schedule.queries
    _require(0 <= schedule.decoded < due, f"{schedule.decoded} tokens since an eviction")
    if queries is None:
        return
    _require(contents is not None, "it remembers queries, and holds nothing")
    if contents is not None:
        heads, channels = sizes
        shape = (contents.slots.batch, heads, channels or queries.shape[3])
        found = (queries.shape[0], queries.shape[1], queries.shape[3])
        _require(found == shape and queries.shape[2] > 0, "queries of another shape")
    most = schedule.window
    _require(most is None or queries.shape[2] <= most, "it remembers more queries than it shows")


def _check_other(layer: Any, seen: int, batch: int) -> None:
    """Check a layer of transformers: it has read what the others have."""
    count = getattr(layer, "cumulative_length", seen)
    _require(count == seen, "layers have seen unlike numbers")
    keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
    _require((keys is None) == (values is None), "keys without values")
    _require(
        keys is None or getattr(layer, "is_initialized", True), "keys of a layer that has none"
    )
    if seen == 0:
        return
    if isinstance(keys, Tensor) and isinstance(values, Tensor):
        _require(_are_floats(keys, values), "keys or values are no floating-point numbers")
        _require(keys.ndim == values.ndim == 4, "keys or values have not four axes")
        _require(keys.shape[:3] == values.shape[:3], "keys and values do not fit one another")
        _require(keys.shape[0] == batch, "layers have unlike batches")
        _require(keys.shape[2] <= seen, "a layer holds more than it has seen")


def _check_states(layer: Any, seen: int, batch: int) -> None:
    """Check the states of a linear layer, alone or beside attention."""
    for name in ("conv_states", "recurrent_states"):
        begun = _by_number(getattr(layer, f"is_{name}_initialized"))
        for at, state in _by_number(getattr(layer, name)).items():
            _require(begun[at] == (state is not None), f"{name} are there, and have not begun")
            if state is None or seen == 0:
                continue  # a layer that was reset may keep tensors of zeros
            _require(_are_floats(state), f"{name} are no floating-point numbers")
            _require(state.ndim and state.shape[0] == batch, f"{name} of another batch")
    _check_convolutions(layer, seen)


def _check_convolutions(layer: Any, seen: int) -> None:
    """Check whether a convolution goes on from its states, and how many of them it needs."""
    states, sizes = (
        _by_number(layer.conv_states),
        _by_number(getattr(layer, "conv_kernel_size", {})),
    )
    for at, goes_on in _by_number(layer.has_previous_state).items():
        state = states[at]
        _require(goes_on == (seen > 0 and state is not None), "conv_states are there, and not used")
        # A layer that records the past, for drafts, has more.
        if state is not None and at in sizes and not layer.record_past:
            _require(sizes[at] == state.shape[-1], "conv_states of another length")


def _by_number(states: Any) -> dict[int, Any]:
    """Return states by their number; in older transformers a layer has one."""
    return states if isinstance(states, dict) else {0: states}


def _are_floats(*tensors: Tensor) -> bool:
    return all(each.is_floating_point() for each in tensors)


def _ascends(numbers: Tensor, *, strictly: bool = True) -> bool:
    """Whether numbers ascend along the last axis; of positions, those behind the padding do."""
    steps = numbers.diff(dim=-1)
    if not strictly:
        return bool((steps >= 0).all())
    return bool(((steps > 0) | (numbers[..., 1:] < 0)).all())


def _require(is_true: object, otherwise: str) -> None:
    if not is_true:
        raise ValueError(otherwise)
