"""What a policy checks of its parts' results, so that a faulty plugin is named and harms nobody."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor

from kvpolicy.errors import ComponentFailedError, InvalidComponentError, KvpolicyError
from kvpolicy.stages.observation import Observation
from kvpolicy.stages.selection import Selection

if TYPE_CHECKING:
    from kvpolicy.policy import Policy


def title(policy: Policy, kind: str) -> str:
    """Return a part's name for people, with the plugin that it came from."""
    from kvpolicy.registry import origin_of

    return origin_of(kind, getattr(policy, kind), policy.names.get(kind))


@contextmanager
def at_work(policy: Policy, kind: str) -> Iterator[None]:
    """Name the part in whatever it raises."""
    try:
        yield
    except KvpolicyError as error:
        error.add_note(f"raised by {title(policy, kind)}")
        raise
    except Exception as error:
        raise ComponentFailedError(
            f"{title(policy, kind)} raised {type(error).__name__}: {error}"
        ) from error


def checked_scores(policy: Policy, kind: str, scores: Any, observation: Observation) -> Tensor:
    """Return scores that are finite float32 of shape (B, H, S)."""
    expected = (*observation.queries.shape[:2], observation.length)
    if not isinstance(scores, Tensor):
        _refuse(policy, kind, f"a {type(scores).__name__}", f"a float32 tensor of {expected}")
    if tuple(scores.shape) != expected:
        _refuse(policy, kind, f"shape {tuple(scores.shape)}", f"shape {expected} (B, H, S)")
    if scores.dtype != torch.float32:
        _refuse(policy, kind, f"dtype {scores.dtype}", "dtype torch.float32")
    if not bool(scores.isfinite().all()):
        _refuse(policy, kind, "scores that are NaN or infinite", "finite scores")
    return scores


def checked_state(policy: Policy, state: Any, observation: Observation) -> Tensor:
    """Return running state that is finite float32, one entry or more for every head and row."""
    expected = (*observation.queries.shape[:2], observation.length)
    if not isinstance(state, Tensor) or tuple(state.shape[:3]) != expected:
        described = f"shape {tuple(state.shape)}" if isinstance(state, Tensor) else repr(state)
        _refuse(policy, "scorer", f"a state of {described}", f"one of shape {expected} (B, H, S)")
    if state.dtype != torch.float32 or not bool(state.isfinite().all()):
        _refuse(policy, "scorer", f"a {state.dtype} state, NaN or infinite", "finite float32")
    return state


def checked_layer_budgets(policy: Policy, budgets: Any, scores: Sequence[Tensor]) -> list[Tensor]:
    """Return counts for every layer, each within what the layer holds."""
    if not isinstance(budgets, Sequence) or len(budgets) != len(scores):
        _refuse(policy, "allocator", f"{budgets!r}", f"one tensor for each of {len(scores)} layers")
    return [checked_budgets(policy, *each) for each in zip(budgets, scores, strict=True)]


def checked_budgets(policy: Policy, budgets: Any, scores: Tensor) -> Tensor:
    """Return counts within [0, S], one for each row and key/value head.

    A head that holds fewer than others, which scores of -inf say, gets at most what it has.
    """
    expected, length = tuple(scores.shape[:2]), scores.shape[-1]
    if not isinstance(budgets, Tensor) or budgets.is_floating_point() or budgets.is_complex():
        _refuse(policy, "allocator", f"{budgets!r}", f"an integer tensor of {expected}")
    if tuple(budgets.shape) != expected:
        _refuse(policy, "allocator", f"shape {tuple(budgets.shape)}", f"shape {expected} (B, N)")
    low, high = (int(bound) for bound in budgets.aminmax())
    if low < 0 or high > length:
        _refuse(policy, "allocator", f"counts from {low} to {high}", f"counts in 0 ... {length}")
    missing = scores.isneginf()
    if not bool(missing.any()):
        return budgets
    return budgets.minimum((length - missing.sum(-1)).to(budgets))


def checked_selection(policy: Policy, selection: Any, budgets: Tensor, scores: Tensor) -> Selection:
    """Return a selection of distinct rows in ascending order, as many as the budgets say."""
    if not isinstance(selection, Selection):
        _refuse(policy, "selector", f"a {type(selection).__name__}", "a kvpolicy.Selection")
    indices, lengths = selection.indices, selection.lengths.to(budgets.device)
    length = scores.shape[-1]
    if indices.dtype != torch.int64:
        _refuse(policy, "selector", f"indices of {indices.dtype}", "indices of torch.int64")
    if (
        indices.shape[:2] != scores.shape[:2]
        or not torch.equal(lengths, budgets.to(lengths.dtype))
        or indices.shape[-1] < int(budgets.max())
    ):
        _refuse(policy, "selector", "other lengths", "as many rows for each head as its budget")
    slot = torch.arange(indices.shape[-1], device=indices.device)
    valid = slot < lengths.to(indices.device)[..., None]
    inside = (indices >= 0) & (indices < length)
    rising = (indices.diff(dim=-1) > 0) | ~valid[..., 1:]
    if not bool((inside | ~valid).all() & rising.all()):
        _refuse(
            policy,
            "selector",
            "rows that repeat, are out of order or out of range",
            f"distinct ascending rows in 0 ... {length - 1}",
        )
    protected = scores.isposinf()
    kept = (protected.gather(-1, indices.clamp(0, length - 1)) & valid).sum(-1)
    if not torch.equal(kept, protected.sum(-1).minimum(valid.sum(-1))):
        _refuse(policy, "selector", "a selection without them", "all sinks and recent tokens")
    return selection


def checked_compaction(
    policy: Policy, compacted: Any, keys: Tensor, values: Tensor, selection: Selection
) -> tuple[Tensor, Tensor]:
    """Return keys and values with a row for each selected one, of the type they had."""
    if not isinstance(compacted, tuple) or len(compacted) != 2:
        _refuse(policy, "compactor", f"a {type(compacted).__name__}", "a pair of keys and values")
    for got, whole in zip(compacted, (keys, values), strict=True):
        expected = (*selection.indices.shape, whole.shape[-1])
        if not isinstance(got, Tensor) or tuple(got.shape) != expected or got.dtype != whole.dtype:
            described = f"{got.dtype} {tuple(got.shape)}" if isinstance(got, Tensor) else repr(got)
            _refuse(policy, "compactor", described, f"{whole.dtype} {expected} (B, N, K, D)")
    return compacted


def _refuse(policy: Policy, kind: str, got: str, expected: str) -> NoReturn:
    raise InvalidComponentError(f"{title(policy, kind)} returned {got}; it must return {expected}.")
