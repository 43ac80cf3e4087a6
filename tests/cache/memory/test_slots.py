import pytest
import torch

from kvpolicy.cache.memory.slots import Slots

CHANGES = {
    "append": lambda slots: slots.append(2),
    "evict": lambda slots: slots.replace(slots.positions[..., 1::2], [2, 2]),
    "crop": lambda slots: slots.drop_columns(1),
    "reorder": lambda slots: slots.select_rows(torch.tensor([1, 0])),
    "pad": lambda slots: slots.mark_padding([0, 1], 4),
}


@pytest.mark.parametrize("name", CHANGES)
def test_positions_follow_every_change_of_the_slots(name):
    slots = Slots.empty(2, 3, torch.device("cpu"))
    slots.append(4)
    slots.positions  # noqa: B018
    CHANGES[name](slots)
    anew = slots.copied()
    anew._joined = None
    assert torch.equal(slots.positions, anew.positions)


def test_positions_are_joined_once_for_a_forward():
    slots = Slots.empty(1, 3, torch.device("cpu"))
    slots.append(4)
    slots.replace(slots.positions[..., 1:], [3])
    slots.append(1)
    assert slots.positions.data_ptr() == slots.positions.data_ptr()
    assert slots.positions[0, 2].tolist() == [1, 2, 3, 4]
