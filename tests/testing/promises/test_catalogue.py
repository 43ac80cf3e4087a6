"""Each kind has its promises, and `check` names the one that is broken."""

import sys
from pathlib import Path

import pytest

from kvpolicy import testing
from kvpolicy.testing.promises import PROMISES

sys.path.insert(0, str(Path(__file__).parent))
from faulty_parts import WorstSelector


def test_check_names_the_promise_that_is_broken():
    with pytest.raises(AssertionError) as caught:
        testing.check("selector", WorstSelector())
    assert "breaks the promise 'keeps_the_best'" in caught.value.__notes__[-1]


def test_every_kind_has_a_module_of_faulty_parts():
    for kind, promises in PROMISES.items():
        module = promises[0].statement.__module__.rpartition(".")[2]
        assert Path(__file__).with_name(f"test_{module}.py").is_file(), kind
