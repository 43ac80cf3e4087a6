"""Sparse prefill of one layer: the first prompt attends to the blocks that a pattern chooses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from kvpolicy.errors import (
    ComponentFailedError,
    InvalidComponentError,
    KvpolicyError,
    shown,
    told,
)
from kvpolicy.observation.logits import Logits
from kvpolicy.pipeline.writes import versions, written
from kvpolicy.prefill.attention import block_attention
from kvpolicy.prefill.blocks import attended, blocks_of, density
from kvpolicy.prefill.pattern import PrefillPattern


class SparsePrompt(NamedTuple):
    """The output of attention, and the share of the causal query-key pairs that was computed."""

    output: Float[Tensor, "B Q H Dv"]
    density: Float64[Tensor, ""]


@torch.no_grad()
def read_sparsely(
    pattern: PrefillPattern,
    queries: Float[Tensor, "B H S D"],
    keys: Float[Tensor, "B N S D"],
    values: Float[Tensor, "B N S Dv"],
    lengths: Sequence[int],
    logits: Logits,
) -> SparsePrompt:
    """Attend to the blocks that the pattern chooses; each row's last `lengths` tokens are real.

    Every row is read as if it were alone: padding moves behind the prompt, where no real token sees
    it.
    """
    padding = [queries.shape[2] - length for length in lengths]
    if any(padding):
        queries, keys, values = (_moved(each, padding, -1) for each in (queries, keys, values))
        chosen = _chosen_by_row(pattern, queries, keys, lengths, logits)
    else:
        chosen = _chosen(pattern, queries, keys, logits)
    blocks = attended(chosen)
    output = block_attention(
        queries,
        keys,
        values,
        blocks,
        block=pattern.block,
        scaling=logits.scaling,
        softcap=logits.softcap,
    )
    if any(padding):
        output = _moved(output, padding, 1)
    return SparsePrompt(
        output.transpose(1, 2).contiguous(), density(blocks, lengths, pattern.block)
    )


def _moved(
    tokens: Float[Tensor, "B H S D"], padding: Sequence[int], direction: int
) -> Float[Tensor, "B H S D"]:
    """Move every row's padding from the left to the right, or back."""
    moved = [row.roll(direction * count, 1) for row, count in zip(tokens, padding, strict=True)]
    return torch.stack(moved)


def _chosen_by_row(
    pattern: PrefillPattern,
    queries: Float[Tensor, "B H S D"],
    keys: Float[Tensor, "B N S D"],
    lengths: Sequence[int],
    logits: Logits,
) -> Bool[Tensor, "B H M M"]:
    """Let the pattern choose for each row's own length; a short row attends to all its keys."""
    batch, heads, longest, _ = queries.shape
    count = blocks_of(longest, pattern.block)
    chosen = queries.new_ones((batch, heads, count, count), dtype=torch.bool)
    for row, length in enumerate(lengths):
        if length > pattern.dense_up_to:
            prompt = (slice(row, row + 1), slice(None), slice(length))
            own = _chosen(pattern, queries[prompt], keys[prompt], logits)
            chosen[row, :, : own.shape[-1], : own.shape[-1]] = own[0]
    return chosen


def _chosen(
    pattern: PrefillPattern,
    queries: Float[Tensor, "B H S D"],
    keys: Float[Tensor, "B N S D"],
    logits: Logits,
) -> Bool[Tensor, "b h M M"]:
    """Let the pattern choose, and name the pattern in every error."""
    name, inputs = f"prefill pattern {shown(pattern)}", (queries, keys)
    before = versions(inputs)
    try:
        chosen: Any = pattern.choose(queries, keys, scaling=logits.scaling, softcap=logits.softcap)
    except KvpolicyError:
        raise
    except (Exception, SystemExit) as error:
        raise ComponentFailedError(f"{name} raised {told(error)}") from error
    if written(before, inputs):
        raise InvalidComponentError(f"{name} wrote into the queries or keys that it was shown.")
    count = blocks_of(keys.shape[2], pattern.block)
    expected = (*queries.shape[:2], count, count)
    if not _fits(chosen, expected) or chosen.device != keys.device:
        described = shown(chosen)
        if isinstance(chosen, Tensor):
            elsewhere = "" if chosen.device == keys.device else f" on {chosen.device}"
            described = f"{chosen.dtype} of {tuple(chosen.shape)}{elsewhere}"
        raise InvalidComponentError(
            f"{name} chose {described}, not torch.bool of {expected} on {keys.device} "
            "(B, H, M, M; B and H may be 1)."
        )
    found: Tensor = chosen
    return found


def _fits(chosen: Any, expected: tuple[int, ...]) -> bool:
    if not isinstance(chosen, Tensor) or chosen.dtype != torch.bool or chosen.dim() != 4:
        return False
    return all(
        got in {want, 1 if axis < 2 else want}
        for axis, (got, want) in enumerate(zip(chosen.shape, expected, strict=True))
    )
