import pytest
import torch

from kvpolicy.observation.norms import row_norms


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_norms_are_those_of_float64(dtype):
    rows = torch.randn(2, 3, 50, 8).to(dtype)
    torch.testing.assert_close(row_norms(rows).double(), rows.double().norm(dim=-1))


def test_blocks_give_the_same_norms(monkeypatch):
    rows = torch.randn(2, 3, 50, 8)
    whole = row_norms(rows)
    monkeypatch.setattr("kvpolicy.observation.norms.rows_per_block", lambda *_: 7)
    assert torch.equal(row_norms(rows), whole)
