"""Checks of what a selector returns."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kvpolicy.pipeline.doubts import is_patient, refuse_if
from kvpolicy.pipeline.refusals import COUNTS, check_place, refuse
from kvpolicy.pipeline.title import Title
from kvpolicy.stages.selection import Selection


def checked_selection(title: Title, selection: Any, budgets: Tensor, scores: Tensor) -> Selection:
    """Return the selection, if its rows are distinct, ascending, and as many as the budgets say.

    It must also hold the protected positions. Columns beyond the largest budget are cut off.
    `budgets` are on the CPU. The rows of a selector whose promises are proved are not looked at. On
    a GPU those of another one are refused when doubts are read.
    """
    if not isinstance(selection, Selection):
        refuse(title, f"a {type(selection).__name__}", "a kvpolicy.Selection")
    indices, lengths = _tensors_of(title, selection, scores)
    most = max(map(max, budgets.tolist()))
    if indices.shape[-1] < most:
        refuse(title, "other lengths", "as many rows for each head as its budget")
    if not title.is_proved:
        _check_rows(title, indices, lengths, budgets, scores)
        if is_patient(indices.device):
            # A row that is out of range would stop the GPU before its selector is named.
            length = scores.shape[-1]
            indices = indices.clamp(0, length - 1 if selection.is_full else length)
            selection = Selection(indices=indices, lengths=lengths)
    if indices.shape[-1] > most:
        return Selection(indices=indices[..., :most], lengths=lengths)
    found: Selection = selection
    return found


def _check_rows(
    title: Title,
    indices: Int[Tensor, "B N K"],
    lengths: Int[Tensor, "B N"],
    budgets: Int[Tensor, "B N"],
    scores: Float[Tensor, "B N S"],
) -> None:
    length = scores.shape[-1]
    budgets = budgets.to(lengths.device, torch.int64)
    refuse_if(
        (lengths != budgets).any(),
        partial(refuse, title, "other lengths", "as many rows for each head as its budget"),
    )
    slot = torch.arange(indices.shape[-1], device=indices.device)
    valid = slot < budgets.to(indices.device)[..., None]
    inside = torch.where(valid, (indices >= 0) & (indices < length), indices == length)
    rising = (indices.diff(dim=-1) > 0) | ~valid[..., 1:]
    refuse_if(
        ~(inside.all() & rising.all()),
        partial(
            refuse,
            title,
            "rows that repeat, are out of order or out of range",
            f"distinct ascending rows in 0 ... {length - 1}, then {length} beyond a head's length",
        ),
    )
    protected = scores.isposinf()
    kept = (protected.gather(-1, indices.clamp(0, length - 1)) & valid).sum(-1)
    refuse_if(
        (kept != protected.sum(-1).minimum(valid.sum(-1))).any(),
        partial(
            refuse,
            title,
            "a selection that leaves out protected positions",
            "all protected positions (attention sinks, recent tokens and protected spans)",
        ),
    )


def _tensors_of(title: Title, selection: Selection, scores: Tensor) -> tuple[Tensor, Tensor]:
    """Return indices and lengths, if both are integer tensors of the right shape and place."""
    indices, lengths = selection.indices, selection.lengths
    if not isinstance(indices, Tensor) or indices.dtype != torch.int64:
        got = f"indices of {getattr(indices, 'dtype', type(indices).__name__)}"
        refuse(title, got, "indices of torch.int64")
    if not isinstance(lengths, Tensor) or lengths.dtype not in COUNTS:
        got = f"lengths of {getattr(lengths, 'dtype', type(lengths).__name__)}"
        refuse(title, got, "lengths that are integers")
    shape = tuple(scores.shape[:2])
    if indices.dim() != 3 or tuple(indices.shape[:2]) != shape or tuple(lengths.shape) != shape:
        got = f"indices of {tuple(indices.shape)} and lengths of {tuple(lengths.shape)}"
        refuse(title, got, f"{(*shape, 'K')} (B, N, K) and {shape} (B, N)")
    check_place(title, indices, scores.device)
    check_place(title, lengths, scores.device, torch.device("cpu"))
    return indices, lengths
