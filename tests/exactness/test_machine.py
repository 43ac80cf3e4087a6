"""The state machine finds caches that are wrong."""

import pytest
import torch
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from kvpolicy.cache.eviction.spans import BatchSpans
from kvpolicy.cache.memory.rows import Rows
from kvpolicy.cache.memory.slots import Slots
from kvpolicy.errors import KvpolicyError
from kvpolicy.exactness.machine import CacheMachine
from kvpolicy.huggingface.layer import PolicyLayer

UNTIL_IT_FAILS = settings(
    max_examples=300,
    phases=[Phase.generate],
    derandomize=True,
    database=None,
    deadline=None,
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)


def crops_one_token_less(crop):
    return lambda layer, count: crop(layer, count + 1) if count < -1 else crop(layer, count)


def forgets_which_rows_are_padded(select_rows):
    def select(slots, batch):
        select_rows(slots, batch)
        slots.seen = [max(slots.seen)] * len(slots.seen)

    return select


def keeps_the_rows_as_they_were(select_rows):
    return lambda rows, batch: select_rows(rows, torch.arange(len(batch)) % len(rows.buffer))


def gives_each_row_the_spans_of_the_first(select_rows):
    def select(spans, rows):
        select_rows(spans, rows)
        spans.rows = spans.rows[:1] * len(spans.rows)

    return select


@pytest.mark.parametrize(
    ("owner", "name", "fault"),
    [
        # Few examples protect spans in a batch: to find this one takes minutes.
        pytest.param(
            *(BatchSpans, "select_rows", gives_each_row_the_spans_of_the_first),
            marks=pytest.mark.deep,
        ),
        (PolicyLayer, "crop", crops_one_token_less),
        (Slots, "select_rows", forgets_which_rows_are_padded),
        (Rows, "select_rows", keeps_the_rows_as_they_were),
    ],
)
def test_a_cache_with_a_fault_is_found(monkeypatch, owner, name, fault):
    monkeypatch.setattr(owner, name, fault(getattr(owner, name)))
    # A RuntimeError is a wrong position that the full cache does not have.
    with pytest.raises((AssertionError, KvpolicyError, RuntimeError)):
        run_state_machine_as_test(CacheMachine, settings=UNTIL_IT_FAILS)
