import pytest
import torch

from kvpolicy_kernels import rerotate_keys


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
