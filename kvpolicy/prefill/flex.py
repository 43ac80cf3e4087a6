"""Attention to chosen blocks by PyTorch's flex_attention, compiled: the others are not computed."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from kvpolicy.prefill.blocks import listed, offsets

_MOST_VARIANTS = 64
"""Compiled for as many models, dtypes and ways of batching at once; PyTorch's default is 8."""


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
    """Attend whole blocks below the diagonal, and causally on it.

    The first call of a kind compiles, and raises what the compiler does. Any number of tokens is
    of one kind.
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
            # Without the memory of what they are views of, which would be compiled for anew.
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
    # Without `fullgraph` PyTorch would run it uncompiled once too many variants were asked for.
    return torch.compile(_flex_attention, fullgraph=True, dynamic=True)


def _flex_attention(*args: Any, **kwargs: Any) -> Any:
    # Uncompiled, flex_attention takes no notice of the lists: it would attend to all blocks.
    if not torch.compiler.is_compiling():
        raise RuntimeError("torch.compile is turned off")
    from torch.nn.attention.flex_attention import flex_attention

    return flex_attention(*args, **kwargs)


def _causal(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
    return query >= key


def _capped(softcap: float, device: torch.device) -> Callable[..., Tensor]:
    # As a tensor: a number that changes from model to model does not compile on a CPU.
    cap = torch.full((), softcap, dtype=torch.float32, device=device)

    def capped(logit: Tensor, row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return cap * torch.tanh(logit / cap)

    return capped
