"""The oracles keep what the queries to come would lose: as a set, or position by position."""

import attrs
import pytest
import torch

import kvpolicy
from kvpolicy.cache.eviction.one_layer import selected
from kvpolicy.errors import InvalidOptionError, InvalidValueError
from kvpolicy.evaluation.measures.reconstruction import record, token_errors
from kvpolicy.evaluation.recording import Future
from kvpolicy.testing import contract, observation, tiny_model
from kvpolicy.testing.samples import normal
from kvpolicy_oracle import OracleScorer, SingleOracleScorer


class Repeats:
    """A future that fits every layer: its newest token comes twice more."""

    def future_of(self, layer):
        newest = (slice(None), slice(None), slice(-1, None))
        return Future(
            queries=layer.queries[newest].repeat(1, 1, 2, 1),
            keys=layer.keys[newest].repeat(1, 1, 2, 1),
            values=layer.values[newest].repeat(1, 1, 2, 1),
        )


class Fixed:
    """One and the same future, whatever is shown."""

    def __init__(self, future):
        self.future = future

    def future_of(self, layer):
        return self.future


test_contract = contract(
    plugin="oracle",
    options={name: {"future": Repeats()} for name in ("oracle", "oracle_single")},
)


def future_for(layer, tokens=3, seed=10):
    batch, heads, _, dim = layer.queries.shape
    kv_heads = layer.keys.shape[1]
    return Future(
        queries=normal(seed, batch, heads, tokens, dim),
        keys=normal(seed + 1, batch, kv_heads, tokens, dim),
        values=normal(seed + 2, batch, kv_heads, tokens, layer.values.shape[-1]),
    )


def scores_of(layer, future):
    return SingleOracleScorer(future=Fixed(future)).score(layer, lambda rows: rows.mean(-2))


def output_of(layer, future, step, without=None):
    """What the whole layer puts out for one query to come, in float64, by masking."""
    groups = layer.queries.shape[1] // layer.keys.shape[1]
    keys, values = (
        torch.cat([held, new[:, :, : step + 1]], dim=2).double().repeat_interleave(groups, dim=1)
        for held, new in ((layer.keys, future.keys), (layer.values, future.values))
    )
    logits = future.queries[:, :, step : step + 1].double() @ keys.mT * layer.scaling
    if without is not None:
        head, position = without
        logits[:, head * groups : (head + 1) * groups, :, position] = -torch.inf
    output = logits.softmax(-1) @ values
    return output.transpose(1, 2).flatten(2) @ layer.output_weight.double().mT


@pytest.mark.parametrize("groups", [1, 2, 3])
def test_a_score_is_the_mean_change_of_the_outputs_to_come(groups):
    layer = observation(positions=12, groups=groups, batch=2, window=1)
    future = future_for(layer)
    expected = torch.zeros(2, 2, 12, dtype=torch.float64)
    for step in range(3):
        whole = output_of(layer, future, step)
        for head in range(2):
            for position in range(12):
                lost = output_of(layer, future, step, (head, position)) - whole
                expected[:, head, position] += lost.norm(dim=-1)[:, 0] / 3

    scores = scores_of(layer, future)

    expected = expected.repeat_interleave(groups, dim=1)
    torch.testing.assert_close(scores.double(), expected, rtol=1e-4, atol=1e-6)


def test_a_head_that_is_shown_alone_is_scored_by_its_own_columns():
    layer = observation(heads=3, positions=12)
    future = future_for(layer)
    whole = scores_of(layer, future)
    for index in range(3):
        alone = layer.head(index)
        theirs = future.heads(alone.first_head, 2, 1)
        torch.testing.assert_close(scores_of(alone, theirs), whole[:, 2 * index : 2 * index + 2])


def test_without_an_output_projection_the_error_is_that_of_all_heads_outputs():
    layer = observation(positions=12, groups=1)
    future = future_for(layer)
    behind_the_identity = attrs.evolve(layer, output_weight=torch.eye(16))
    hidden = attrs.evolve(layer, output_weight=None)
    torch.testing.assert_close(scores_of(hidden, future), scores_of(behind_the_identity, future))


def test_a_position_that_holds_all_attention_but_a_trace_is_worth_what_its_loss_costs():
    """Without it the others, at 1e-11 of the attention before, are all that is left."""
    layer = observation(positions=12, groups=1, window=1)
    keys, queries = torch.zeros(1, 2, 12, 8), torch.zeros(1, 2, 1, 8)
    keys[:, :, 4, 0], queries[..., 0] = 25 * 8**0.5, 1.0
    layer = attrs.evolve(layer, keys=keys)
    future = attrs.evolve(
        future_for(layer, tokens=1), queries=queries, keys=torch.zeros(1, 2, 1, 8)
    )
    lost = output_of(layer, future, 0, (1, 4)) - output_of(layer, future, 0)

    scores = scores_of(layer, future)[0, 1]

    assert scores[4].item() == pytest.approx(lost.norm().item(), rel=1e-4)
    assert scores.argmax() == 4


@pytest.mark.parametrize("name", ["oracle", "oracle_single"])
def test_what_the_future_asks_for_is_kept(name):
    layer = observation(positions=40, window=1)
    asked = torch.tensor([5, 17, 30])
    future = future_for(layer)
    future = attrs.evolve(future, queries=5 * layer.keys[:, :, asked].repeat_interleave(2, dim=1))
    policy = kvpolicy.compose(scorer={"name": name, "future": Fixed(future)}, recent=0, budget=6)

    kept = selected(policy, layer).indices

    assert all(position in kept[0, head] for head in range(2) for position in asked)


def error_of_a_set(layer, future, kept):
    """1/F sum_f ||y_K - y|| / ||y|| of one key/value head's kept positions, by masking."""
    total = 0.0
    for step in range(future.queries.shape[2]):
        whole = output_of(layer, future, step)
        missing = [place for place in range(layer.length) if place not in kept]
        lost = output_of(layer, future, step, (0, missing)) - whole
        total += (lost.norm(dim=-1) / whole.norm(dim=-1)).item() / future.queries.shape[2]
    return total


def best_of(scorer, layer, budget):
    scores = scorer.score(attrs.evolve(layer, budget=budget), lambda rows: rows)
    return set(scores[0, 0].topk(budget).indices.tolist())


@pytest.mark.parametrize("rounds", [100, 2])
@pytest.mark.parametrize("seed", range(4))
def test_the_set_is_never_worse_than_the_best_single_positions(seed, rounds):
    layer = observation(heads=1, positions=16, window=1, seed=seed)
    layer = attrs.evolve(layer, queries=3 * layer.queries)
    future = future_for(layer, seed=seed + 40)
    for budget in (2, 5, 9):
        kept = best_of(OracleScorer(future=Fixed(future), rounds=rounds), layer, budget)
        single = best_of(SingleOracleScorer(future=Fixed(future)), layer, budget)
        found, theirs = (error_of_a_set(layer, future, each) for each in (kept, single))
        assert found <= theirs + 1e-9


def test_of_positions_that_say_the_same_the_set_keeps_some_and_the_single_ones_none():
    """Each of twelve equal positions can go alone, and all together hold most of the output."""
    layer = observation(heads=1, groups=1, positions=20, window=1)
    keys, values = layer.keys.clone(), layer.values.clone()
    keys[:, :, :12], values[:, :, :12] = keys[:, :, :1].clone(), 5.0
    future = future_for(layer, tokens=1)
    future = attrs.evolve(future, queries=5 * keys[:, :, :1] / keys[:, :, :1].norm() ** 2)
    layer = attrs.evolve(layer, keys=keys, values=values)

    kept = best_of(OracleScorer(future=Fixed(future)), layer, 4)
    single = best_of(SingleOracleScorer(future=Fixed(future)), layer, 4)

    assert any(position < 12 for position in kept)
    assert not any(position < 12 for position in single)
    assert error_of_a_set(layer, future, kept) < 0.2 * error_of_a_set(layer, future, single)


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def ids():
    return torch.randint(1, 128, (2, 70), generator=torch.Generator().manual_seed(0))


def oracle(full, **settings):
    scorer = {"name": "oracle", "future": full}
    return kvpolicy.compose(**{"scorer": scorer, "recent": 0, "budget": 12} | settings)


def test_in_a_model_it_loses_less_than_methods_that_cannot_know(model, ids):
    full = record(model, ids[:, :60], ids[:, 60:])
    policies = [
        oracle(full),
        kvpolicy.recipe("random", budget=12),
        kvpolicy.compose(scorer={"name": "snapkv", "window": 4}, budget=12),
    ]
    single = oracle(full, scorer={"name": "oracle_single", "future": full})
    known, alone, *others = [
        token_errors(model, policy, full).mean() for policy in (policies[0], single, *policies[1:])
    ]
    assert known <= alone
    assert all(alone < 0.8 * other for other in others)


def test_a_row_is_kept_as_if_alone(model, ids):
    held = []
    for rows in (slice(0, 2), slice(1, 2)):
        full = record(model, ids[rows, :60], ids[rows, 60:])
        with oracle(full).cache(model) as cache:
            model(ids[rows, :60], past_key_values=cache)
            held.append([layer[-1] for layer in cache.positions])
    for together, alone in zip(*held, strict=True):
        assert torch.equal(together, alone)


def test_a_future_of_other_prompts_is_refused(model, ids):
    full = record(model, ids[:, :60], ids[:, 60:])
    with (
        oracle(full).cache(model) as cache,
        pytest.raises(
            InvalidValueError, match=r"recorded for 2 layers, 2 prompts and 60 tokens, .* 1 prompts"
        ) as caught,
    ):
        model(ids[:1, :60], past_key_values=cache)
    assert any("oracle" in note for note in caught.value.__notes__)


def test_a_future_is_for_the_end_of_the_recorded_prompt_alone(model, ids):
    full = record(model, ids[:, :60], ids[:, 60:])
    with (
        oracle(full).cache(model) as cache,
        pytest.raises(InvalidValueError, match="after 59 tokens"),
    ):
        model(ids[:, :59], past_key_values=cache)


def test_without_a_future_it_is_refused():
    with pytest.raises(InvalidOptionError, match="scorer 'oracle' needs the option 'future'"):
        kvpolicy.compose(scorer="oracle")


@pytest.mark.parametrize("future", [None, "tomorrow", Repeats])
def test_what_does_not_know_the_future_is_refused(future):
    with pytest.raises(InvalidValueError, match=r"'future' must have a method future_of, .*record"):
        kvpolicy.compose(scorer={"name": "oracle", "future": future})


def test_it_cannot_evict_while_decoding():
    with pytest.raises(InvalidValueError, match=r"scorer 'oracle'.* a whole prompt"):
        kvpolicy.compose(scorer={"name": "oracle", "future": Repeats()}, every=4)
