import attrs
import pytest
import torch

import kvpolicy
from kvpolicy.cache.eviction.one_layer import evicted
from kvpolicy.errors import InvalidValueError
from kvpolicy.exactness.limits import LIMIT
from kvpolicy.exactness.usages import USAGES
from kvpolicy.exactness.usages.inputs import tokens
from kvpolicy.testing import contract, observation
from kvpolicy.testing.models import tiny_model
from kvpolicy_carried import CarriedAllocator

test_contract = contract(plugin="carried")


@pytest.fixture(autouse=True)
def _without_gradients():
    with torch.no_grad():
        yield


SHARP = torch.tensor([[[9.0, 0.1, 0.1, 0.1], [8.0, 0.2, 0.1, 0.1]]])
FLAT = torch.tensor([[[3.0, 2.0, 1.0, 0.5], [6.0, 5.0, 4.0, 0.4]]])


def counts(scores, layer=0, spare=0, budget=2, layers=4, **options):
    shown = observation(positions=scores.shape[-1], layer=layer, num_layers=layers)
    left = torch.full((len(scores),), spare)
    found = CarriedAllocator(**options).allocate_next(scores, shown, budget, left)
    return found.tolist()


@pytest.mark.parametrize(
    ("level", "kept"),
    [(0.05, [[2, 2]]), (0.61, [[1, 2]]), (0.75, [[1, 1]]), (9.0, [[1, 0]]), (20.0, [[0, 0]])],
)
def test_a_layer_keeps_as_few_as_leave_the_level(level, kept):
    assert counts(SHARP, level=level, floor=0.0) == kept


def test_a_layer_keeps_its_floor_and_what_is_protected():
    assert counts(SHARP, level=20.0, floor=0.5) == [[1, 1]]
    assert counts(SHARP.index_fill(2, torch.tensor([3]), torch.inf), level=30.0) == [[1, 1]]


@pytest.mark.parametrize(("layer", "kept"), [(0, 4), (1, 5), (2, 5), (3, 7)])
def test_what_is_left_is_shared_by_the_layers_that_are_still_to_come(layer, kept):
    spare = 0 if layer == 0 else 3
    (found,) = counts(FLAT, layer=layer, spare=spare, level=0.1)
    assert sum(found) == kept


def test_the_last_layer_keeps_all_that_is_left_whatever_it_needs():
    assert counts(SHARP, layer=3, spare=2, level=50.0) == [[3, 3]]


def test_rows_have_budgets_of_their_own():
    both = torch.cat([SHARP, FLAT])
    shown = observation(positions=4, batch=2, layer=1, num_layers=2)
    found = CarriedAllocator().allocate_next(both, shown, 2, torch.tensor([0, 3]))
    assert found.sum(1).tolist() == [4, 7]


@pytest.mark.parametrize("options", [{"level": 0.0}, {"level": float("nan")}, {"floor": 1.5}])
def test_options_that_mean_nothing_are_refused(options):
    with pytest.raises(InvalidValueError):
        CarriedAllocator(**options)


CARRIED = {"name": "carried", "level": 1e9, "floor": 0.5}
POLICY = kvpolicy.recipe("replay", budget=24, allocator=CARRIED)


def test_layers_hold_the_budget_on_average_and_no_layer_waits():
    model = tiny_model(num_hidden_layers=4)
    cache, held = POLICY.cache(model), []
    hooks = [
        layer.register_forward_hook(
            lambda *_: held.append([each.mean_held for each in cache.policy_layers if each.seen])
        )
        for layer in model.model.layers
    ]
    model(tokens(0, 200), past_key_values=cache)
    for hook in hooks:
        hook.remove()
    assert [len(each) for each in held] == [1, 2, 3, 4]
    for layers in held:
        assert sum(layers) <= 24 * len(layers)
    assert held[-1] == [12, 12, 12, 60]


def test_each_forward_begins_with_nothing_left():
    model = tiny_model(num_hidden_layers=3)
    cache, twin = POLICY.cache(model), POLICY.cache(model)
    model(tokens(0, 100), past_key_values=cache)
    model(tokens(0, 100), past_key_values=twin)
    cache.session.spare.leave(slice(0, 1), torch.zeros(1, 2, dtype=torch.long), 24)
    clone = cache.clone()
    for each in (cache, twin, clone):
        model(tokens(1, 50), past_key_values=each)
    for ours, other, copied in zip(cache.positions, twin.positions, clone.positions, strict=True):
        assert torch.equal(ours, other)
        assert torch.equal(ours, copied)


@pytest.mark.sampled(6, "usage")
@pytest.mark.parametrize("usage", sorted(USAGES))
def test_every_usage_is_exact(usage):
    assert USAGES[usage](tiny_model(), attrs.evolve(POLICY, budget=0.4)) <= LIMIT


def test_one_layer_alone_keeps_its_budget():
    layer = observation(positions=60, num_layers=1)
    policy = kvpolicy.recipe("snapkv", scorer={"window": 8}, budget=16, allocator="carried")
    assert (evicted(policy, layer).positions >= 0).sum() == 2 * 16
