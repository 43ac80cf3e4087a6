"""Checks of what parts return. Each error names the part and its plugin."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
from torch import Tensor

from kvpolicy.errors import (
    ComponentFailedError,
    InvalidComponentError,
    KvpolicyError,
    shown,
    told,
)
from kvpolicy.observation.fold import Fold
from kvpolicy.observation.observation import Observation
from kvpolicy.pipeline.numbers import check_numbers, is_finite
from kvpolicy.pipeline.title import Title
from kvpolicy.pipeline.writes import versions, written
from kvpolicy.stages.selection import Selection

_COUNTS = {torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8}


@contextmanager
def at_work(title: Title, *inputs: object) -> Iterator[None]:
    """Run a part: name it in its errors, and refuse it if it writes into a tensor of `inputs`.

    A KvpolicyError gets a note. Any other exception becomes a ComponentFailedError.
    """
    before = versions(inputs)
    try:
        yield
    except KvpolicyError as error:
        error.add_note(f"raised by {title}")
        raise
    except (Exception, SystemExit) as error:
        # A part that calls sys.exit must not end the program that uses it.
        raise ComponentFailedError(f"{title} raised {told(error)}") from error
    if names := written(before, inputs):
        _refuse_writing(title, names)


def checked_fold(title: Title, fold: Fold) -> Fold:
    """Return the smoother's temporal part, with checks whose errors name the smoother."""
    return Fold(
        lambda values: _folded(title, fold.temporal, values),
        None if fold.weights is None else lambda window: _weights(title, fold, window),
    )


def checked_scores(title: Title, scores: Any, observation: Observation) -> Tensor:
    """Return the scores, if they are finite float32 of shape (B, H, S)."""
    expected = (*observation.queries.shape[:2], observation.length)
    if not isinstance(scores, Tensor):
        _refuse(title, f"a {type(scores).__name__}", f"a float32 tensor of {expected}")
    if tuple(scores.shape) != expected:
        _refuse(title, f"shape {tuple(scores.shape)}", f"shape {expected} (B, H, S)")
    if scores.dtype != torch.float32:
        _refuse(title, f"dtype {scores.dtype}", "dtype torch.float32")
    _check_place(title, scores, observation.keys.device)
    if not bool(scores.isfinite().all()):
        check_numbers(observation)
        _refuse(title, "scores that are NaN or infinite", "finite scores")
    return scores


def checked_state(title: Title, state: Any, observation: Observation) -> Tensor:
    """Return the running state, if it is finite float32 of shape (B, H, S, ...), as before."""
    expected = (*observation.queries.shape[:2], observation.length)
    if not isinstance(state, Tensor) or tuple(state.shape[:3]) != expected:
        described = f"shape {tuple(state.shape)}" if isinstance(state, Tensor) else shown(state)
        _refuse(title, f"a state of {described}", f"a state of shape {expected} (B, H, S)")
    before = observation.state
    if before is not None and state.shape != before.shape:
        _refuse(
            title,
            f"a state of shape {tuple(state.shape)}",
            f"shape {tuple(before.shape)}, as it did before",
        )
    if state.dtype != torch.float32:
        _refuse(title, f"a state of dtype {state.dtype}", "dtype torch.float32")
    _check_place(title, state, observation.keys.device)
    if not bool(state.isfinite().all()):
        check_numbers(observation)
        _refuse(title, "a state that is NaN or infinite", "a finite state")
    return state


def checked_layer_budgets(title: Title, budgets: Any, scores: Sequence[Tensor]) -> list[Tensor]:
    """Return the counts of every layer, if each is an integer within what its layer holds."""
    if not isinstance(budgets, Sequence) or len(budgets) != len(scores):
        expected = f"one tensor for each of {len(scores)} layers"
        _refuse(title, shown(budgets), expected)
    return [checked_budgets(title, *each) for each in zip(budgets, scores, strict=True)]


def checked_budgets(title: Title, budgets: Any, scores: Tensor) -> Tensor:
    """Return the counts, if they are integers in [0, S] of shape (B, N).

    Scores of -inf mark positions that a head does not hold. Its count is cut to what it holds.
    """
    expected, length = tuple(scores.shape[:2]), scores.shape[-1]
    if not isinstance(budgets, Tensor) or budgets.dtype not in _COUNTS:
        _refuse(title, shown(budgets), f"an integer tensor of {expected}")
    if tuple(budgets.shape) != expected:
        _refuse(title, f"shape {tuple(budgets.shape)}", f"shape {expected} (B, N)")
    _check_place(title, budgets, scores.device, torch.device("cpu"))
    low, high = (int(bound) for bound in budgets.aminmax())
    if low < 0 or high > length:
        _refuse(title, f"counts from {low} to {high}", f"counts in 0 ... {length}")
    missing = scores.isneginf()
    if not bool(missing.any()):
        return budgets
    return budgets.minimum((length - missing.sum(-1)).to(budgets))


def checked_selection(title: Title, selection: Any, budgets: Tensor, scores: Tensor) -> Selection:
    """Return the selection, if its rows are distinct, ascending, and as many as the budgets say.

    It must also hold the protected positions. Columns beyond the largest budget are cut off.
    """
    if not isinstance(selection, Selection):
        _refuse(title, f"a {type(selection).__name__}", "a kvpolicy.Selection")
    indices, lengths = _tensors_of(title, selection, scores)
    lengths = lengths.to(budgets.device)
    length, most = scores.shape[-1], int(budgets.max())
    if not torch.equal(lengths, budgets.to(lengths.dtype)) or indices.shape[-1] < most:
        _refuse(title, "other lengths", "as many rows for each head as its budget")
    slot = torch.arange(indices.shape[-1], device=indices.device)
    valid = slot < lengths.to(indices.device)[..., None]
    inside = torch.where(valid, (indices >= 0) & (indices < length), indices == length)
    rising = (indices.diff(dim=-1) > 0) | ~valid[..., 1:]
    if not bool(inside.all() & rising.all()):
        _refuse(
            title,
            "rows that repeat, are out of order or out of range",
            f"distinct ascending rows in 0 ... {length - 1}, then {length} beyond a head's length",
        )
    protected = scores.isposinf()
    kept = (protected.gather(-1, indices.clamp(0, length - 1)) & valid).sum(-1)
    if not torch.equal(kept, protected.sum(-1).minimum(valid.sum(-1))):
        _refuse(
            title,
            "a selection that leaves out protected positions",
            "all protected positions (attention sinks and recent tokens)",
        )
    if indices.shape[-1] > most:
        return Selection(indices=indices[..., :most], lengths=selection.lengths)
    return selection


def checked_compaction(
    title: Title, compacted: Any, keys: Tensor, values: Tensor, selection: Selection
) -> tuple[Tensor, Tensor]:
    """Return the compacted keys and values, if shape and dtype are right and they are finite."""
    if not isinstance(compacted, tuple) or len(compacted) != 2:
        _refuse(title, f"a {type(compacted).__name__}", "a pair of keys and values")
    for got, whole in zip(compacted, (keys, values), strict=True):
        expected = (*selection.indices.shape, whole.shape[-1])
        if not isinstance(got, Tensor) or tuple(got.shape) != expected or got.dtype != whole.dtype:
            described = f"{got.dtype} {tuple(got.shape)}" if isinstance(got, Tensor) else shown(got)
            _refuse(title, described, f"{whole.dtype} {expected} (B, N, K, D)")
        _check_place(title, got, whole.device)
        # If the model itself computed NaN or infinity, the part is not to blame.
        if not is_finite(got) and is_finite(whole):
            _refuse(title, "numbers that are NaN or infinite", "finite numbers")
    return compacted


def check_same_state(title: Title, states: Sequence[Tensor]) -> None:
    """Refuse the states of one layer if their entries have different shapes."""
    shapes = sorted({tuple(state.shape[3:]) for state in states})
    if len(shapes) > 1:
        got = f"states whose entries have the shapes {', '.join(map(str, shapes))}"
        _refuse(title, got, "entries of one shape for every head and row")


def _folded(title: Title, temporal: Callable[[Tensor], Tensor], values: Tensor) -> Tensor:
    with at_work(title, values):
        folded: Any = temporal(values)
    expected = (*values.shape[:-2], values.shape[-1])
    if not isinstance(folded, Tensor) or tuple(folded.shape) != expected:
        described = f"shape {tuple(folded.shape)}" if isinstance(folded, Tensor) else shown(folded)
        _refuse(title, described, f"shape {expected} (..., S) for a window")
    _check_place(title, folded, values.device)
    return folded


def _weights(title: Title, fold: Fold, window: int) -> Tensor:
    with at_work(title):
        weights: Any = None if fold.weights is None else fold.weights(window)
    if not isinstance(weights, Tensor) or tuple(weights.shape) != (window,):
        _refuse(title, f"weights {shown(weights)}", f"a tensor of {window} weights")
    if not weights.is_floating_point() or not bool(weights.isfinite().all()):
        _refuse(title, f"weights {shown(weights)}", "finite floats")
    return weights


def _tensors_of(title: Title, selection: Selection, scores: Tensor) -> tuple[Tensor, Tensor]:
    """Return indices and lengths, if both are integer tensors of the right shape and place."""
    indices, lengths = selection.indices, selection.lengths
    if not isinstance(indices, Tensor) or indices.dtype != torch.int64:
        got = f"indices of {getattr(indices, 'dtype', type(indices).__name__)}"
        _refuse(title, got, "indices of torch.int64")
    if not isinstance(lengths, Tensor) or lengths.dtype not in _COUNTS:
        got = f"lengths of {getattr(lengths, 'dtype', type(lengths).__name__)}"
        _refuse(title, got, "lengths that are integers")
    shape = tuple(scores.shape[:2])
    if indices.dim() != 3 or tuple(indices.shape[:2]) != shape or tuple(lengths.shape) != shape:
        got = f"indices of {tuple(indices.shape)} and lengths of {tuple(lengths.shape)}"
        _refuse(title, got, f"{(*shape, 'K')} (B, N, K) and {shape} (B, N)")
    _check_place(title, indices, scores.device)
    _check_place(title, lengths, scores.device, torch.device("cpu"))
    return indices, lengths


def _check_place(title: Title, tensor: Tensor, *devices: torch.device) -> None:
    """Refuse a tensor that is not on one of `devices`, and a sparse tensor."""
    if tensor.layout != torch.strided:
        _refuse(title, f"a tensor of layout {tensor.layout}", "a dense tensor")
    if tensor.device not in devices:
        choices = " or ".join(dict.fromkeys(map(str, devices)))
        _refuse(title, f"a tensor on {tensor.device}", f"a tensor on {choices}")


def _refuse_writing(title: Title, names: Sequence[str]) -> NoReturn:
    message = f"{title} wrote into {', '.join(names)}. A part must not write into its inputs."
    if "output_weight" in names:
        message += " output_weight is a weight of the model. It has changed: load the model again."
    raise InvalidComponentError(message)


def _refuse(title: Title, got: str, expected: str) -> NoReturn:
    raise InvalidComponentError(f"{title} returned {got}; it must return {expected}.")
