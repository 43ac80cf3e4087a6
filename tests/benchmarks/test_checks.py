"""A check passes for what is right, and fails with the reason for what is wrong."""

import pytest
import torch

from benchmarks import checks
from benchmarks.checks import reason_against


@pytest.mark.parametrize(
    "check", [checks.restkv_keeps_what_the_authors_keep, checks.snapkv_keeps_what_kvpress_keeps]
)
def test_a_check_fails_if_other_positions_are_kept(check, monkeypatch):
    right = checks.kept_positions

    def wrong(policy, layer):
        positions = right(policy, layer).clone()
        positions[0, 0, 0] += 1
        return positions

    with torch.no_grad():
        assert reason_against(check) is None
        monkeypatch.setattr(checks, "kept_positions", wrong)
        assert "keeps other positions" in reason_against(check)


def test_decoding_fails_its_check_if_logits_are_nan(monkeypatch):
    monkeypatch.setattr(checks, "one_prompt", lambda *_: float("nan"))
    assert "logits differ by nan" in reason_against(checks.CHECKS["decoding with snapkv"])


def test_grouped_attention_fails_its_check_if_it_is_off(monkeypatch):
    check = checks.CHECKS["grouped attention"]
    assert reason_against(check) is None
    right = checks.grouped_attention
    monkeypatch.setattr(checks, "grouped_attention", lambda *args: right(*args) * 1.01)
    assert reason_against(check).startswith("AssertionError")
