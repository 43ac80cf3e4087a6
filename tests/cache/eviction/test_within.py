"""An error target keeps few positions, and the layer's error on the observed queries within it."""

import attrs
import pytest
import torch

import kvpolicy
from kvpolicy.cache.eviction.one_layer import evicted
from kvpolicy.observation.removal import removal
from kvpolicy.testing import observation
from kvpolicy.testing.shards import in_shards

WINDOW = 8


def policy(error=0.2, **changes):
    budget = kvpolicy.within(error, **{"window": WINDOW} | changes.pop("target", {}))
    scorer = {"name": "snapkv", "window": WINDOW}
    return kvpolicy.compose(**{"scorer": scorer, "budget": budget} | changes)


def peaked(**fields):
    """A layer whose attention is uneven, so that there is something to evict."""
    layer = observation(
        **{"positions": 200, "heads": 3, "window": WINDOW, "model_dim": 96} | fields
    )
    return attrs.evolve(layer, queries=layer.queries * 3)


def held(contents):
    return (contents.positions >= 0).sum(-1)


def error(layer, contents):
    """||y - y_full|| / ||y_full|| of each row, the mean over the queries, in float64."""
    full, kept = [], []
    groups = layer.queries.shape[1] // layer.keys.shape[1]
    for row in range(len(layer.keys)):
        for head in range(layer.queries.shape[1]):
            own = contents.positions[row, head // groups]
            logits = layer.queries[row, head].double() @ layer.keys[row, head // groups].double().T
            past = torch.ones(WINDOW, layer.length, dtype=torch.bool).tril(layer.length - WINDOW)
            stays = torch.zeros(layer.length, dtype=torch.bool)
            stays[own[own >= 0]] = True
            for found, mask in ((full, past), (kept, past & stays)):
                a = (logits * layer.scaling).masked_fill(~mask, -torch.inf).softmax(-1)
                found.append(a @ layer.values[row, head // groups].double())
    weight = layer.output_weight.double().mT
    y, z = (
        torch.stack(each).unflatten(0, (len(layer.keys), -1)).transpose(1, 2).flatten(2) @ weight
        for each in (full, kept)
    )
    return ((y - z).norm(dim=-1) / y.norm(dim=-1)).mean(-1)


@pytest.mark.parametrize("target", [0.02, 0.1, 0.3, 0.7])
def test_the_error_on_the_window_is_within_the_target(target):
    layer = peaked(batch=3)
    found = evicted(policy(target), layer)
    assert (error(layer, found) <= target * (1 + 1e-4)).all()
    assert held(found).float().mean() < 200


def test_a_smaller_error_keeps_more():
    counts = [held(evicted(policy(target), peaked())).sum() for target in (0.5, 0.2, 0.1, 0.02)]
    assert counts == sorted(counts)
    assert len(set(map(int, counts))) == 4


def test_with_one_head_no_smaller_count_would_do():
    layer = peaked(heads=1)
    found = evicted(policy(0.2), layer)
    scores = policy(0.2).rank(layer)
    measured = removal(layer, scores, WINDOW)
    shares = (measured.errors / measured.output.norm(dim=-1)[:, None, None]).mean(-1)[0, 0]
    place = measured.counts.tolist().index(int(held(found)))
    assert (shares[place:] <= 0.2).all()
    assert shares[place - 1] > 0.2


def test_rows_of_a_batch_do_not_depend_on_one_another():
    layer = peaked(batch=3)
    together = held(evicted(policy(), layer))
    for row in range(3):
        assert (held(evicted(policy(), layer.row(row))) == together[row]).all()


def test_what_is_protected_stays():
    found = evicted(policy(0.99, sinks=3), peaked())
    for head in found.positions[0]:
        own = head[head >= 0].tolist()
        assert own[:3] == [0, 1, 2]
        assert own[-WINDOW:] == [*range(192, 200)]


def test_a_cap_bounds_every_head_though_the_error_grows():
    layer = peaked()
    free, capped = evicted(policy(0.05), layer), evicted(policy(0.05, target={"cap": 40}), layer)
    assert held(free).max() > 40
    assert held(capped).max() == 40
    assert error(layer, capped) > 0.05
    assert held(evicted(policy(0.05, target={"cap": 0.1}), layer)).max() == 20


def test_a_scorer_may_be_shown_fewer_or_more_queries_than_the_target():
    layer = peaked()
    few = policy(0.1, scorer={"name": "snapkv", "window": 2}, recent=8)
    more = policy(0.1, target={"window": 4})
    assert few.window == more.window == WINDOW
    assert (error(layer, evicted(few, layer)) <= 0.1001).all()
    assert policy(0.1, scorer="expectedattention").window is None


def test_processes_that_share_the_heads_decide_as_one():
    layer = peaked(heads=3)

    def own(shown, queries, heads):
        return held(evicted(policy(0.1), shown))

    assert (in_shards(layer, own) == held(evicted(policy(0.1), layer))).all()
