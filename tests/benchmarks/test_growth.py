"""Growth is fitted as a line and as a power."""

import pytest

from benchmarks.growth import growth


def test_quadratic_growth_is_seen_as_such():
    found = growth({size: 1e-9 * size**2 for size in (1024, 2048, 4096, 8192)})
    assert found.exponent.slope == pytest.approx(2)
    assert found.exponent.r_squared == pytest.approx(1)
    assert found.line.r_squared < 0.99
