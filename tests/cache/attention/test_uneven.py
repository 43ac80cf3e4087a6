"""Attention over uneven heads and a remainder is one softmax over all rows, with log(count)."""

import pytest
import torch

from kvpolicy.cache.attention.keys import attended
from kvpolicy.cache.attention.uneven import attend_uneven
from kvpolicy.cache.memory.assembly import Piece, assembled
from kvpolicy.cache.memory.contents import Contents
from kvpolicy.cache.memory.remainder import Remainder
from kvpolicy.cache.memory.slots import Slots
from kvpolicy.errors import CacheStateError
from kvpolicy.observation.logits import Logits
from kvpolicy.testing.samples import normal

HEADS, GROUPS, DIM = 2, 3, 8
SPECIALS = [{}, {"softcap": 1.5}, {"sinks": normal(9, HEADS * GROUPS)}]


def contents_of(lengths, new, *, counts=None, batch=2, gradients=False):
    """What is held after an eviction that kept `lengths` of each head, and `new` tokens later."""
    slots = Slots.empty(batch, HEADS, torch.device("cpu"))
    slots.append(40)
    longest = max(lengths)
    piece = Piece(
        keys=normal(1, batch, HEADS, longest, DIM).requires_grad_(gradients),
        values=normal(2, batch, HEADS, longest, DIM),
        positions=torch.arange(longest).expand(batch, HEADS, -1),
        lengths=torch.tensor([lengths] * batch),
    )
    contents = assembled([[piece]], slots, even=len(set(lengths)) == 1)
    contents.append(normal(3, batch, HEADS, new, DIM), normal(4, batch, HEADS, new, DIM))
    if counts is not None:
        contents.remainder = Remainder(
            keys=normal(5, batch, HEADS, DIM),
            values=normal(6, batch, HEADS, DIM),
            counts=torch.tensor([counts] * batch),
        )
    return contents


def expected(queries, contents, logits):
    """One softmax for each query, in float64: its rows, the remainder `count` times."""
    outputs = torch.zeros_like(queries, dtype=torch.float64)
    count, remainder = queries.shape[2], contents.remainder
    for row in range(queries.shape[0]):
        for h in range(HEADS * GROUPS):
            n = h // GROUPS
            length = contents.slots.held
            keys, values = contents.keys.view[row, n], contents.values.view[row, n]
            if contents.ragged is not None:
                rows = contents.ragged.slices()[row][n]
                length += rows.stop - rows.start
                keys = torch.cat([contents.ragged.keys[rows], keys])
                values = torch.cat([contents.ragged.values[rows], values])
            for q in range(count):
                seen = length - count + q + 1
                own_keys, own_values = keys[:seen].double(), values[:seen].double()
                if remainder is not None:
                    # A row that stands for n positions weighs as much as n equal rows.
                    times = int(remainder.counts[row, n])
                    extra = remainder.keys[row, n].double().expand(times, -1)
                    own_keys = torch.cat([own_keys, extra])
                    extra = remainder.values[row, n].double().expand(times, -1)
                    own_values = torch.cat([own_values, extra])
                found = own_keys @ queries[row, h, q].double() * logits.scaling
                if logits.softcap is not None:
                    found = logits.softcap * torch.tanh(found / logits.softcap)
                if logits.sinks is not None:
                    found = torch.cat([found, logits.sinks[h : h + 1].double()])
                outputs[row, h, q] = found.softmax(-1)[: len(own_values)] @ own_values
    return outputs.transpose(1, 2)


@pytest.mark.parametrize("special", SPECIALS, ids=["plain", "softcap", "sinks"])
@pytest.mark.parametrize("new", [1, 4])
@pytest.mark.parametrize("lengths", [(6, 6), (3, 9), (9, 0)], ids=str)
@pytest.mark.parametrize("counts", [None, (34, 31), (0, 40)], ids=str)
def test_a_remainder_weighs_as_much_as_the_rows_it_stands_for(lengths, counts, new, special):
    contents = contents_of(lengths, new, counts=counts)
    if contents.is_plain:
        return
    logits = Logits(**{"scaling": 0.4, "softcap": None, "sinks": None} | special)
    queries = normal(7, 2, HEADS * GROUPS, new, DIM) * 2

    actual = attend_uneven(queries, contents, attended(contents), logits)

    torch.testing.assert_close(
        actual.double(), expected(queries, contents, logits), rtol=2e-5, atol=2e-6
    )


@pytest.mark.parametrize("special", SPECIALS, ids=["plain", "softcap", "sinks"])
@pytest.mark.parametrize("lengths", [(6, 6), (3, 9)], ids=str)
@torch.enable_grad()
def test_where_gradients_are_needed_the_output_is_the_same(lengths, special):
    contents = contents_of(lengths, 4, counts=(34, 0), gradients=True)
    logits = Logits(**{"scaling": 0.4, "softcap": None, "sinks": None} | special)
    queries = normal(7, 2, HEADS * GROUPS, 4, DIM)

    actual = attend_uneven(queries, contents, attended(contents), logits)

    assert actual.requires_grad
    wanted = expected(queries, contents, logits)
    torch.testing.assert_close(actual.double(), wanted, rtol=2e-5, atol=2e-6)


def test_dense_rows_alone_are_left_to_the_model():
    rows = normal(0, 1, HEADS, 5, DIM)
    contents = Contents.of(rows, rows)
    logits = Logits(scaling=1.0, softcap=None, sinks=None)
    with pytest.raises(CacheStateError, match="all heads are alike, without a remainder"):
        attend_uneven(normal(7, 1, HEADS, 1, DIM), contents, attended(contents), logits)
