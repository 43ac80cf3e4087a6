"""Every task of kvpolicy keeps the contract that tasks of others are held to."""

from __future__ import annotations

import pytest

import kvpolicy
from kvpolicy.evaluation.tasks.groups import GROUPS
from kvpolicy.evaluation.tasks.plugin import kvpolicy_tasks
from kvpolicy.testing import check
from kvpolicy.testing.promises import PROMISES

WITHOUT_FILES = {
    "needle": {"length": 96, "facts": 4, "num_samples": 3},
    "needle_in_a_row": {"length": 200, "facts": 5, "num_samples": 3},
    "stdlib_sessions": {"length": 200, "num_samples": 2},
    "stdlib_topics": {"length": 64, "num_samples": 2},
    "ruler_niah_multikey_3": {"length": 2000, "num_samples": 2},
    "haystack": {"shortest": 1000, "longest": 1000, "num_depths": 3},
    "scbench_kv": {"length": 2000, "contexts": 2},
    "scbench_many_facts": {"length": 1000, "contexts": 2},
    "instructions": {"num_samples": 3},
    "prompt_leakage": {"num_samples": 3},
    "ruler_fwe": {"length": 2000, "num_samples": 2},
}


@pytest.mark.parametrize("name", WITHOUT_FILES)
def test_a_task_keeps_its_contract(name):
    check("task", kvpolicy_tasks()[name](**WITHOUT_FILES[name]))
    assert PROMISES["task"]


def test_tasks_are_listed():
    names = [part.name for part in kvpolicy.installed("task") if part.plugin == "tasks"]
    assert names == sorted(kvpolicy_tasks())


def test_groups_are_of_tasks_that_there_are():
    assert {task for tasks in GROUPS.values() for task in tasks} <= set(kvpolicy_tasks())
    assert (len(GROUPS["ruler"]), len(GROUPS["ruler_restkv"])) == (13, 11)
