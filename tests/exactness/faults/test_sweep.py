"""After an exception in the middle of an operation a cache is exact, or refuses."""

import pytest
import torch

from kvpolicy.exactness.faults import sweep
from kvpolicy.exactness.faults.injection import Injected
from kvpolicy.exactness.faults.operations import OPERATIONS
from kvpolicy.exactness.faults.sweep import SETTINGS, Subject, counts
from kvpolicy.huggingface.guard import Guard
from kvpolicy.huggingface.layer import PolicyLayer
from kvpolicy.testing.models import tiny_model

# Primes, so that the lines that are tried differ between operations.
STEPS = {"decode": 97, "second turn": 97, "save": 1009, "reset": 1}


@pytest.mark.sampled(12, "setting", "operation")
@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: "-".join(map(str, setting)))
def test_no_answer_is_wrong(setting, operation):
    faults = list(Subject(*setting, operation).faults(step=STEPS.get(operation, 23)))
    bad = [fault for fault in faults if fault.outcome in ("wrong", "unclear")]
    assert not bad
    assert counts(faults)["exact"] + counts(faults)["refused"] == len(faults)


def test_a_reset_that_fails_is_completed_before_anything_is_read():
    """A layer that counts no tokens any more, but still holds some, would answer wrongly."""
    faults = list(Subject("llama", "snapkv", None, "reset").faults())
    assert set(counts(faults)) <= {"exact", "refused"}
    assert counts(faults)["refused"] > 0


def test_the_sweep_finds_what_is_not_guarded(monkeypatch):
    """Without the guard, rows that were reordered in one layer only go unnoticed."""
    monkeypatch.setattr(Guard, "failed", lambda self, error: None)
    found = counts(list(Subject("llama", "snapkv", None, "reorder").faults()))
    assert found["wrong"] > 0


def test_the_sweep_finds_exceptions_that_are_unclear(monkeypatch):
    def broken(self, tokens_to_remove):
        raise ZeroDivisionError("not injected")

    subject = Subject("llama", "snapkv", None, "decode")
    model = tiny_model("llama")
    cache = subject._conversation(model)
    monkeypatch.setattr(PolicyLayer, "crop", broken)
    monkeypatch.setattr(sweep, "probe", lambda model, cache, *more: cache.crop(-1))
    fault = subject._judged(model, cache, "here", [torch.zeros(1)], torch.zeros(1))
    assert fault.outcome == "unclear"
    assert "ZeroDivisionError" in fault.detail


def test_an_exception_is_raised_at_the_line_that_was_asked_for():
    guard = Guard()
    with Injected() as counted:
        guard.check()
    assert counted.lines
    with pytest.raises(KeyboardInterrupt), Injected(0, KeyboardInterrupt) as injected:
        guard.check()
    assert injected.where.startswith("huggingface/guard.py:")
