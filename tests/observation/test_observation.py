"""An observation shows what the model's own attention saw."""

import attrs
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given

from kvpolicy.observation.observation import Observation
from kvpolicy.stages.smoothing import MeanSmoother, fold_of
from kvpolicy.testing import observation, observations


def test_attention_is_that_of_the_model():
    layer = observation(positions=32, window=8)
    causal = torch.ones(8, 32, dtype=torch.bool).tril(32 - 8)
    expected = F.scaled_dot_product_attention(
        layer.queries, layer.keys, layer.values, attn_mask=causal, enable_gqa=True
    )
    output = layer.attention @ layer.values.repeat_interleave(2, dim=1)
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)


@given(observations())
def test_every_query_attends_to_the_past_only_and_to_one_in_sum(layer):
    attention = layer.attention
    future = torch.ones(layer.window, layer.length, dtype=torch.bool)
    future = future.triu(layer.length - layer.window + 1)
    assert attention[..., future].count_nonzero() == 0
    if layer.sink_logits is None:
        torch.testing.assert_close(attention.sum(-1), torch.ones(attention.shape[:-1]))
    assert attention.sum(-1).max() <= 1 + 1e-5


@given(observations(window=None))
def test_queries_that_are_ahead_attend_to_all_positions(layer):
    ahead = attrs.evolve(layer, ahead=True)
    # The last query of a window attends to all positions.
    rows = [attrs.evolve(layer, queries=query).attention for query in layer.queries.split(1, dim=2)]
    torch.testing.assert_close(ahead.attention, torch.cat(rows, 2))
    mean = fold_of(MeanSmoother())
    folded = ahead.folded_attention(mean)
    torch.testing.assert_close(folded, ahead.attention.mean(2), rtol=1e-4, atol=1e-6)
    assert ahead.query_positions.tolist() == [layer.seen] * layer.window
    assert ahead.row(0).head(0).ahead


@pytest.mark.parametrize("softcap", [None, 1.5])
def test_a_sink_takes_part_in_the_softmax_and_gives_nothing(softcap):
    sinks = torch.tensor([0.5, -1.0, 3.0, 1e4])
    layer = observation(window=2, positions=5, softcap=softcap, sink_logits=sinks)
    rows = []
    for head in range(4):
        for query in range(2):
            keys = layer.keys[0, head // 2, : 4 + query].double()
            logits = keys @ layer.queries[0, head, query].double() * layer.scaling
            if softcap is not None:
                logits = softcap * torch.tanh(logits / softcap)
            weights = torch.cat([logits, sinks[head, None].double()]).softmax(0)[:-1]
            rows.append(F.pad(weights, (0, 5 - len(weights))))
    expected = torch.stack(rows).view(1, 4, 2, 5)

    torch.testing.assert_close(layer.attention.double(), expected, rtol=1e-5, atol=1e-7)
    folded = layer.folded_attention(fold_of(MeanSmoother()))
    torch.testing.assert_close(folded.double(), expected.mean(2), rtol=1e-5, atol=1e-7)


@given(observations())
def test_a_row_and_a_head_attend_as_they_do_among_others(layer):
    groups = layer.queries.shape[1] // layer.keys.shape[1]
    for row in range(layer.keys.shape[0]):
        for head in range(layer.keys.shape[1]):
            alone, own = layer.row(row).head(head), slice(head * groups, (head + 1) * groups)
            torch.testing.assert_close(
                alone.attention, layer.attention[row : row + 1, own], rtol=1e-4, atol=1e-6
            )


def test_attention_is_float32_whatever_the_model_is():
    layer = observation(dtype=torch.bfloat16)
    assert layer.attention.dtype == torch.float32
    assert layer.folded_attention(fold_of(MeanSmoother())).dtype == torch.float32


@given(observations())
def test_folding_with_weights_is_folding_the_attention(layer):
    folded = layer.folded_attention(fold_of(MeanSmoother()))
    torch.testing.assert_close(folded, layer.attention.mean(-2), rtol=1e-4, atol=1e-5)


@given(observations())
def test_a_fold_without_weights_folds_the_attention_too(layer):
    folded = layer.folded_attention(lambda values: values.amax(-2))
    assert torch.equal(folded, layer.attention.amax(-2))


def test_a_softcap_makes_attention_flatter():
    sharp = observation(queries=30 * observation().queries)
    capped = attrs.evolve(sharp, softcap=1.0)
    assert capped.attention.amax() < 0.3 < sharp.attention.amax()


def test_nothing_is_evicted_unless_it_is_said():
    layer = observation(positions=6, window=2, dim=4)
    assert (layer.window, layer.length, layer.seen, layer.budget) == (2, 6, 6, 6)
    assert layer.scaling == 0.5
    assert layer.positions[0, 1].tolist() == [0, 1, 2, 3, 4, 5]


def test_a_layer_is_printed_by_shape():
    assert "keys=<float32 [1, 2, 32, 8]>" in repr(observation())
    assert "output_weight=None" in repr(observation(output_weight=None))


def test_the_output_factors_measure_what_the_projection_does():
    layer = observation(model_dim=48)
    heads = layer.output_weight.unflatten(1, (4, 8)).transpose(0, 1)
    vectors = torch.randn(4, 8, 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        (layer.output_factors @ vectors).norm(dim=1), (heads @ vectors).norm(dim=1)
    )


def test_without_an_output_projection_there_are_no_factors():
    assert observation(output_weight=None).output_factors is None


@pytest.mark.parametrize("field", ["queries", "keys", "values"])
def test_what_attention_consists_of_must_be_given(field):
    given = {"queries": 0, "keys": 0, "values": 0}
    del given[field]
    with pytest.raises(TypeError, match=field):
        Observation(**given)
