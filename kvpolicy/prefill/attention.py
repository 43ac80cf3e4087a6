"""Attention to chosen blocks: compiled if possible, else by the slower PyTorch reference."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from kvpolicy.errors import PrefillFallbackWarning
from kvpolicy.prefill import flex, reference

_compiles: dict[Hashable, bool] = {}


def block_attention(
    queries: Float[Tensor, "B H S D"],
    keys: Float[Tensor, "B N S D"],
    values: Float[Tensor, "B N S Dv"],
    blocks: Bool[Tensor, "b h M M"],
    *,
    block: int,
    scaling: float,
    softcap: float | None = None,
) -> Float[Tensor, "B H S Dv"]:
    """Return causal attention of each block of queries to its chosen blocks of keys.

    `blocks` must hold the diagonal: each block of queries attends to its own keys. If
    flex_attention does not compile, one PrefillFallbackWarning gives the reason. The reference then
    computes the same numbers at the cost of dense attention. See `reference.block_attention` for an
    example.
    """
    given: dict[str, Any] = {"block": block, "scaling": scaling, "softcap": softcap}
    compiled = partial(flex.block_attention, queries, keys, values, blocks, **given)
    kind = (
        queries.device.type, queries.dtype, queries.shape[1], keys.shape[1], queries.shape[-1],
        values.shape[-1], len(queries) > 1, blocks.shape[0] > 1, blocks.shape[1] > 1,
        block, softcap is None, torch.is_inference_mode_enabled(),
    )  # fmt: skip
    if kind not in _compiles:
        _compiles[kind] = _try(compiled, queries, block)
    if _compiles[kind]:
        return compiled()
    return reference.block_attention(queries, keys, values, blocks, **given)


def _try(attend: Callable[[], Tensor], queries: Tensor, block: int) -> bool:
    """Return whether `attend` compiles. Warn if it does not."""
    try:
        with warnings.catch_warnings():
            # The compiler calls functions that PyTorch itself has deprecated.
            warnings.simplefilter("ignore", DeprecationWarning)
            attend()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - a compiler may raise anything; the reference remains
        said = str(error).strip().partition("\n")[0]
        warnings.warn(
            "sparse prefill is as slow as dense attention here: flex_attention does not compile "
            f"for {queries.dtype} on {queries.device.type}, head dim {queries.shape[-1]} and "
            f"blocks of {block} ({type(error).__name__}: {said}). A CPU needs a C++ compiler and "
            "float32, bfloat16 or float16. A GPU needs Triton, a head dim of at least 16 and "
            "blocks of 128.",
            PrefillFallbackWarning,
            stacklevel=3,
        )
        return False
    return True
