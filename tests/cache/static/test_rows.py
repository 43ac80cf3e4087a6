"""A step that is replayed writes the next row, and NaN where there is none."""

import pytest
import torch

from kvpolicy.cache.memory.contents import Contents
from kvpolicy.cache.memory.ragged import RaggedRows
from kvpolicy.cache.static.operators import register_attend_ragged
from kvpolicy.cache.static.ring import StaticRing
from kvpolicy.cache.static.rows import StaticRows
from kvpolicy.cache.static.uneven import StaticRagged


def table(count, heads=2):
    return torch.arange(float(heads * count * 4)).view(1, heads, count, 4)


def new(number):
    return torch.full((1, 2, 1, 4), float(number))


def test_rows_are_written_one_behind_the_other():
    rows = StaticRows.of(Contents.of(table(3), table(3)), 2, None)
    keys, _ = rows.write(new(7), new(7))
    keys, values = rows.write(new(8), new(8))
    assert keys[0, 0, :, 0].tolist() == values[0, 0, :, 0].tolist() == [0, 4, 8, 7, 8]
    assert rows.visible.tolist() == [[True] * 5]
    assert rows.added == 2
    assert rows.left == 0


def test_a_row_without_room_is_nan_and_the_others_stay():
    rows = StaticRows.of(Contents.of(table(3), table(3)), 1, None)
    rows.write(new(7), new(7))
    keys, _ = rows.write(new(8), new(8))
    assert keys[..., -1, :].isnan().all()
    assert torch.equal(keys[..., :-1, :], table(3))


def test_uneven_rows_without_room_give_nan():
    register_attend_ragged()
    contents = Contents.of(table(0), table(0))
    contents.ragged = RaggedRows(
        keys=table(3, 1)[0, 0],
        values=table(3, 1)[0, 0],
        positions=torch.tensor([0, 0, 1]),
        lengths=torch.tensor([[1, 2]]),
    )
    rows = StaticRagged.of(contents, 1, None)
    rows.write(new(1), new(1))
    assert rows.attend(torch.ones(1, 2, 1, 4), 1.0).isfinite().all()
    rows.write(new(2), new(2))
    assert rows.attend(torch.ones(1, 2, 1, 4), 1.0).isnan().all()


@pytest.mark.parametrize("steps", range(6))
def test_a_ring_holds_sinks_and_the_newest_rows(steps):
    ring = StaticRing.of(Contents.of(table(4), table(4)), None, sinks=1, rotary=None)
    for step in range(steps):
        ring.write(new(100 + step), new(100 + step))
    loaded = ring.load()
    newest = [4.0, 8.0, 12.0, *range(100, 100 + steps)][-3:]
    assert loaded.keys.view[0, 0, :, 0].tolist() == [0, *newest]
    assert loaded.slots.positions[0, 0].tolist() == [0, *range(steps + 1, steps + 4)]
