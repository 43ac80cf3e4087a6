import attrs
import pytest
import torch

import kvpolicy
from kvpolicy.errors import InvalidValueError
from kvpolicy.stages.compaction import GatherCompactor
from kvpolicy.stages.selection import TopKSelector
from kvpolicy.testing import contract, observation
from kvpolicy.testing.models import tiny_model
from kvpolicy.testing.samples import normal
from kvpolicy_grkv.compaction import SMALLEST, ValueFittingCompactor

test_contract = contract(plugin="grkv")


def chosen(layer, *budgets, seed=5):
    """Choose at random as many rows for each head as its budget."""
    shape = layer.keys.shape[:3]
    return TopKSelector().select(normal(seed, *shape), torch.tensor([budgets]).expand(shape[0], -1))


def compact(compactor, layer, selection):
    return compactor.compact(layer.keys, layer.values, selection, layer)


def attention(layer, head, row, places):
    """The attention of a group's queries to some places, in float64, one query at a time."""
    groups = layer.queries.shape[1] // layer.keys.shape[1]
    rows = []
    for h in range(head * groups, (head + 1) * groups):
        for w in range(layer.window):
            logits = layer.keys[row, head, places].double() @ layer.queries[row, h, w].double()
            logits = logits * layer.scaling
            if layer.softcap is not None:
                logits = layer.softcap * torch.tanh(logits / layer.softcap)
            logits[torch.tensor(places) > layer.length - layer.window + w] = -torch.inf
            if layer.sink_logits is not None:
                logits = torch.cat([logits, layer.sink_logits[h : h + 1].double()])
            rows.append(logits.softmax(-1)[: len(places)])
    return torch.stack(rows)


@pytest.mark.parametrize("special", [{}, {"softcap": 2.0}, {"sink_logits": normal(7, 6)}])
def test_values_are_those_of_ridge_regression(special):
    layer = observation(positions=30, window=6, heads=2, groups=3, batch=2, **special)
    selection = chosen(layer, 12, 7)
    _, fitted = compact(ValueFittingCompactor(ridge=0.3), layer, selection)
    for row in range(2):
        for head, budget in enumerate((12, 7)):
            places = selection.indices[row, head, :budget].tolist()
            x = attention(layer, head, row, places)
            whole = attention(layer, head, row, list(range(30)))
            outputs = whole @ layer.values[row, head].double()
            own = layer.values[row, head, places].double()
            # The minimum of ||O - X V'||^2 + ridge ||V' - V||^2, by its normal equations.
            square = x.T @ x + 0.3 * torch.eye(budget, dtype=torch.float64)
            expected = torch.linalg.solve(square, x.T @ outputs + 0.3 * own)
            # Half of the product is in float32.
            torch.testing.assert_close(fitted[row, head, :budget], expected.float())


def test_outputs_come_back_if_there_are_as_many_values_as_queries():
    layer = observation(positions=40, window=3, groups=2)
    _, fitted = compact(ValueFittingCompactor(ridge=1e-8), layer, chosen(layer, 10, 10))
    places = chosen(layer, 10, 10).indices
    for head in range(2):
        x = attention(layer, head, 0, places[0, head].tolist())
        before = attention(layer, head, 0, list(range(40))) @ layer.values[0, head].double()
        torch.testing.assert_close(x @ fitted[0, head].double(), before, rtol=1e-4, atol=1e-4)


def test_equal_queries_are_fitted_with_the_smallest_ridge():
    layer = observation(positions=30, window=6, groups=2)
    layer = attrs.evolve(layer, queries=layer.queries[:, :1, :1].expand_as(layer.queries))
    _, fitted = compact(ValueFittingCompactor(ridge=SMALLEST), layer, chosen(layer, 12, 12))
    assert fitted.isfinite().all()


def test_a_large_ridge_leaves_values_as_they_are():
    layer = observation(positions=30)
    selection = chosen(layer, 12, 12)
    keys, fitted = compact(ValueFittingCompactor(ridge=1e9), layer, selection)
    rows = selection.indices[..., None].expand(-1, -1, -1, 8)
    assert torch.equal(keys, layer.keys.gather(2, rows))
    torch.testing.assert_close(fitted, layer.values.gather(2, rows))


def test_a_head_that_evicts_nothing_keeps_its_values_bit_for_bit():
    layer = observation(positions=30)
    selection = chosen(layer, 30, 12)
    _, fitted = compact(ValueFittingCompactor(ridge=0.01), layer, selection)
    assert torch.equal(fitted[:, 0], layer.values[:, 0])
    assert not torch.equal(fitted[:, 1, :12], layer.values[:, 1][:, selection.indices[0, 1, :12]])


def test_only_the_last_queries_are_asked():
    layer = observation(positions=30, window=8)
    selection = chosen(layer, 12, 12)
    compactor = ValueFittingCompactor(queries=3)
    asked = attrs.evolve(layer, queries=layer.queries[:, :, -3:])
    assert torch.equal(
        compact(compactor, asked, selection)[1], compact(compactor, layer, selection)[1]
    )


def test_blocks_of_heads_give_the_same_values(monkeypatch):
    layer = observation(positions=30, heads=4)
    selection = chosen(layer, 12, 7, 30, 1)
    whole = compact(ValueFittingCompactor(), layer, selection)[1]
    monkeypatch.setattr("kvpolicy_grkv.compaction.rows_per_block", lambda *_, **__: 1)
    torch.testing.assert_close(compact(ValueFittingCompactor(), layer, selection)[1], whole)


def test_last_outputs_are_nearer_than_with_rows_as_they_are():
    layer = observation(positions=64, window=8)
    selection = chosen(layer, 16, 16)
    before = attention(layer, 0, 0, list(range(64))) @ layer.values[0, 0].double()
    x = attention(layer, 0, 0, selection.indices[0, 0].tolist())

    def error(compactor):
        values = compact(compactor, layer, selection)[1]
        return (before - x @ values[0, 0].double()).norm()

    assert error(ValueFittingCompactor(ridge=0.1)) < 0.7 * error(GatherCompactor())


def test_slots_and_decoding_are_refused():
    with pytest.raises(InvalidValueError, match="slot_positions=True gives the kept keys other"):
        kvpolicy.compose(scorer="snapkv", compactor="grkv", budget=64, slot_positions=True)
    with pytest.raises(InvalidValueError, match="every"):
        kvpolicy.compose(scorer="snapkv", compactor="grkv", budget=64, every=1)
    with pytest.raises(InvalidValueError, match="'ridge' must be above 0"):
        ValueFittingCompactor(ridge=0)
    with pytest.raises(InvalidValueError, match="'ridge' must be at least 1e-08, not 1e-09"):
        ValueFittingCompactor(ridge=1e-9)


def test_a_conversation_goes_on_with_fitted_values():
    model = tiny_model()
    cache = kvpolicy.compose(scorer="snapkv", compactor="grkv", budget=16, recent=4).cache(model)
    ids = torch.arange(48)[None] % 90
    text = model.generate(ids, past_key_values=cache, max_new_tokens=4, do_sample=False)
    assert text.shape == (1, 52)
    assert cache.get_seq_length() == 51
