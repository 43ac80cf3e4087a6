import pytest
import torch

from kvpolicy_kernels import rotate_half, unrotated_sums
from kvpolicy_kernels.common.pytorch import blocks
from kvpolicy_kernels.common.triton import launch

pytestmark = pytest.mark.usefixtures("form")

# One position; channels that are not rotated; no power of two; more columns than a tile.
SHAPES = [(1, 1, 1, 4, 4), (2, 3, 70, 24, 8), (1, 2, 45, 130, 130)]
shapes = pytest.mark.parametrize(("batch", "heads", "seq", "dim", "size"), SHAPES, ids=str)
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
layouts = pytest.mark.parametrize("interleaved", [False, True])


def tables_of(seq, size, interleaved=False):
    angles = torch.randn(seq, size // 2)
    angles = angles.repeat_interleave(2, -1) if interleaved else torch.cat([angles, angles], -1)
    return angles.cos(), angles.sin()


def on(device, tables):
    return tuple(table.to(device) for table in tables)


def naive(vectors, tables, interleaved, centre=None):
    cosines, sines = (table.double() for table in tables)
    turned, rest = vectors.double().split(
        [cosines.shape[-1], vectors.shape[-1] - len(cosines.T)], -1
    )
    back = turned * cosines - rotate_half(turned, interleaved=interleaved) * sines
    back = torch.cat([back, rest], -1)
    apart = back if centre is None else back - centre.double()[:, :, None]
    return apart.sum(2), apart.mT @ apart


@pytest.mark.sampled(3, "seq", "dtype", "interleaved", "program_order", "form")
@shapes
@dtypes
@layouts
@pytest.mark.usefixtures("program_order")
def test_rotation_is_undone_before_vectors_are_added(
    batch, heads, seq, dim, size, dtype, interleaved, device
):
    vectors = torch.randn(batch, heads, seq, dim).to(dtype)
    tables, centre = tables_of(seq, size, interleaved), torch.randn(batch, heads, dim)
    close = {"rtol": 1e-4, "atol": 1e-4}
    alone = unrotated_sums(vectors.to(device), on(device, tables), interleaved=interleaved)
    assert alone.products is None
    sums, _ = naive(vectors, tables, interleaved)
    torch.testing.assert_close(alone.sums.cpu().double(), sums, **close)
    both = unrotated_sums(
        vectors.to(device), on(device, tables), interleaved=interleaved, centre=centre.to(device)
    )
    sums, products = naive(vectors, tables, interleaved, centre)
    torch.testing.assert_close(both.sums.cpu().double(), sums, **close)
    torch.testing.assert_close(both.products.cpu().double(), products, **close)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@layouts
def test_tables_of_few_positions_are_turned_further(dtype, interleaved, device):
    vectors = torch.randn(2, 3, 70, 24).to(dtype)
    angles = torch.randn(4)
    angles = angles.repeat_interleave(2) if interleaved else torch.cat([angles, angles])
    near, far, every = (
        tuple(at(angles * places[:, None]) for at in (torch.cos, torch.sin))
        for places in (torch.arange(16) + 3, torch.arange(0, 70, 16), torch.arange(70) + 3)
    )
    centre = torch.randn(2, 3, 24)
    found = unrotated_sums(
        vectors.to(device),
        on(device, near),
        further=on(device, far),
        interleaved=interleaved,
        centre=centre.to(device),
    )
    sums, products = naive(vectors, every, interleaved, centre)
    torch.testing.assert_close(found.sums.cpu().double(), sums, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.products.cpu().double(), products, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("centred", [True, False])
@layouts
def test_sizes_are_those_of_pairs_and_of_channels_alone(interleaved, centred, device):
    vectors, tables = torch.randn(2, 3, 70, 24), tables_of(70, 8, interleaved)
    centre = torch.randn(2, 3, 24).to(device) if centred else None
    found = unrotated_sums(
        vectors.to(device), on(device, tables), interleaved=interleaved, centre=centre, sizes=True
    )
    turned, rest = vectors.double().split([8, 16], -1)
    pairs = turned.unflatten(-1, (4, 2)) if interleaved else turned.unflatten(-1, (2, 4)).mT
    sizes = pairs.norm(dim=-1)
    sizes = sizes.repeat_interleave(2, -1) if interleaved else torch.cat([sizes, sizes], -1)
    expected = torch.cat([sizes, rest.abs()], -1).sum(2)
    torch.testing.assert_close(found.sizes.cpu().double(), expected, rtol=1e-5, atol=1e-5)


def test_any_layout_is_taken(layout, device):
    vectors, tables, centre = torch.randn(2, 2, 40, 8), tables_of(40, 8), torch.randn(2, 2, 8)
    sums, products = naive(vectors, tables, interleaved=False, centre=centre)
    found = unrotated_sums(layout(vectors).to(device), on(device, tables), centre=centre.to(device))
    torch.testing.assert_close(found.sums.cpu().double(), sums, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.products.cpu().double(), products, rtol=1e-4, atol=1e-4)


def test_without_positions_sums_are_zero(device):
    vectors, centre = torch.zeros(1, 2, 0, 8).to(device), torch.ones(1, 2, 8).to(device)
    found = unrotated_sums(vectors, on(device, tables_of(0, 8)), centre=centre)
    assert found.sums.count_nonzero() == found.products.count_nonzero() == 0


@pytest.mark.parametrize("programs", [1, 1000])
def test_how_positions_are_split_does_not_matter(programs, monkeypatch, device):
    vectors, tables, centre = torch.randn(1, 2, 90, 8), tables_of(90, 8), torch.randn(1, 2, 8)
    monkeypatch.setattr(launch, "PROGRAMS", programs)
    monkeypatch.setattr(blocks, "CACHED_BYTES", programs * 100)
    found = unrotated_sums(vectors.to(device), on(device, tables), centre=centre.to(device))
    expected = naive(vectors, tables, interleaved=False, centre=centre)
    for ours, theirs in zip(found[:2], expected, strict=True):
        torch.testing.assert_close(ours.cpu().double(), theirs, rtol=1e-4, atol=1e-4)


def test_a_sequence_ignores_its_batch_mates(device):
    vectors, centre = torch.randn(3, 2, 50, 8).to(device), torch.randn(3, 2, 8).to(device)
    tables = on(device, tables_of(50, 8))
    together = unrotated_sums(vectors, tables, centre=centre)
    alone = unrotated_sums(vectors[1:2], tables, centre=centre[1:2])
    torch.testing.assert_close(together.products[1:2], alone.products)
    torch.testing.assert_close(together.sums[1:2], alone.sums)


def test_shapes_that_do_not_fit_are_an_error(refused):
    vectors = torch.zeros(1, 2, 3, 4)
    with refused("do not fit vectors"):
        unrotated_sums(vectors, tables_of(2, 4))
    with refused("do not fit vectors"):
        unrotated_sums(vectors, tables_of(3, 6))
    with refused(r"further tables .* for tables of 2 positions they must be \(2, 4\)"):
        unrotated_sums(vectors, tables_of(2, 4), further=tables_of(1, 4))
    with refused("centre .* does not fit"):
        unrotated_sums(vectors, tables_of(3, 4), centre=torch.zeros(1, 1, 4))
