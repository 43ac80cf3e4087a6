"""A bias by distance is looked up for the tokens that keys belong to."""

import pytest
import torch

from kvpolicy.observation.position_bias import PositionBias
from kvpolicy.testing.samples import normal

READ, EXTENT = 9, 4
BATCH, HEADS, KV_HEADS, QUERIES = 2, 4, 2, 3
BY_DISTANCE = normal(0, BATCH, HEADS, QUERIES, EXTENT)


def expected(tokens):
    """The bias of each query and token, one by one."""
    found = torch.zeros(BATCH, HEADS, QUERIES, tokens.shape[-1])
    for row in range(BATCH):
        for head in range(HEADS):
            for query in range(QUERIES):
                for at, token in enumerate(tokens[row, head // (HEADS // KV_HEADS)].tolist()):
                    distance = READ - QUERIES + query - token
                    if 0 <= distance < EXTENT:
                        value = BY_DISTANCE[row, head, query, distance]
                        found[row, head, query, at] = value
    return found


def bias(columns, **tokens):
    """What a model makes that is asked for the last `columns` tokens."""
    every = torch.arange(READ - columns, READ).expand(BATCH, KV_HEADS, -1)
    return PositionBias(table=expected(every), read=READ, **tokens)


@pytest.mark.parametrize("columns", [EXTENT - 1 + QUERIES, 8, READ])
def test_every_head_has_the_bias_of_its_own_positions(columns):
    positions = torch.tensor([[[0, 3, 5, 8], [2, 4, 6, 7]], [[5, 6, 7, 8], [0, 1, 2, 8]]])
    assert torch.equal(bias(columns).of(positions), expected(positions))


def test_padding_counts_where_it_stands():
    positions = torch.tensor([[[0, 3, 5]], [[1, 2, 6]]]).expand(-1, KV_HEADS, -1)
    shifted = bias(READ, shifts=torch.tensor([0, 2])).of(positions)
    assert torch.equal(shifted, expected(positions + torch.tensor([0, 2])[:, None, None]))

    tokens = torch.tensor([[0, 1, 2, 6, 7, 8, 3, 4, 5], [1, 2, 3, 4, 5, 6, 7, 8, 0]])
    named = bias(READ, tokens=tokens).of(positions)
    places = torch.stack([own[row] for own, row in zip(tokens, positions, strict=True)])
    assert torch.equal(named, expected(places))


def test_some_rows_heads_and_queries_have_their_share():
    positions = torch.tensor([[[1, 4, 8]], [[2, 6, 7]]]).expand(-1, KV_HEADS, -1)
    shifts = torch.tensor([0, 1])
    whole = bias(READ, shifts=shifts).of(positions)
    own = bias(READ, shifts=shifts).of_heads(slice(2, 4))
    found = own.of(positions[1:, 1:], rows=slice(1, 2), count=2)
    assert torch.equal(found, whole[1:, 2:, 1:])


def test_padding_in_the_slots_may_have_any_bias_that_is_a_number():
    positions = torch.tensor([[[-1, -1, 8]]]).expand(BATCH, KV_HEADS, -1)
    assert bias(EXTENT).of(positions).isfinite().all()


def test_a_table_for_all_rows_serves_each_and_has_gradients():
    table = torch.zeros(1, HEADS, QUERIES, READ, requires_grad=True)
    positions = torch.tensor([[[8]], [[7]]]).expand(-1, KV_HEADS, -1)
    PositionBias(table=table, read=READ).of(positions).sum().backward()
    assert table.grad.sum() == BATCH * HEADS * QUERIES
