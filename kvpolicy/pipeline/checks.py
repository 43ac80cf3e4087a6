"""Checks of what parts return. Each error names the part and its plugin."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NoReturn, TypeAlias

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
from kvpolicy.pipeline.doubts import is_patient, refuse_unless_finite
from kvpolicy.pipeline.numbers import check_numbers, is_finite, refuse_numbers, total
from kvpolicy.pipeline.refusals import COUNTS, check_place, refuse
from kvpolicy.pipeline.title import Title
from kvpolicy.pipeline.writes import versions, written

Held: TypeAlias = Sequence[int]
"""How many positions each head of a layer holds; one number if all hold the same."""


@contextmanager
def at_work(title: Title, *inputs: object) -> Iterator[None]:
    """Run a part: name it in its errors, and refuse it if it writes into a tensor of `inputs`.

    A KvpolicyError gets a note. Any other exception becomes a ComponentFailedError. Whether a part
    writes is not looked at where its promises are proved.
    """
    inputs = () if title.is_proved else inputs
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
        fold.is_maximum,
    )


def checked_scores(title: Title, scores: Any, observation: Observation) -> Tensor:
    """Return the scores, if they are finite float32 of shape (B, H, S)."""
    expected = (*observation.queries.shape[:2], observation.length)
    if not isinstance(scores, Tensor):
        refuse(title, f"a {type(scores).__name__}", f"a float32 tensor of {expected}")
    if tuple(scores.shape) != expected:
        refuse(title, f"shape {tuple(scores.shape)}", f"shape {expected} (B, H, S)")
    if scores.dtype != torch.float32:
        refuse(title, f"dtype {scores.dtype}", "dtype torch.float32")
    check_place(title, scores, observation.keys.device)
    _check_finite(title, scores, observation, "scores")
    return scores


def checked_state(title: Title, state: Any, observation: Observation) -> Tensor:
    """Return the running state, if it is finite float32 of shape (B, H, S, ...), as before."""
    expected = (*observation.queries.shape[:2], observation.length)
    if not isinstance(state, Tensor) or tuple(state.shape[:3]) != expected:
        described = f"shape {tuple(state.shape)}" if isinstance(state, Tensor) else shown(state)
        refuse(title, f"a state of {described}", f"a state of shape {expected} (B, H, S)")
    before = observation.state
    if before is not None and state.shape != before.shape:
        refuse(
            title,
            f"a state of shape {tuple(state.shape)}",
            f"shape {tuple(before.shape)}, as it did before",
        )
    if state.dtype != torch.float32:
        refuse(title, f"a state of dtype {state.dtype}", "dtype torch.float32")
    check_place(title, state, observation.keys.device)
    _check_finite(title, state, observation, "a state")
    return state


def checked_layer_budgets(
    title: Title, budgets: Any, scores: Sequence[Tensor], held: Sequence[Held]
) -> list[Tensor]:
    """Return the counts of every layer, if each is an integer within what its layer holds."""
    if not isinstance(budgets, Sequence) or len(budgets) != len(scores):
        expected = f"one tensor for each of {len(scores)} layers"
        refuse(title, shown(budgets), expected)
    for counts, each in zip(budgets, scores, strict=True):
        _check_counts(title, counts, each)
    known = zip(_on_the_host(budgets), scores, held, strict=True)
    return [_within(title, *each) for each in known]


def checked_budgets(title: Title, budgets: Any, scores: Tensor, held: Held) -> Tensor:
    """Return the counts on the CPU, if they are integers in [0, S] of shape (B, N).

    The count of a head is cut to the positions that it holds. To read counts that are on a GPU is
    the one wait of an eviction.
    """
    _check_counts(title, budgets, scores)
    return _within(title, budgets.cpu(), scores, held)


def check_total(title: Title, counts: Tensor, budget: int, spare: Tensor) -> None:
    """Refuse counts of a layer above its budget and what the layers before have left, by row."""
    most = spare + budget * counts.shape[1]
    for row, (kept, bound) in enumerate(zip(counts.sum(1).tolist(), most.tolist(), strict=True)):
        if kept > bound:
            refuse(
                title,
                f"counts that sum up to {kept} for row {row}",
                f"at most {bound}: {budget} for each of {counts.shape[1]} heads, and "
                f"{int(spare[row])} that earlier layers have left",
            )


def _check_counts(title: Title, budgets: Any, scores: Tensor) -> None:
    expected = tuple(scores.shape[:2])
    if not isinstance(budgets, Tensor) or budgets.dtype not in COUNTS:
        refuse(title, shown(budgets), f"an integer tensor of {expected}")
    if tuple(budgets.shape) != expected:
        refuse(title, f"shape {tuple(budgets.shape)}", f"shape {expected} (B, N)")
    check_place(title, budgets, scores.device, torch.device("cpu"))


def _on_the_host(budgets: Sequence[Tensor]) -> Sequence[Tensor]:
    """Return the counts of all layers on the CPU, by one copy if all are in one place."""
    if len({(each.device, each.dtype) for each in budgets}) > 1:
        return [each.cpu() for each in budgets]
    sizes = [each.numel() for each in budgets]
    joined = torch.cat([each.flatten() for each in budgets]).cpu().split(sizes)
    return [flat.view_as(each) for flat, each in zip(joined, budgets, strict=True)]


def _within(title: Title, budgets: Tensor, scores: Tensor, held: Held) -> Tensor:
    """Refuse counts out of 0 ... S, and cut those of heads that hold less."""
    length = scores.shape[-1]
    counts: list[list[int]] = budgets.tolist()
    low, high = min(map(min, counts)), max(map(max, counts))
    if low < 0 or high > length:
        refuse(title, f"counts from {low} to {high}", f"counts in 0 ... {length}")
    budgets = budgets.long()
    return budgets if len(held) == 1 else budgets.minimum(torch.tensor(held, device="cpu"))


def check_same_state(title: Title, states: Sequence[Tensor]) -> None:
    """Refuse the states of one layer if their entries have different shapes."""
    shapes = sorted({tuple(state.shape[3:]) for state in states})
    if len(shapes) > 1:
        got = f"states whose entries have the shapes {', '.join(map(str, shapes))}"
        refuse(title, got, "entries of one shape for every head and row")


def _check_finite(title: Title, numbers: Tensor, observation: Observation, what: str) -> None:
    """Refuse scores or a state that are not finite.

    First the numbers of the model are looked at. If they are not finite, the part is not to blame.
    On a GPU those of a part whose promises are proved are not looked at: see `doubt_numbers`.
    """
    one = what.startswith("a ")
    got = f"{what} that {'is' if one else 'are'} NaN or infinite"
    blamed = partial(refuse, title, got, f"{'a finite state' if one else 'finite scores'}")
    if not is_patient(numbers.device):
        if not is_finite(numbers):
            check_numbers(observation)
            blamed()
    elif not title.is_proved:
        check_numbers(observation)
        refuse_unless_finite(total(numbers), blamed)


def doubt_numbers(scores: Tensor, observation: Observation) -> None:
    """Note on a GPU whether the scores that rank a layer are finite.

    Parts that are to blame for theirs have been noted before: then these tell of the model.
    """
    if is_patient(scores.device):
        layer, of = observation.layer, observation.num_layers
        model = partial(refuse_numbers, "queries, keys or values", layer, of)
        refuse_unless_finite(total(scores), model, urgent=False)


def _folded(title: Title, temporal: Callable[[Tensor], Tensor], values: Tensor) -> Tensor:
    with at_work(title, values):
        folded: Any = temporal(values)
    expected = (*values.shape[:-2], values.shape[-1])
    if not isinstance(folded, Tensor) or tuple(folded.shape) != expected:
        described = f"shape {tuple(folded.shape)}" if isinstance(folded, Tensor) else shown(folded)
        refuse(title, described, f"shape {expected} (..., S) for a window")
    check_place(title, folded, values.device)
    return folded


def _weights(title: Title, fold: Fold, window: int) -> Tensor:
    with at_work(title):
        weights: Any = None if fold.weights is None else fold.weights(window)
    if not isinstance(weights, Tensor) or tuple(weights.shape) != (window,):
        refuse(title, f"weights {shown(weights)}", f"a tensor of {window} weights")
    if not weights.is_floating_point() or not bool(weights.isfinite().all()):
        refuse(title, f"weights {shown(weights)}", "finite floats")
    return weights


def _refuse_writing(title: Title, names: Sequence[str]) -> NoReturn:
    message = f"{title} wrote into {', '.join(names)}. A part must not write into its inputs."
    if "output_weight" in names:
        message += " output_weight is a weight of the model. It has changed: load the model again."
    raise InvalidComponentError(message)
