import pytest
import torch

from kvpolicy_kernels import nearest_keys
from kvpolicy_kernels.backend import KernelFallbackWarning
from kvpolicy_kernels.common.pytorch import blocks
from kvpolicy_kernels.nearest_keys import kernel, reference

pytestmark = pytest.mark.usefixtures("form")

# One row and one other; no power of two; several blocks of both; more channels than a tile.
SHAPES = [(1, 1, 1, 1, 1, 4), (2, 3, 17, 12, 5, 24), (1, 2, 150, 140, 90, 8), (1, 1, 9, 4, 5, 130)]
shapes = pytest.mark.parametrize(
    ("batch", "heads", "length", "chosen", "count", "dim"), SHAPES, ids=str
)
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)


def example(batch, heads, length, chosen, count, dim, dtype=torch.float32):
    keys = torch.randn(batch, heads, length, dim).to(dtype)
    rows = torch.rand(batch, heads, length).argsort(-1)[..., :chosen]
    others = torch.randn(batch, heads, count, dim).to(dtype)
    is_other = torch.rand(batch, heads, count) < 0.8
    is_other[..., 0] = True
    return keys, rows, others, is_other


def naive(keys, rows, others, is_other):
    picked = keys.double().gather(2, rows[..., None].expand(-1, -1, -1, keys.shape[-1]))
    cosines = torch.cosine_similarity(picked[:, :, :, None], others.double()[:, :, None], dim=-1)
    return cosines.masked_fill(~is_other[:, :, None], -torch.inf).max(-1)


def found(device, *given):
    slots, cosines = nearest_keys(*(each.to(device) for each in given))
    assert slots.dtype == torch.int32
    return slots.cpu().long(), cosines.cpu()


@pytest.mark.sampled(3, "length", "dtype", "program_order", "form")
@shapes
@dtypes
@pytest.mark.usefixtures("program_order")
def test_matches_the_definition(batch, heads, length, chosen, count, dim, dtype, device):
    given = example(batch, heads, length, chosen, count, dim, dtype)
    slots, cosines = found(device, *given)
    expected = naive(*given)
    assert torch.equal(slots, expected.indices)
    torch.testing.assert_close(cosines.double(), expected.values, rtol=1e-4, atol=1e-5)


def test_of_equal_keys_the_first_is_the_nearest(device):
    keys, rows, others, is_other = example(1, 2, 20, 10, 1, 8)
    # Products of quarters are exact. Others can differ with the place of a key in its block.
    keys, others = (keys * 4).round() / 4, (others * 4).round() / 4
    others, is_other = others.expand(-1, -1, 150, -1), is_other.repeat(1, 1, 150)
    is_other[..., :70] = False
    assert (found(device, keys, rows, others, is_other)[0] == 70).all()


def test_without_marks_every_other_is_a_key(device):
    keys, rows, others, is_other = example(2, 2, 30, 20, 70, 24)
    given = [each.to(device) for each in (keys, rows, others)]
    unmarked = nearest_keys(*given, None)
    assert torch.equal(unmarked.slots.cpu(), found(device, *given, is_other | True)[0].int())


def test_a_head_without_others_has_slot_0_and_the_least_cosine(device):
    keys, rows, others, is_other = example(1, 2, 20, 10, 5, 8)
    slots, cosines = found(device, keys, rows, others, is_other & False)
    assert (slots == 0).all()
    assert (cosines == -1).all()


def test_without_any_other_key_slot_0_and_the_least_cosine_are_found(device):
    keys, rows = torch.randn(2, 1, 3, 5, device=device), torch.zeros(2, 1, 4, device=device).long()
    found = nearest_keys(keys, rows, keys[:, :, :0], torch.ones(2, 1, 0, device=device).bool())
    assert found.slots.tolist() == rows.tolist()
    assert torch.equal(found.cosines, torch.full((2, 1, 4), -1.0, device=device))


def test_rows_that_do_not_exist_get_a_slot_that_does(device):
    keys, rows, others, is_other = example(1, 2, 20, 10, 5, 8)
    rows = rows.index_fill(2, torch.tensor([3, 9]), 20)
    slots, cosines = found(device, keys, rows, others, is_other)
    assert ((slots >= 0) & (slots < 5)).all()
    assert cosines.isfinite().all()


def test_a_key_of_zeros_has_no_direction(device):
    keys, rows, others, is_other = example(1, 1, 4, 4, 3, 8)
    slots, cosines = found(device, torch.zeros_like(keys), rows, others, is_other | True)
    assert (slots == 0).all()
    assert (cosines == 0).all()


def test_any_layout_is_taken(layout, device):
    keys, rows, others, is_other = example(2, 2, 30, 20, 6, 16)
    slots, _ = found(device, layout(keys), rows, layout(others), is_other)
    assert torch.equal(slots, naive(keys, rows, others, is_other).indices)


def test_a_sequence_ignores_its_batch_mates(device):
    given = example(3, 2, 30, 20, 6, 16)
    one = slice(1, 2)
    for all_rows, alone in zip(
        found(device, *given), found(device, *(each[one] for each in given)), strict=True
    ):
        assert torch.equal(all_rows[one], alone)


def test_the_size_of_a_block_does_not_matter(monkeypatch, device):
    given = example(1, 2, 60, 50, 40, 24)
    monkeypatch.setattr(blocks, "CACHED_BYTES", 1)
    monkeypatch.setattr(kernel, "pair_tile", lambda dim, exact: kernel.PairTile(16, 32, 16, 4))
    assert torch.equal(found(device, *given)[0], naive(*given).indices)


def test_what_the_kernel_does_not_take_runs_in_pytorch(form, device):
    keys, rows, others, is_other = example(1, 2, 20, 10, 5, 8)
    if form == "triton":
        with pytest.warns(KernelFallbackWarning, match="one dtype only"):
            slots, _ = found(device, keys, rows, others.double(), is_other)
        assert torch.equal(slots.int(), reference.nearest_keys(keys, rows, others, is_other).slots)


def test_shapes_that_do_not_fit_are_an_error(refused):
    keys, rows, others, is_other = example(1, 2, 20, 10, 5, 8)
    with refused("do not fit"):
        nearest_keys(keys, rows, others[..., :4], is_other)
    with refused("do not fit"):
        nearest_keys(keys, rows, others, is_other[..., :4])
