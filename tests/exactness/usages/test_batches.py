"""Rows of a batch are compared with themselves alone."""

import math

import pytest
import torch

from kvpolicy.exactness.limits import LIMIT
from kvpolicy.exactness.usages import batches, small_policy
from kvpolicy.testing.models import tiny_model


@pytest.fixture
def apart(monkeypatch):
    """Say how far rows are apart in each precision; return the precisions that were asked for."""

    def say(**differences):
        asked = []

        def found(model, policy, lengths):
            asked.append(model.dtype)
            return differences[str(model.dtype).removeprefix("torch.")]

        monkeypatch.setattr(batches, "_apart", found)
        return asked

    return say


@pytest.mark.parametrize("usage", [batches.padded_row_alone, batches.long_padded_row_alone])
def test_what_rounding_decides_is_measured_in_float64(apart, usage):
    asked = apart(float32=0.2, float64=1e-16)
    assert usage(tiny_model(), small_policy("restkv")) == 1e-16
    assert asked == [torch.float32, torch.float64]


def test_what_is_wrong_in_both_stays_wrong(apart):
    apart(float32=0.2, float64=0.3)
    assert batches.padded_row_alone(tiny_model(), small_policy("restkv")) == 0.3


def test_what_is_within_the_limit_is_measured_once(apart):
    asked = apart(float32=LIMIT)
    assert batches.padded_row_alone(tiny_model(), small_policy("restkv")) == LIMIT
    assert asked == [torch.float32]


def test_what_is_no_number_stays_none(apart):
    asked = apart(float32=math.nan, float64=0.0)
    assert math.isnan(batches.padded_row_alone(tiny_model(), small_policy("restkv")))
    assert asked == [torch.float32]


def test_half_precision_has_a_limit_of_its_own(apart):
    asked = apart(bfloat16=0.2)
    assert batches.padded_row_alone(tiny_model().bfloat16(), small_policy("restkv")) == 0.2
    assert asked == [torch.bfloat16]


@torch.no_grad()
def test_a_row_that_is_read_otherwise_is_seen_in_both(monkeypatch):
    policy, own = small_policy("restkv"), batches._last_logits

    def one_token_off(model, policy, ids, mask):
        if len(ids) > 1:
            ids = ids.clone()
            ids[:, -3] += 1
        return own(model, policy, ids, mask)

    monkeypatch.setattr(batches, "_last_logits", one_token_off)
    assert batches.long_padded_row_alone(tiny_model(), policy) > 100 * LIMIT
