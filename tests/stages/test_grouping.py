import pytest
import torch

from kvpolicy.stages.grouping import reduce_groups


@pytest.mark.parametrize("group", ["mean", "max", "sum"])
def test_one_score_for_all_heads_is_reduced_as_its_copies_are(group):
    alike = torch.randn(2, 1, 50).expand(2, 6, 50)
    assert torch.equal(reduce_groups(alike, 2, group), reduce_groups(alike.clone(), 2, group))
