"""Golden cases: a test marked `@pytest.mark.golden("tova")` runs with each of that method's."""

import json
from pathlib import Path

import attrs
import numpy as np
import pytest
import torch

import kvpolicy

GOLDEN = Path(__file__).parent / "golden"
ARRAYS = np.load(GOLDEN / "golden.npz")


@attrs.frozen(kw_only=True)
class Case:
    """One run of the authors' own code: its settings, what went in and what came out."""

    id: str
    method: str
    input: str | None
    params: dict
    fields: dict

    def __contains__(self, name):
        return f"{self.id}/{name}" in ARRAYS

    def array(self, name):
        """What came out, as the arrays table of golden/README.md names it."""
        return torch.from_numpy(ARRAYS[f"{self.id}/{name}"])

    def tensor(self, name):
        """What went in: q, k, v or wo, or one of the extras of input F; float32."""
        return torch.from_numpy(ARRAYS[f"input/{self.input}/{name}"]).float()

    def observation(self, *, window=None, **fields):
        """The layer at the end of the prompt, shown to a scorer with that window (None: all)."""
        queries = self.tensor("q")
        return kvpolicy.Observation(
            queries=queries if window is None else queries[:, :, -window:],
            keys=self.tensor("k"),
            values=self.tensor("v"),
            output_weight=self.tensor("wo"),
            **fields,
        )


def _read(case):
    known = {name: case[name] for name in ("id", "method", "input", "params")}
    return Case(**known, fields={key: case[key] for key in case if key not in known})


CASES = [_read(case) for case in json.loads((GOLDEN / "cases.json").read_text())["cases"]]


def pytest_configure(config):
    config.addinivalue_line("markers", "golden(*methods): run for each golden case of the methods")


def pytest_generate_tests(metafunc):
    for marker in metafunc.definition.iter_markers("golden"):
        chosen = [case for case in CASES if case.method in marker.args]
        if array := marker.kwargs.get("array"):
            chosen = [case for case in chosen if array in case]
        assert chosen, f"no golden case for {marker.args} {marker.kwargs}"
        metafunc.parametrize("case", chosen, ids=[case.id for case in chosen])


@pytest.fixture(scope="session")
def golden_methods():
    """Every method that there are golden cases of."""
    return {case.method for case in CASES}
