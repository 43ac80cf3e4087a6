"""Attention to chosen blocks by PyTorch's compiled flex_attention, which skips other blocks."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from kvpolicy.prefill.blocks import listed, offsets

_MOST_VARIANTS = 64
"""How many compiled variants are kept, for models, dtypes and shapes. PyTorch's default is 8."""


@torch.no_grad()
def block_attention(
    queries: Float[Tensor, "B H S D"],
    keys: Float[Tensor, "B N S D"],
    values: Float[Tensor, "B N S Dv"],
    blocks: Bool[Tensor, "b h M M"],
    *,
    block: int,
    scaling: float,
    softcap: float | None,
) -> Float[Tensor, "B H S Dv"]:
    """Return attention to whole blocks below the diagonal, and causal attention on the diagonal.

    The first call for a kind of input compiles. It raises what the compiler raises. Prompts of
    different lengths are one kind.
    """
    from torch.nn.attention.flex_attention import BlockMask

    length = queries.shape[2]
    diagonal = (offsets(blocks.shape[-1], blocks.device) == 0).expand_as(blocks)
    mask = BlockMask.from_kv_blocks(
        *listed(diagonal),
        *listed(blocks.tril(-1)),
        BLOCK_SIZE=block,
        mask_mod=_causal,
        seq_lengths=(length, length),
        compute_q_blocks=False,
    )
    with torch._dynamo.config.patch(recompile_limit=_MOST_VARIANTS):
        output: Tensor = _compiled()(
            # `.data` hides which tensor they are views of: other views would compile again.
            queries.data,
            keys.data,
            values.data,
            score_mod=None if softcap is None else _capped(softcap, queries.device),
            block_mask=mask,
            scale=scaling,
            enable_gqa=queries.shape[1] != keys.shape[1],
        )
    return output


@cache
def _compiled() -> Callable[..., Any]:
    # Without `fullgraph`, PyTorch runs it uncompiled after too many variants.
    return torch.compile(_flex_attention, fullgraph=True, dynamic=True)


def _flex_attention(*args: Any, **kwargs: Any) -> Any:
    # Uncompiled, flex_attention ignores the lists and attends to all blocks.
    if not torch.compiler.is_compiling():
        raise RuntimeError("torch.compile is turned off")
    from torch.nn.attention.flex_attention import flex_attention

    return flex_attention(*args, **kwargs)


def _causal(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
    return query >= key


def _capped(softcap: float, device: torch.device) -> Callable[..., Tensor]:
    # A tensor, because a Python number that changes between models does not compile on a CPU.
    cap = torch.full((), softcap, dtype=torch.float32, device=device)

    def capped(logit: Tensor, row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return cap * torch.tanh(logit / cap)

    return capped
