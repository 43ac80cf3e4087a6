import torch

from kvpolicy.vllm.metadata import held_blocks
from kvpolicy.vllm.step import Piece


def test_blocks_that_are_gone_are_left_out_of_the_middle():
    table = torch.tensor([[10, 11, 12, 13, 14, 15], [20, 21, 22, 23, 24, 25]], dtype=torch.int32)
    pieces = [
        Piece(row=0, queries=1, seen=70, start=1, gone=3),
        Piece(row=1, queries=1, seen=100),
    ]
    held = held_blocks(table, pieces)
    assert held[0, :3].tolist() == [10, 14, 15]
    assert held[1].tolist() == [20, 21, 22, 23, 24, 25]
    assert held.dtype == torch.int32
