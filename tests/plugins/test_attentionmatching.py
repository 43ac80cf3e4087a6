import attrs
import pytest
import torch
from transformers import DynamicCache

import kvpolicy
from kvpolicy.errors import InvalidValueError, UnsupportedModelError
from kvpolicy.exactness.usages import AGAINST_ITSELF, BITWISE, USAGES, small_policy, tokens
from kvpolicy.stages.selection import TopKSelector
from kvpolicy.testing import contract, observation
from kvpolicy.testing.models import tiny_model
from kvpolicy.testing.samples import normal
from kvpolicy_attentionmatching.compaction import LEAST, AttentionMatchingCompactor

test_contract = contract(plugin="attentionmatching")


def chosen(layer, *budgets, seed=5):
    """Choose at random as many rows for each head as its budget."""
    shape = layer.keys.shape[:3]
    return TopKSelector().select(normal(seed, *shape), torch.tensor([budgets]).expand(shape[0], -1))


def fit(compactor, layer, selection, bias=None):
    return compactor.compact_with_bias(layer.keys, layer.values, selection, layer, bias)


def masses(layer, head, row, bias=None):
    """exp(logit) of a group's queries and all rows, in float64, and each query's exp(sink)."""
    groups = layer.queries.shape[1] // layer.keys.shape[1]
    found, sinks = [], []
    for h in range(head * groups, (head + 1) * groups):
        for w in range(layer.window):
            logits = layer.keys[row, head].double() @ layer.queries[row, h, w].double()
            logits = logits * layer.scaling
            if layer.softcap is not None:
                logits = layer.softcap * torch.tanh(logits / layer.softcap)
            if bias is not None:
                logits = logits + bias[row, head].double()
            logits[layer.length - layer.window + w + 1 :] = -torch.inf
            found.append(logits.exp())
            sinks.append(0 if layer.sink_logits is None else layer.sink_logits[h].double().exp())
    return torch.stack(found), torch.tensor(sinks, dtype=torch.float64)[:, None]


def expected(layer, selection, head, row, budget, *, mass_ridge, ridge, bias=None):
    """The bias and the values by their normal equations."""
    places = selection.indices[row, head, :budget].tolist()
    mass, sinks = masses(layer, head, row, bias)
    z = mass.sum(-1, keepdim=True)
    p = mass[:, places] / z
    one = torch.ones(budget, dtype=torch.float64)
    factors = torch.linalg.solve(
        p.T @ p + mass_ridge * torch.eye(budget, dtype=torch.float64),
        p.T @ torch.ones(len(p), dtype=torch.float64) + mass_ridge * one,
    ).clamp(min=LEAST)
    outputs = mass @ layer.values[row, head].double() / (z + sinks)
    weights = mass[:, places] * factors
    x = weights / (weights.sum(-1, keepdim=True) + sinks)
    own = layer.values[row, head, places].double()
    square = x.T @ x + ridge * torch.eye(budget, dtype=torch.float64)
    fitted = torch.linalg.solve(square, x.T @ outputs + ridge * own)
    before = 0 if bias is None else bias[row, head, places].double()
    return (factors.log() + before).float(), fitted.float()


@pytest.mark.parametrize("earlier", [False, True], ids=["no bias before", "a bias before"])
@pytest.mark.parametrize("special", [{}, {"softcap": 2.0}, {"sink_logits": normal(7, 6)}])
def test_biases_and_values_are_those_of_the_normal_equations(special, earlier):
    layer = observation(positions=30, window=6, heads=2, groups=3, batch=2, **special)
    selection = chosen(layer, 12, 7)
    bias = normal(8, 2, 2, 30) if earlier else None
    compactor = AttentionMatchingCompactor(ridge=0.3, mass_ridge=0.1)
    _, values, found = fit(compactor, layer, selection, bias)
    for row in range(2):
        for head, budget in enumerate((12, 7)):
            wanted = expected(
                layer, selection, head, row, budget, mass_ridge=0.1, ridge=0.3, bias=bias
            )
            close = {"rtol": 1e-4, "atol": 1e-4}
            torch.testing.assert_close(found[row, head, :budget], wanted[0], **close)
            torch.testing.assert_close(values[row, head, :budget], wanted[1], **close)


def test_the_mass_comes_back_with_a_small_ridge():
    layer = observation(positions=40, window=3, groups=2)
    selection = chosen(layer, 10, 10)
    _, _, bias = fit(AttentionMatchingCompactor(mass_ridge=1e-8), layer, selection)
    if (bias > torch.tensor(LEAST).log() + 1e-3).all():
        for head in range(2):
            mass, _ = masses(layer, head, 0)
            places = selection.indices[0, head].tolist()
            kept = (mass[:, places] * bias[0, head].double().exp()).sum(-1)
            torch.testing.assert_close(kept, mass.sum(-1), rtol=1e-3, atol=1e-3)


def test_a_large_ridge_changes_nothing():
    layer = observation(positions=30)
    selection = chosen(layer, 12, 12)
    keys, values, bias = fit(
        AttentionMatchingCompactor(ridge=1e9, mass_ridge=1e9), layer, selection
    )
    rows = selection.indices[..., None].expand(-1, -1, -1, 8)
    assert torch.equal(keys, layer.keys.gather(2, rows))
    torch.testing.assert_close(values, layer.values.gather(2, rows))
    torch.testing.assert_close(bias, torch.zeros_like(bias))


def test_a_head_that_evicts_nothing_keeps_its_values_and_bias_bit_for_bit():
    layer = observation(positions=30)
    before = normal(8, 1, 2, 30)
    _, values, bias = fit(AttentionMatchingCompactor(), layer, chosen(layer, 30, 12), before)
    assert torch.equal(values[:, 0], layer.values[:, 0])
    assert torch.equal(bias[:, 0], before[:, 0])
    assert bias[:, 1, :12].abs().max() > 0


def test_values_stay_where_only_biases_are_fitted():
    layer = observation(positions=30)
    selection = chosen(layer, 12, 12)
    _, values, bias = fit(AttentionMatchingCompactor(values=False), layer, selection)
    rows = selection.indices[..., None].expand(-1, -1, -1, 8)
    assert torch.equal(values, layer.values.gather(2, rows))
    torch.testing.assert_close(bias, fit(AttentionMatchingCompactor(), layer, selection)[2])


def test_blocks_of_heads_give_the_same(monkeypatch):
    layer = observation(positions=30, heads=4)
    selection = chosen(layer, 12, 7, 30, 1)
    whole = fit(AttentionMatchingCompactor(), layer, selection)
    monkeypatch.setattr("kvpolicy_attentionmatching.compaction.rows_per_block", lambda *_, **__: 1)
    for got, wanted in zip(fit(AttentionMatchingCompactor(), layer, selection), whole, strict=True):
        torch.testing.assert_close(got, wanted)


def test_only_the_last_queries_are_asked():
    layer = observation(positions=30, window=8)
    selection = chosen(layer, 12, 12)
    compactor = AttentionMatchingCompactor(queries=3)
    asked = attrs.evolve(layer, queries=layer.queries[:, :, -3:])
    pairs = zip(fit(compactor, asked, selection), fit(compactor, layer, selection), strict=True)
    assert all(torch.equal(*pair) for pair in pairs)


def policy(recipe="snapkv", **settings):
    return small_policy(recipe, compactor="attentionmatching", **settings)


def read(model, cache, *counts, batch=1):
    with torch.no_grad():
        for turn, count in enumerate(counts):
            output = model(input_ids=tokens(turn, count, batch), past_key_values=cache)
    return output.logits


def test_decoded_logits_are_those_of_eager_attention_with_the_bias_in_its_mask():
    model = tiny_model(attn_implementation="eager", num_hidden_layers=1)
    cache = policy().cache(model)
    read(model, cache, 60)
    ragged = cache.policy_layers[0].memory.contents.ragged
    assert ragged.bias.abs().max() > 0
    rows = DynamicCache()
    layer = cache.policy_layers[0]
    rows.update(layer.keys, layer.values, 0)
    # Two key/value heads, each with two query heads.
    bias = ragged.bias.view(1, 2, -1).repeat_interleave(2, 1)[:, :, None]
    for step in range(4):
        token = tokens(9 + step, 1)
        bias = torch.nn.functional.pad(bias, (0, 1))
        with torch.no_grad():
            wanted = model(
                input_ids=token,
                past_key_values=rows,
                attention_mask=bias,
                position_ids=torch.tensor([[60 + step]]),
            ).logits
            found = model(input_ids=token, past_key_values=cache).logits
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("usage", sorted(AGAINST_ITSELF & set(USAGES)))
@pytest.mark.parametrize("recipe", ["snapkv", "adakv"])
def test_usages_agree_with_themselves(recipe, usage):
    with torch.no_grad():
        difference = USAGES[usage](tiny_model(), policy(recipe))
    assert difference <= (0 if usage in BITWISE else 1e-4)


def test_rows_keep_their_bias_in_batches_files_and_later_turns(tmp_path):
    model = tiny_model()
    cache = kvpolicy.recipe("snapkv", compactor="attentionmatching", budget=40).cache(model)
    read(model, cache, 60, batch=2)
    before = cache.policy_layers[0].memory.contents.ragged
    cache.save(tmp_path / "cache.safetensors")
    again = kvpolicy.load(tmp_path / "cache.safetensors", model)
    assert torch.equal(again.policy_layers[0].memory.contents.ragged.bias, before.bias)
    cache.batch_select_indices(torch.tensor([1]))
    alone = cache.policy_layers[0].memory.contents.ragged.bias
    assert torch.equal(alone, before.bias[len(alone) :])
    cache.crop(-2)
    assert len(cache.policy_layers[0].memory.contents.ragged.bias) == 2 * 38
    read(model, cache, 30)
    assert cache.policy_layers[0].memory.contents.ragged.bias.shape == (80,)


@pytest.mark.parametrize("setting", [{"slot_positions": True}, {"every": 1}])
def test_slots_and_decoding_are_refused(setting):
    with pytest.raises(InvalidValueError, match=next(iter(setting))):
        kvpolicy.compose(scorer="snapkv", compactor="attentionmatching", budget=64, **setting)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"storage": "quantized"}, "with a bias of their logits, which storage 'quantized'"),
        ({"static": True, "capacity": 8}, "the attention of a captured step does not take"),
    ],
)
def test_caches_that_take_no_bias_are_refused(options, reason):
    with pytest.raises(InvalidValueError, match=reason):
        policy().cache(tiny_model(), **options)


def test_attention_weights_are_refused():
    model = tiny_model(attn_implementation="eager")
    cache = policy().cache(model)
    read(model, cache, 60)
    with pytest.raises(UnsupportedModelError, match="rows with a bias does not compute them"):
        model(input_ids=tokens(1, 5), past_key_values=cache, output_attentions=True)
