import pytest
import torch

from kvpolicy_kernels import similar_keys
from kvpolicy_kernels.similar_keys import kernel, reference

pytestmark = pytest.mark.usefixtures("form")

# One key; no power of two; several blocks of rows and columns; more channels than a tile.
SHAPES = [(1, 1, 1, 4), (2, 3, 17, 24), (1, 2, 150, 4), (1, 1, 70, 130)]
shapes = pytest.mark.parametrize(("batch", "heads", "length", "dim"), SHAPES, ids=str)
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
retains = pytest.mark.parametrize("retain", ["last", "first"])


def naive(keys, threshold, retain):
    """The formula with whole matrices and loops over rows."""
    unit = keys.double() / keys.double().norm(dim=-1, keepdim=True).clamp_min(1e-8)
    matrix = unit @ unit.mT
    matrix.diagonal(dim1=-2, dim2=-1).fill_(0)
    positions = torch.zeros(keys.shape[:3], dtype=torch.long)
    for place, row in zip(
        torch.cartesian_prod(*map(torch.arange, positions.shape)), matrix.flatten(0, 2), strict=True
    ):
        similar = (row > threshold).nonzero()[:, 0].tolist()
        positions[tuple(place)] = similar[-1 if retain == "last" else 0] if similar else 0
    return positions, matrix.gather(-1, positions[..., None])[..., 0]


@pytest.mark.sampled(3, "length", "dtype", "retain", "program_order", "form")
@shapes
@dtypes
@retains
@pytest.mark.usefixtures("program_order")
def test_matches_the_definition(batch, heads, length, dim, dtype, retain, device):
    keys = torch.randn(batch, heads, length, dim).to(dtype)
    found = similar_keys(keys.to(device), threshold=0.3, retain=retain)
    positions, cosines = naive(keys, 0.3, retain)
    assert torch.equal(found.positions.cpu(), positions)
    torch.testing.assert_close(found.cosines.cpu().double(), cosines, rtol=1e-4, atol=1e-5)


@retains
def test_a_key_without_a_similar_one_has_position_0(retain, device):
    keys = torch.randn(1, 2, 90, 8)
    found = similar_keys(keys.to(device), threshold=1.0, retain=retain)
    assert (found.positions == 0).all()
    expected = torch.cosine_similarity(keys, keys[:, :, :1], dim=-1)
    expected[..., 0] = 0
    torch.testing.assert_close(found.cosines.cpu().float(), expected, rtol=1e-4, atol=1e-5)


def test_a_key_of_zeros_is_similar_to_none(device):
    keys = torch.zeros(1, 1, 3, 4)
    keys[..., 1:, 0] = 1
    found = similar_keys(keys.to(device), threshold=0.5, retain="last")
    assert found.positions.flatten().tolist() == [0, 2, 1]
    assert found.cosines.flatten().tolist() == [0, 1, 1]


def test_any_layout_is_taken(layout, device):
    keys = torch.randn(2, 2, 40, 16)
    found = similar_keys(layout(keys).to(device), threshold=0.2, retain="last")
    assert torch.equal(found.positions.cpu(), naive(keys, 0.2, "last")[0])


def test_a_sequence_ignores_its_batch_mates(device):
    keys = torch.randn(3, 2, 70, 8).to(device)
    together = similar_keys(keys, threshold=0.5, retain="last")
    alone = similar_keys(keys[1:2], threshold=0.5, retain="last")
    assert torch.equal(together.positions[1:2], alone.positions)
    assert torch.equal(together.cosines[1:2], alone.cosines)


@retains
@pytest.mark.parametrize("side", [7, 16])
def test_the_size_of_a_block_does_not_matter(retain, side, monkeypatch, device):
    keys = torch.randn(2, 2, 40, 4)
    monkeypatch.setattr(reference, "SIDE", side)
    monkeypatch.setattr(kernel, "pair_tile", lambda dim, exact: kernel.PairTile(16, 32, 16, 4))
    found = similar_keys(keys.to(device), threshold=0.4, retain=retain)
    assert torch.equal(found.positions.cpu(), naive(keys, 0.4, retain)[0])


@retains
@pytest.mark.parametrize("threshold", [0.0, 0.4, 1.0])
def test_a_reference_that_compares_all_columns_finds_the_same_keys(retain, threshold, monkeypatch):
    monkeypatch.setattr(reference, "SIDE", 16)
    keys = torch.randn(2, 2, 40, 4)
    found, _ = reference.similar_keys(keys, threshold=threshold, retain=retain)
    for rows in (slice(0, 7), slice(7, 24), slice(24, 40)):
        compared = reference._of_all_columns(keys, rows, threshold, retain)
        assert torch.equal(compared, found[..., rows])


def test_without_keys_nothing_is_found(device):
    found = similar_keys(torch.zeros(1, 2, 0, 4).to(device), threshold=0.5, retain="last")
    assert found.positions.shape == found.cosines.shape == (1, 2, 0)


def test_mistakes_are_named(refused):
    with refused("retain must be 'last' or 'first', not 'none'"):
        similar_keys(torch.zeros(1, 1, 2, 4), threshold=0.5, retain="none")
