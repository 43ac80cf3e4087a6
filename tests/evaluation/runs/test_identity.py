"""A row says which code it comes from."""

from __future__ import annotations

from kvpolicy.evaluation.runs import identity
from kvpolicy.evaluation.runs.entrant import entrants


def test_code_is_told_apart_by_the_plugins_that_a_policy_has():
    _, snapkv, streaming = entrants(["snapkv", "streamingllm"], [64])
    codes = [identity.code_of(each.policy) for each in (snapkv, streaming)]
    assert codes[0] != codes[1]
    assert codes[0] == identity.code_of(snapkv.policy)
