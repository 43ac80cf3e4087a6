import pytest
import torch

import kvpolicy
from kvpolicy.stages.selection import TopKSelector
from kvpolicy.testing import contract, observation
from kvpolicy.testing.samples import normal
from kvpolicy_momentkv.compaction import MeanKeepingCompactor

test_contract = contract(plugin="momentkv")


def chosen(layer, *budgets, seed=5):
    """Choose at random as many rows for each head as its budget."""
    shape = layer.keys.shape[:3]
    return TopKSelector().select(normal(seed, *shape), torch.tensor([budgets]).expand(shape[0], -1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("budgets", [(12, 12), (12, 7), (30, 1)])
def test_the_remainder_is_the_mean_of_the_evicted_rows(budgets, dtype):
    layer = observation(positions=30, heads=2, batch=2)
    keys, values = layer.keys.to(dtype), layer.values.to(dtype)
    selection = chosen(layer, *budgets)
    found = MeanKeepingCompactor().remainder(keys, values, selection, layer)
    for table, mean in zip((keys, values), found, strict=True):
        for row in range(2):
            for head, budget in enumerate(budgets):
                kept = selection.indices[row, head, :budget].tolist()
                gone = [at for at in range(30) if at not in kept]
                own = table[row, head, gone].double()
                expected = own.mean(0) if gone else own.sum(0)
                torch.testing.assert_close(mean[row, head].double(), expected)


def test_kept_rows_are_copies():
    layer = observation(positions=30)
    selection = chosen(layer, 12, 12)
    keys, values = MeanKeepingCompactor().compact(layer.keys, layer.values, selection, layer)
    rows = selection.indices[..., None].expand(-1, -1, -1, 8)
    assert torch.equal(keys, layer.keys.gather(2, rows))
    assert torch.equal(values, layer.values.gather(2, rows))


def test_rows_with_equal_keys_give_the_output_of_the_full_cache():
    """With one key for all evicted rows, order 0 is no approximation."""
    keys, values = normal(0, 1, 1, 20, 4), normal(1, 1, 1, 20, 4)
    keys[:, :, :15] = keys[:, :, :1]
    layer = kvpolicy.Observation(queries=normal(2, 1, 1, 1, 4), keys=keys, values=values)
    last = kvpolicy.Selection(indices=torch.arange(15, 20)[None, None], lengths=torch.tensor([[5]]))
    mean_key, mean_value = MeanKeepingCompactor().remainder(keys, values, last, layer)
    query = layer.queries[0, 0, 0]
    logits = torch.cat([mean_key[0], keys[0, 0, 15:]]) @ query
    logits[0] += torch.tensor(15.0).log()
    found = logits.softmax(0) @ torch.cat([mean_value[0], values[0, 0, 15:]])
    torch.testing.assert_close(found, (keys[0, 0] @ query).softmax(0) @ values[0, 0])


def test_the_recipe_scores_as_restkv_does():
    policy = kvpolicy.recipe("momentkv", budget=64)
    assert policy.scorer == kvpolicy.recipe("restkv", budget=64).scorer
    assert policy.smoother == kvpolicy.recipe("restkv", budget=64).smoother
    assert policy.kept_of(1000) == 63
