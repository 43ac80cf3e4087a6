"""Turns are looked up once for positions that heads, layers or tokens share."""

import attrs
import pytest
import torch

from kvpolicy.cache.attention import turns as module
from kvpolicy.cache.attention.turns import turns
from kvpolicy.observation.rotary import PlainRotary


@attrs.frozen(eq=False)
class Counted:
    """A rotary embedding that notes how many positions are looked up."""

    rotary: PlainRotary = attrs.field(factory=lambda: PlainRotary(dim=4))
    sizes: list[int] = attrs.field(factory=list)
    interleaved: bool = False

    def tables(self, positions):
        self.sizes.append(positions.numel())
        return self.rotary.tables(positions)


@attrs.define(eq=False)
class Written:
    """A rotary embedding whose numbers change."""

    base: float = 100.0
    version: int = 0
    interleaved: bool = False

    def tables(self, positions):
        return PlainRotary(dim=4, base=self.base).tables(positions)


def check(rotary, positions, first=0):
    """Compare the turns with the angles by their formula."""
    found = turns(positions, first, rotary)
    slots = torch.arange(first, first + positions.shape[-1])
    frequencies = torch.tensor([1.0, 0.01, 1.0, 0.01], dtype=torch.float64)
    angles = (slots - positions.clamp(min=0))[..., None] * frequencies
    for mine, exact in zip(found, (angles.cos(), angles.sin()), strict=True):
        torch.testing.assert_close(mine.double().expand_as(exact), exact, rtol=0, atol=1e-6)


def test_heads_and_layers_with_equal_positions_share_one_look_up():
    rotary, positions = Counted(), torch.tensor([[[0, 5, 9], [0, 5, 9]]])
    first, second = (turns(positions.clone(), 0, rotary) for _ in range(2))
    assert first[0] is second[0]
    assert first[0].shape == (1, 1, 3, 4)
    check(rotary, positions)


def test_a_stream_looks_positions_up_few_times():
    rotary = Counted()
    for newest in range(20, 400):
        check(rotary, torch.tensor([[[0, 5, newest], [1, 5, newest]]]))
    assert rotary.sizes == [32, 64, 128, 256, 512]


@pytest.mark.parametrize("first", [0, 2])
def test_more_positions_than_are_remembered_are_looked_up_each_time(first, monkeypatch):
    monkeypatch.setattr(module, "REMEMBERED", 6)
    for positions in ([0, 5, 9], [0, 2, 3], [4, 5, 6, 7, 8, 9, 10]):
        check(Counted(), torch.tensor([[positions]]), first)


def test_other_positions_are_looked_up_anew():
    rotary = Counted()
    for positions in (
        torch.tensor([[[0, 5, 9], [0, 5, 9]]]),
        torch.tensor([[[0, 5, 9], [1, 5, 9]]]),
        torch.tensor([[[0, 5, 8]]]),
        torch.tensor([[[-1, 5, 8]]]),
    ):
        check(rotary, positions)
        check(rotary, positions, first=3)


def test_positions_that_are_written_to_afterwards_are_not_taken_for_what_they_were():
    rotary, positions = Counted(), torch.tensor([[[0, 5, 9]]])
    turns(positions, 0, rotary)
    positions += 1
    check(rotary, positions)


def test_another_rotary_embedding_has_tables_of_its_own():
    positions = torch.tensor([[[0, 5, 9]]])
    one, other = (turns(positions, 0, PlainRotary(dim=4, base=base)) for base in (1e4, 100.0))
    assert not torch.equal(one[0], other[0])


def test_an_embedding_that_was_written_to_is_looked_up_anew():
    rotary, positions = Written(), torch.tensor([[[0, 5, 9]]])
    turns(positions, 0, rotary)
    rotary.base, rotary.version = 1e4, 1
    check(rotary, positions)


def test_turns_of_inference_mode_are_not_handed_to_a_backward_pass():
    rotary, positions = Counted(), torch.tensor([[[0, 5, 9]]])
    with torch.inference_mode():
        turns(positions, 0, rotary)
    with torch.enable_grad():
        cosines, _ = turns(positions, 0, rotary)
        (torch.ones(4, requires_grad=True) * cosines).sum().backward()


def test_no_positions_have_no_turns():
    assert turns(torch.zeros(1, 2, 0, dtype=torch.long), 0, Counted())[0].shape[2] == 0
