"""What attention is told of a batch: which tokens are held, and in which blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from kvpolicy.vllm.step import Piece


def of_held(common: Any, pieces: Sequence[Piece]) -> Any:
    """Return CommonAttentionMetadata for the tokens held, with a row for each piece."""
    device, kind = common.seq_lens.device, common.seq_lens.dtype
    rows = torch.tensor([piece.row for piece in pieces], device="cpu")
    lengths = torch.tensor([piece.seen for piece in pieces], dtype=kind, device="cpu")
    queries = [piece.queries for piece in pieces]
    bounds = torch.tensor([0, *queries], dtype=common.query_start_loc_cpu.dtype, device="cpu")
    bounds = bounds.cumsum(0, dtype=bounds.dtype)
    there = rows.to(device, non_blocking=True)
    return common.replace(
        query_start_loc=bounds.to(device, common.query_start_loc.dtype, non_blocking=True),
        query_start_loc_cpu=bounds,
        seq_lens=lengths.to(device, non_blocking=True),
        seq_lens_cpu_upper_bound=lengths.to(common.seq_lens_cpu_upper_bound.dtype),
        num_reqs=len(pieces),
        max_query_len=max(queries),
        max_seq_len=max(piece.seen for piece in pieces),
        block_table_tensor=held_blocks(common.block_table_tensor.index_select(0, there), pieces),
        is_prefilling=_chosen(common.is_prefilling, rows),
        req_idx=None if common.req_idx is None else common.req_idx[rows.numpy()],
        _num_computed_tokens_cache=None,
        _token_to_req_indices_cache=None,
    )


def _chosen(tensor: Tensor | None, rows: Int[Tensor, " P"]) -> Tensor | None:
    return None if tensor is None else tensor.index_select(0, rows.to(tensor.device))


def held_blocks(table: Int[Tensor, "P C"], pieces: Sequence[Piece]) -> Int[Tensor, "P C"]:
    """Return the block tables of the pieces without the blocks that are gone.

    >>> gone = Piece(row=0, queries=1, seen=40, start=1, gone=2)
    >>> held_blocks(torch.tensor([[5, 6, 7, 8]]), [gone])
    tensor([[5, 8, 8, 8]])
    """
    edges = torch.tensor([[each.start, each.gone] for each in pieces], device="cpu")
    start, gone = edges.to(table.device, non_blocking=True)[..., None].unbind(1)
    columns = torch.arange(table.shape[1], device=table.device)
    taken = torch.where(columns >= start, columns + gone, columns.expand(len(pieces), -1))
    return table.gather(1, taken.clamp(max=table.shape[1] - 1))
