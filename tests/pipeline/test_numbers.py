import math

import pytest
import torch

from kvpolicy.pipeline.numbers import total

dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)


@dtypes
@pytest.mark.parametrize("fault", [math.nan, math.inf, -math.inf])
def test_a_sum_is_finite_if_all_numbers_are(dtype, fault):
    numbers = torch.full((3, 50), torch.finfo(torch.float16).max).to(dtype)
    assert total(numbers).isfinite()
    numbers[1, 7] = fault
    assert not total(numbers).isfinite()


def test_large_numbers_of_float32_do_not_overflow():
    assert total(torch.full((1000,), 3e38)).isfinite()


def test_half_precision_is_added_as_a_gpu_does_without_a_copy():
    assert total(torch.ones(3).bfloat16()).dtype == torch.float32
    assert total(torch.ones(3)).dtype == torch.float64
