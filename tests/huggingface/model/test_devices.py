"""Models whose layers are on several devices, or whose weights wait on the host or on disk."""

from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import kvpolicy
from kvpolicy.cache.eviction.budgets import budgets_of_layers
from kvpolicy.cache.eviction.evict import Ranked
from kvpolicy.errors import UnsupportedModelError
from kvpolicy.exactness.usages import PROMPT, small_policy
from kvpolicy.exactness.usages.inputs import read
from kvpolicy.huggingface.model.devices import layer_devices, weight_of
from kvpolicy.huggingface.model.rotary import ModelRotary
from kvpolicy.testing import observation
from kvpolicy.testing.models import tiny_model

META = torch.device("meta")
CPU = torch.device("cpu")


def hooked(module, device):
    """Let a module compute on `device`, as accelerate says it."""
    module._hf_hook = SimpleNamespace(execution_device=device)


@pytest.fixture(params=["host", "disk"])
def waiting(request, tmp_path):
    """Give a function that leaves a model without weights: they come when they are needed."""
    accelerate = pytest.importorskip("accelerate")

    def offloaded(model):
        if request.param == "host":
            accelerate.cpu_offload(model, execution_device=CPU)
        else:
            accelerate.disk_offload(model, tmp_path / "weights", execution_device=CPU)
        assert all(weight.is_meta for weight in model.parameters())
        return model

    return offloaded


@pytest.mark.sampled(2, "recipe", "storage", "waiting")
@pytest.mark.parametrize("recipe", ["restkv", "snapkv", "adakv", "streamingllm", "defensivekv"])
@pytest.mark.parametrize("storage", [None, "offloaded"])
def test_weights_that_wait_are_read_in_time(recipe, storage, waiting):
    plain, model = tiny_model(), waiting(tiny_model())
    policy, turns = small_policy(recipe), (PROMPT, 1, 9, 1)
    caches = policy.cache(model, storage=storage), policy.cache(plain)
    found, expected = (
        read(each, cache, turns) for each, cache in zip((model, plain), caches, strict=True)
    )
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs)
    for ours, theirs in zip(*(cache.positions for cache in caches), strict=True):
        assert torch.equal(ours, theirs)


def test_a_model_whose_weights_wait_is_known_again(waiting, tmp_path):
    path = tmp_path / "cache.safetensors"
    model = waiting(tiny_model())
    cache = small_policy("restkv").cache(model)
    read(model, cache, (PROMPT, 1))
    cache.save(path)
    for other in (model, tiny_model()):
        loaded = kvpolicy.load(path, other)
        assert {layer.keys.device for layer in loaded.policy_layers} == {CPU}
        expected = read(model, cache.clone(), (1, 9))
        for ours, theirs in zip(read(other, loaded, (1, 9)), expected, strict=True):
            assert torch.equal(ours, theirs)
    with pytest.raises(kvpolicy.errors.CacheFileError, match="weights differ"):
        kvpolicy.load(path, tiny_model(seed=1))


def test_a_weight_that_is_nowhere_is_named():
    with pytest.raises(UnsupportedModelError, match="output projection is on the meta device"):
        weight_of(torch.nn.Linear(2, 2, device="meta"))


def test_a_weight_that_is_there_is_shown_as_it_is():
    projection = torch.nn.Linear(2, 2)
    assert weight_of(projection) is projection.weight


def test_every_layer_has_its_own_device():
    model = tiny_model()
    assert layer_devices(model, 2) == [CPU, CPU]
    model.model.layers[1].to("meta")
    assert layer_devices(model, 3) == [CPU, CPU, CPU]
    hooked(model.model.layers[1].self_attn.q_proj, "cuda:1")
    assert layer_devices(model, 2) == [CPU, torch.device("cuda:1")]


def test_a_file_comes_back_to_the_device_of_each_layer(tmp_path):
    path = tmp_path / "cache.safetensors"
    model = tiny_model()
    cache = small_policy("restkv").cache(model)
    read(model, cache, (PROMPT,))
    cache.save(path)
    hooked(model.model.layers[1].self_attn, "meta")
    loaded = kvpolicy.load(path, model)
    first, second = loaded.policy_layers
    assert (first.keys.device, first.positions.device) == (CPU, CPU)
    assert (second.keys.device, second.positions.device) == (META, META)


def test_layers_on_several_devices_share_one_budget():
    """Tensors that say where they are, and have no numbers; an allocator that compares them."""

    class Together:
        def allocate(self, scores, observation, budget):
            raise AssertionError

        def allocate_layers(self, scores, observations, budget):
            total = torch.stack(list(scores)).sum()  # raises for two devices
            return [(each.sum(-1) + total).long() for each in scores]

    policy = SimpleNamespace(
        allocate_layers=lambda scores, seen, held: Together().allocate_layers(scores, seen, 1)
    )
    with FakeTensorMode() as mode:
        devices = [torch.device(name) for name in ("cuda:0", "cuda:1", "cpu")]
        seen = observation()
        ranked = [
            Ranked(
                views=(SimpleNamespace(held_by_head=None, keys=seen.keys[:, :, :4], newest=4),),
                observations=(seen,),
                scores=mode.from_tensor(torch.zeros(1, 2, 4)).to(device),
            )
            for device in devices
        ]
        budgets = budgets_of_layers(policy, ranked)
    # The layers are compared on the first one's device. A pipeline then counts on the CPU.
    assert [each.device for each in budgets] == [devices[0]] * len(devices)


def test_rotary_tables_come_to_the_layer_that_asks():
    class Elsewhere(torch.nn.Module):
        def forward(self, like, positions):
            angles = torch.zeros(*positions.shape, 4)
            return angles.cos(), angles.sin()

    cosines, sines = ModelRotary(Elsewhere()).tables(torch.zeros(3, dtype=torch.long, device=META))
    assert (cosines.device, sines.device) == (META, META)


def test_no_part_is_shown_a_weight_on_the_meta_device():
    """A model that is nowhere cannot be read with; a policy is not what notices."""
    model = tiny_model()
    for layer in model.model.layers:
        layer.self_attn.o_proj.to("meta")
    with pytest.raises(UnsupportedModelError, match="on the meta device"):
        small_policy("restkv").cache(model)
