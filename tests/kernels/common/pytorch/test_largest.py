"""The largest of every row, the first of equal ones: as if each row were sorted by itself."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kvpolicy_kernels.common.pytorch.largest import largest, without_nan


def naive(row, count):
    """Mark the first of a stable sort, from the largest down."""
    order = row.argsort(descending=True, stable=True)[:count]
    return torch.zeros(len(row), dtype=torch.bool).index_fill_(0, order, True)


@settings(deadline=None)
@given(st.data())
def test_is_the_head_of_a_stable_sort(data):
    rows, columns = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 40))
    number = st.sampled_from([-torch.inf, -1.0, -0.0, 0.0, 0.5, 2.0, torch.inf])
    drawn = data.draw(st.lists(number, min_size=rows * columns, max_size=rows * columns))
    numbers = torch.tensor(drawn).view(rows, columns)
    counts = data.draw(st.lists(st.integers(1, columns), min_size=rows, max_size=rows))
    found = largest(numbers, np.array(counts)[:, None])
    expected = torch.stack([naive(*each) for each in zip(numbers, counts, strict=True)])
    assert torch.equal(torch.from_numpy(found), expected)
    alike = torch.stack([naive(row, counts[0]) for row in numbers])
    assert torch.equal(torch.from_numpy(largest(numbers, counts[0])), alike)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_ranked_alike(dtype):
    numbers = torch.randn(2, 3, 50).to(dtype)
    expected = torch.stack([naive(row, 20) for row in numbers.flatten(0, 1)]).view(2, 3, 50)
    assert torch.equal(torch.from_numpy(largest(numbers, 20)), expected)


def test_numbers_stay_as_they_are():
    numbers = torch.randn(2, 30)
    before = numbers.clone()
    largest(numbers, 7)
    assert without_nan(numbers) is numbers
    assert torch.equal(numbers, before)


def test_each_nan_is_the_least():
    numbers = torch.tensor([[1.0, torch.nan, torch.inf], [-torch.inf, torch.nan, 0.0]])
    expected = [[1.0, -torch.inf, torch.inf], [-torch.inf, -torch.inf, 0.0]]
    assert without_nan(numbers).tolist() == expected
    assert without_nan(torch.tensor([torch.inf, -torch.inf])).tolist() == [torch.inf, -torch.inf]
