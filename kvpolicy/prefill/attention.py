"""The door to attention of chosen blocks: compiled where it can be, the same numbers elsewhere."""

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
    """Attend causally, each block of queries only to its blocks of keys; its own must be there.

    Where flex_attention does not compile, a warning says why, once, and the same is computed at the
    cost of dense attention. See `reference.block_attention` for an example.
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
    """Compile, and say whether that worked; warn if it did not."""
    try:
        with warnings.catch_warnings():
            # The compiler uses what PyTorch itself has deprecated.
            warnings.simplefilter("ignore", DeprecationWarning)
            attend()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever a compiler may raise, there is another way
        said = str(error).strip().partition("\n")[0]
        warnings.warn(
            "sparse prefill costs what dense attention does here: flex_attention does not compile "
            f"for {queries.dtype} on {queries.device.type}, head dim {queries.shape[-1]} and "
            f"blocks of {block} ({type(error).__name__}: {said}). A CPU needs a C++ compiler and "
            "float32, bfloat16 or float16; a GPU needs Triton, a head dim of at least 16 and "
            "blocks of 128.",
            PrefillFallbackWarning,
            stacklevel=3,
        )
        return False
    return True
