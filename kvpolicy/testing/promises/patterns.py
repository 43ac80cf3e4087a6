"""What every prefill pattern promises."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor

from kvpolicy.prefill.blocks import attended, blocks_of
from kvpolicy.prefill.pattern import PrefillPattern
from kvpolicy.testing.promises.inputs import unchanged
from kvpolicy.testing.promises.promise import Draw, promise
from kvpolicy.testing.samples import normal
from kvpolicy.testing.strategies import SEEDS

LONGEST = 3
"""Blocks behind those that are read densely, in the longest prompt that is tried."""


@promise("prefill_pattern", examples=10)
def chooses_blocks_for_every_head(pattern: PrefillPattern, draw: Draw) -> None:
    """The choice is torch.bool of (B, H, M, M), on the device of the keys; B and H may be 1."""
    queries, keys = _prompt(pattern, draw)
    chosen = _chosen(pattern, queries, keys)
    count = blocks_of(keys.shape[2], pattern.block)
    assert chosen.dtype == torch.bool
    assert chosen.device == keys.device
    assert tuple(chosen.shape[2:]) == (count, count)
    assert chosen.shape[0] in (1, queries.shape[0])
    assert chosen.shape[1] in (1, queries.shape[1])


@promise("prefill_pattern", examples=5)
def chooses_the_same_twice(pattern: PrefillPattern, draw: Draw) -> None:
    """The same prompt gives the same choice, and is not written to."""
    queries, keys = _prompt(pattern, draw)
    with unchanged(queries, keys):
        first = _chosen(pattern, queries, keys)
    assert torch.equal(first, _chosen(pattern, queries, keys))


@promise("prefill_pattern", examples=5)
def chooses_for_each_row_as_if_alone(pattern: PrefillPattern, draw: Draw) -> None:
    """A row's choice does not depend on the other rows of its batch."""
    queries, keys = _prompt(pattern, draw, batch=2)
    together = _chosen(pattern, queries, keys).expand(2, -1, -1, -1)
    for row in range(2):
        alone = _chosen(pattern, queries[row : row + 1], keys[row : row + 1])
        assert torch.equal(alone[0].expand_as(together[row]), together[row])


@promise("prefill_pattern", examples=1)
def leaves_nothing_out_of_a_short_prompt(pattern: PrefillPattern, draw: Draw) -> None:
    """A prompt of `dense_up_to` tokens is attended to whole; it is not worth a pattern."""
    length = max(1, pattern.dense_up_to)
    queries, keys = (normal(seed, 1, 2, length, 4) for seed in (0, 1))
    blocks = attended(_chosen(pattern, queries, keys))
    assert torch.equal(blocks, torch.ones_like(blocks).tril())


def _prompt(pattern: PrefillPattern, draw: Draw, *, batch: int = 1) -> tuple[Tensor, Tensor]:
    """Draw queries and keys of a prompt that is longer than what is read densely."""
    heads, groups, seed = draw(st.integers(1, 2)), draw(st.integers(1, 2)), draw(SEEDS)
    more = draw(st.integers(1, LONGEST * pattern.block))
    length = pattern.dense_up_to + more
    queries = normal(seed, batch, heads * groups, length, 4) * 3
    return queries, normal(seed + 1, batch, heads, length, 4)


def _chosen(pattern: PrefillPattern, queries: Tensor, keys: Tensor) -> Tensor:
    return pattern.choose(queries, keys, scaling=0.5)
