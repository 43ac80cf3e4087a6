import pytest
import torch

from kvpolicy_kernels import angle_between, rerotate_keys
from kvpolicy_kernels.rerotate_keys import reference


def on(device, tables):
    return tuple(table.to(device) for table in tables)


def tables(positions, dim, interleaved, base=10_000.0):
    angles = positions[..., None].double() * base ** (-torch.arange(0, dim, 2).double() / dim)
    angles = angles.repeat_interleave(2, -1) if interleaved else torch.cat([angles, angles], -1)
    return angles.cos().float(), angles.sin().float()


def rotated(vectors, positions, dim, interleaved, base=10_000.0):
    """Rotation as a product of complex numbers, in float64."""
    turned, rest = vectors[..., :dim].double(), vectors[..., dim:].double()
    angles = positions[..., None].double() * base ** (-torch.arange(0, dim, 2).double() / dim)
    x, y = (turned[..., 0::2], turned[..., 1::2]) if interleaved else turned.chunk(2, -1)
    z = torch.complex(x, y) * torch.polar(torch.ones_like(angles), angles)
    parts = (z.real, z.imag)
    joined = torch.stack(parts, -1).flatten(-2) if interleaved else torch.cat(parts, -1)
    return torch.cat([joined, rest], -1)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(("dim", "head"), [(8, 8), (8, 12), (2, 2)])
def test_keys_come_out_as_if_rotated_by_the_new_position(dim, head, interleaved):
    raw = torch.randn(2, 3, 50, head)
    old, new = torch.randint(0, 100_000, (2, 2, 3, 50))
    keys = rotated(raw, old, dim, interleaved).float()

    actual = rerotate_keys(
        keys, tables(old, dim, interleaved), tables(new, dim, interleaved), interleaved=interleaved
    )

    torch.testing.assert_close(
        actual.double(), rotated(raw, new, dim, interleaved), rtol=0, atol=3e-6
    )


@pytest.mark.parametrize("interleaved", [False, True])
def test_the_angle_between_rotates_as_both_tables_do(interleaved):
    keys, old, new = example(2, 3, 20, 12, 8, interleaved, torch.float32)

    actual = rerotate_keys(keys, None, angle_between(old, new), interleaved=interleaved)

    torch.testing.assert_close(
        actual, rerotate_keys(keys, old, new, interleaved=interleaved), rtol=0, atol=1e-6
    )


def test_keys_in_float64_stay_so():
    keys, old, _ = example(1, 1, 20, 8, 8, False, torch.float64)
    exact = rotated(rotated(keys, torch.zeros(20), 8, False), torch.zeros(20), 8, False)
    assert rerotate_keys(keys, old, old).dtype == torch.float64
    torch.testing.assert_close(rerotate_keys(keys, old, old), exact, rtol=0, atol=1e-6)


def test_gradients_are_rotated_back():
    keys, old, new = example(1, 2, 5, 6, 4, False, torch.float64)
    keys.requires_grad_()
    assert torch.autograd.gradcheck(lambda each: rerotate_keys(each, old, new), (keys,))


def test_half_precision_is_rounded_once():
    raw = torch.randn(1, 1, 200, 8)
    old, new = torch.arange(200)[None, None], torch.arange(7, 207)[None, None]
    keys = rotated(raw, old, 8, False).bfloat16()

    actual = rerotate_keys(keys, tables(old, 8, False), tables(new, 8, False))

    exact = rotated(rotated(keys.double(), -old, 8, False), new, 8, False)
    assert actual.dtype == torch.bfloat16
    assert torch.equal(actual, exact.float().bfloat16())


def test_tables_that_do_not_fit_are_named():
    keys, table = torch.ones(1, 1, 2, 4), torch.ones(1, 1, 2, 6)
    with pytest.raises(ValueError, match="tables of 6"):
        rerotate_keys(keys, (table, table), (table, table))


def example(batch, heads, seq, dim, size, interleaved, dtype=torch.float32):
    keys = torch.randn(batch, heads, seq, dim).to(dtype)
    old, new = torch.randint(0, 100_000, (2, batch, heads, seq))
    return keys, tables(old, size, interleaved), tables(new, size, interleaved)


@pytest.mark.sampled(6, "seq", "interleaved", "dtype", "layout", "program_order")
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("batch", "heads", "seq", "dim", "size"),
    [(1, 1, 1, 8, 8), (2, 3, 37, 80, 32), (1, 2, 65, 128, 128), (1, 1, 0, 8, 4)],
)
@pytest.mark.usefixtures("triton_kernels", "program_order")
def test_the_kernel_matches_the_reference(
    batch, heads, seq, dim, size, interleaved, dtype, layout, device
):
    keys, old, new = example(batch, heads, seq, dim, size, interleaved, dtype)
    expected = reference.rerotate_keys(keys, old, new, interleaved=interleaved)

    actual = rerotate_keys(
        layout(keys).to(device), on(device, old), on(device, new), interleaved=interleaved
    )

    assert actual.dtype == dtype
    # Fused multiply-adds differ from the reference by a rounding, which may decide another.
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(actual.cpu(), expected, rtol=eps, atol=1e-6)
    assert torch.equal(actual[..., size:].cpu(), keys[..., size:])


@pytest.mark.usefixtures("triton_kernels", "program_order")
def test_the_kernel_takes_tables_that_all_heads_share(device):
    keys, old, new = example(2, 3, 20, 8, 8, False)
    shared = tuple(table[:, :1].expand_as(table) for table in old)
    crosswise = (new[0].mT.contiguous().mT, new[1])

    actual = rerotate_keys(keys.to(device), on(device, shared), on(device, crosswise))

    expected = reference.rerotate_keys(keys, shared, new, interleaved=False)
    torch.testing.assert_close(actual.cpu(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.usefixtures("triton_kernels")
def test_a_turn_to_the_same_position_loses_nothing_in_the_kernel(device):
    keys, old, _ = example(1, 2, 50, 64, 64, False, torch.bfloat16)
    actual = rerotate_keys(keys.to(device), on(device, old), on(device, old))
    torch.testing.assert_close(actual.cpu(), keys, rtol=0, atol=0)


@pytest.mark.usefixtures("form", "program_order")
@pytest.mark.parametrize("interleaved", [False, True])
def test_chosen_rows_are_rotated_alone_and_in_their_order(interleaved, layout, device):
    keys, old, new = example(2, 3, 40, 80, 32, interleaved)
    rows = torch.stack([torch.randperm(40)[:19], torch.tensor([39] * 19)])
    of_rows = rows[:, None, :].expand(-1, 3, -1)
    near, far = (
        tuple(table.gather(2, of_rows[..., None].expand(-1, -1, -1, 32)) for table in tables)
        for tables in (old, new)
    )
    whole = reference.rerotate_keys(keys, old, new, interleaved=interleaved)
    expected = whole.gather(2, of_rows[..., None].expand(-1, -1, -1, 80))

    actual = rerotate_keys(
        layout(keys).to(device),
        on(device, near),
        on(device, far),
        interleaved=interleaved,
        rows=rows.to(device),
    )

    torch.testing.assert_close(actual.cpu(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.usefixtures("triton_kernels", "program_order")
def test_the_kernel_takes_the_angle_between(device):
    keys, old, new = example(2, 3, 37, 80, 32, False)
    turn = angle_between(old, new)
    expected = reference.rerotate_keys(keys, None, turn)
    actual = rerotate_keys(keys.to(device), None, on(device, turn))
    torch.testing.assert_close(actual.cpu(), expected, rtol=0, atol=1e-5)
