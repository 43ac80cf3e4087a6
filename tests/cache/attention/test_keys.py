"""Cosines and sines are looked up once for positions that heads or layers share."""

import attrs
import torch

from kvpolicy.cache.attention.keys import Rotation
from kvpolicy.observation.rotary import PlainRotary

CPU = torch.device("cpu")


@attrs.frozen(eq=False)
class Counted:
    """A rotary embedding that notes how many positions are looked up."""

    rotary: PlainRotary = attrs.field(factory=lambda: PlainRotary(dim=4))
    sizes: list[int] = attrs.field(factory=list)
    interleaved: bool = False

    def tables(self, positions):
        self.sizes.append(positions.numel())
        return self.rotary.tables(positions)


def looked_up(rotary, positions):
    """Return the old tables of all heads."""
    rotation = Rotation.to_slots(positions, 0, CPU, rotary)
    return [table.expand(*positions.shape, 4) for table in rotation.old]


def test_heads_and_layers_with_equal_positions_share_one_look_up():
    rotary, positions = Counted(), torch.tensor([[[0, 5, 9], [0, 5, 9]]])
    first, second = (looked_up(rotary, positions.clone()) for _ in range(2))
    assert rotary.sizes == [3, 3]  # old positions and slots, for one head
    for mine, again, table in zip(first, second, rotary.rotary.tables(positions), strict=True):
        assert torch.equal(mine, table)
        assert torch.equal(again, table)


def test_other_positions_are_looked_up_anew():
    rotary = Counted()
    for positions in (
        torch.tensor([[[0, 5, 9], [0, 5, 9]]]),
        torch.tensor([[[0, 5, 9], [1, 5, 9]]]),
        torch.tensor([[[0, 5, 8]]]),
        torch.tensor([[[-1, 5, 8]]]),
    ):
        found = looked_up(rotary, positions)
        for mine, table in zip(found, rotary.rotary.tables(positions.clamp(min=0)), strict=True):
            assert torch.equal(mine, table)


def test_positions_that_are_written_to_afterwards_are_not_taken_for_what_they_were():
    rotary, positions = Counted(), torch.tensor([[[0, 5, 9]]])
    looked_up(rotary, positions)
    positions += 1
    found = looked_up(rotary, positions)
    assert torch.equal(found[0], rotary.rotary.tables(positions)[0])


def test_another_rotary_embedding_has_tables_of_its_own():
    positions = torch.tensor([[[0, 5, 9]]])
    for base in (10_000.0, 100.0):
        rotary = PlainRotary(dim=4, base=base)
        assert torch.equal(looked_up(rotary, positions)[1], rotary.tables(positions)[1])
