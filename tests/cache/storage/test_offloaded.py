"""A cache whose rows wait in the host's memory: the same answers, and nothing held in between."""

import attrs
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import kvpolicy
from kvpolicy.cache.memory.contents import Contents
from kvpolicy.cache.memory.rows import Rows
from kvpolicy.cache.memory.slots import Slots
from kvpolicy.cache.storage import offloaded
from kvpolicy.cache.storage.offloaded import Offloaded
from kvpolicy.exactness.usages import AGAINST_ITSELF, BITWISE, PROMPT, USAGES, small_policy
from kvpolicy.exactness.usages.inputs import read
from kvpolicy.policy import Policy
from kvpolicy.testing.models import tiny_model

RECIPES = ["restkv", "adakv", "h2o", "streamingllm"]
GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


@pytest.mark.sampled(8, "recipe", "usage")
@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("usage", sorted(USAGES))
def test_every_usage_is_exact(usage, recipe, monkeypatch):
    plain = Policy.cache
    monkeypatch.setattr(
        Policy,
        "cache",
        lambda self, model, **options: plain(self, model, **{"storage": "offloaded"} | options),
    )
    difference = USAGES[usage](tiny_model(), small_policy(recipe))
    assert difference <= (0 if usage in BITWISE & AGAINST_ITSELF else 1e-4)


@pytest.mark.parametrize("recipe", [*RECIPES, "defensivekv", "lookm"])
def test_answers_are_those_of_a_cache_that_stays(recipe):
    model, policy = tiny_model(), small_policy(recipe)
    turns = (PROMPT, 1, 1, 9, 1)
    stays, waits = policy.cache(model), policy.cache(model, storage="offloaded")
    for ours, theirs in zip(read(model, waits, turns), read(model, stays, turns), strict=True):
        assert torch.equal(ours, theirs)
    for ours, theirs in zip(waits.report().layers, stays.report().layers, strict=True):
        # What stays may have room for the tokens to come.
        assert ours.nbytes <= theirs.nbytes
        assert attrs.evolve(ours, nbytes=0) == attrs.evolve(theirs, nbytes=0)


@pytest.mark.parametrize("recipe", [*RECIPES, "defensivekv"])
def test_between_forwards_nothing_is_held_but_what_is_put_away(recipe):
    model = tiny_model()
    cache = small_policy(recipe).cache(model, storage="offloaded")
    for length in (PROMPT, 1, 9):
        read(model, cache, (length,))
        assert all(layer.memory.contents is None for layer in cache.policy_layers)


def test_a_cache_comes_back_from_a_file_to_its_storage(tmp_path):
    model = tiny_model()
    cache = small_policy("adakv").cache(model, storage="offloaded")
    read(model, cache, (PROMPT, 1))
    cache.save(tmp_path / "cache.safetensors")
    loaded = kvpolicy.load(tmp_path / "cache.safetensors", model)
    assert loaded.storage == Offloaded()
    for ours, theirs in zip(read(model, loaded, (1, 9)), read(model, cache, (1, 9)), strict=True):
        assert torch.equal(ours, theirs)


def test_rows_leave_the_device_and_come_back_to_it(monkeypatch):
    """Without a GPU: tensors that say they are on one, and have no numbers."""
    monkeypatch.setattr(offloaded, "_is_gpu", lambda contents: False)  # no pinning
    storage = Offloaded()
    with FakeTensorMode():
        slots = Slots.empty(1, 2, torch.device("cuda:0"))
        slots.append(5)
        rows = [Rows(torch.empty(1, 2, 5, 8, device="cuda:0")) for _ in range(2)]
        state = torch.empty(1, 4, 5, device="cuda:0")
        stored = storage.store(Contents(*rows, slots, state=state), None)
        layout = stored.layout
        away = (layout.keys.buffer, layout.values.buffer, layout.state)
        assert {each.device.type for each in away} == {"cpu"}

        contents = storage.load(stored)
        back = (contents.keys.buffer, contents.values.buffer, contents.state)
        assert {str(each.device) for each in back} == {"cuda:0"}
        contents.slots.append(1)
        contents.keys, contents.values = (
            Rows(torch.empty(1, 2, 6, 8, device="cuda:0")) for _ in range(2)
        )
        storage.extend(stored, contents)
        assert stored.layout.keys.view.shape == (1, 2, 6, 8)
        assert stored.layout.keys.buffer.device.type == "cpu"
        assert stored.layout.held == 6


@GPU
@pytest.mark.parametrize("recipe", [*RECIPES, "defensivekv"])
def test_on_a_gpu_the_next_layer_is_on_its_way(recipe):
    model = tiny_model().to("cuda")
    policy = small_policy(recipe)
    answers = []
    for storage in (None, "offloaded"):
        cache, logits = policy.cache(model, storage=storage), []
        for turn, length in enumerate((PROMPT, 1, 1, 9, 1)):
            ids = torch.arange(5 + turn, 5 + turn + length, device="cuda")[None]
            logits.append(model(input_ids=ids, past_key_values=cache).logits)
        answers.append(logits)
    for ours, theirs in zip(*answers, strict=True):
        torch.testing.assert_close(ours, theirs)
    layers = cache.policy_layers
    assert all(layer.memory.stored.layout.keys.buffer.is_pinned() for layer in layers)
    assert [layer.memory.stored.coming is not None for layer in layers] == [True, False]
