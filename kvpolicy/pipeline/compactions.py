"""Checks of what a compactor returns."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from kvpolicy.errors import shown
from kvpolicy.pipeline.doubts import is_patient, refuse_if
from kvpolicy.pipeline.numbers import is_finite, total
from kvpolicy.pipeline.refusals import check_place, refuse
from kvpolicy.pipeline.title import Title
from kvpolicy.stages.selection import Selection


def checked_compaction(
    title: Title, compacted: Any, keys: Tensor, values: Tensor, selection: Selection
) -> tuple[Tensor, Tensor]:
    """Return the compacted keys and values, if shape and dtype are right and they are finite."""
    if not isinstance(compacted, tuple) or len(compacted) != 2:
        refuse(title, f"a {type(compacted).__name__}", "a pair of keys and values")
    for got, whole in zip(compacted, (keys, values), strict=True):
        expected = (*selection.indices.shape, whole.shape[-1])
        if not isinstance(got, Tensor) or tuple(got.shape) != expected or got.dtype != whole.dtype:
            described = f"{got.dtype} {tuple(got.shape)}" if isinstance(got, Tensor) else shown(got)
            refuse(title, described, f"{whole.dtype} {expected} (B, N, K, D)")
        check_place(title, got, whole.device)
        _check_compacted(title, got, whole)
    return compacted


def checked_remainder(
    title: Title, found: Any, keys: Tensor, values: Tensor
) -> tuple[Tensor, Tensor]:
    """Return a key and a value of each head, if shape and dtype are right and they are finite."""
    if not isinstance(found, tuple) or len(found) != 2:
        refuse(title, f"a remainder that is a {type(found).__name__}", "a pair: key and value")
    for got, whole in zip(found, (keys, values), strict=True):
        shape = (*whole.shape[:2], whole.shape[-1])
        dtype = torch.promote_types(whole.dtype, torch.float32)
        if not isinstance(got, Tensor) or tuple(got.shape) != shape or got.dtype != dtype:
            described = f"{got.dtype} {tuple(got.shape)}" if isinstance(got, Tensor) else shown(got)
            refuse(title, f"a remainder of {described}", f"{dtype} {shape} (B, N, D)")
        check_place(title, got, whole.device)
        _check_compacted(title, got, whole)
    return found


def checked_bias(title: Title, bias: Any, keys: Tensor, selection: Selection) -> Tensor:
    """Return a bias of each kept row, if shape and dtype are right and it is finite."""
    shape, dtype = tuple(selection.indices.shape), torch.promote_types(keys.dtype, torch.float32)
    if not isinstance(bias, Tensor) or tuple(bias.shape) != shape or bias.dtype != dtype:
        described = f"{bias.dtype} {tuple(bias.shape)}" if isinstance(bias, Tensor) else shown(bias)
        refuse(title, f"a bias of {described}", f"{dtype} {shape} (B, N, K)")
    check_place(title, bias, keys.device)
    _check_compacted(title, bias, keys)
    found: Tensor = bias
    return found


def _check_compacted(title: Title, got: Tensor, whole: Tensor) -> None:
    """Refuse numbers that are not finite, unless the model itself computed some."""
    fault = partial(refuse, title, "numbers that are NaN or infinite", "finite numbers")
    if not is_patient(got.device):
        if not is_finite(got) and is_finite(whole):
            fault()
    elif not title.is_proved:
        refuse_if(~total(got).isfinite() & total(whole).isfinite(), fault)
