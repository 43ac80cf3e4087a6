"""The weight behind an adapter is computed once, and anew where the adapter has changed."""

import pytest
import torch
from peft import LoraConfig, get_peft_model

import kvpolicy
from benchmarks.waits.forwards import counting
from benchmarks.waits.pretended import Pretended, on_gpu
from kvpolicy.huggingface.model import effective_weight as module
from kvpolicy.huggingface.model.effective_weight import effective_weight
from kvpolicy.testing.models import tiny_model

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")


@pytest.fixture
def adapted():
    model = get_peft_model(tiny_model(), LoraConfig(r=4, target_modules=["o_proj"]))
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.data.normal_(generator=torch.Generator().manual_seed(0))
    return model.eval()


def projection(model):
    return model.get_base_model().model.layers[0].self_attn.o_proj


def test_the_same_numbers_are_the_same_tensor(adapted):
    first = effective_weight(projection(adapted), torch.float32)
    assert effective_weight(projection(adapted), torch.float32) is first


@pytest.mark.parametrize("change", ["scaling", "weight", "data", "disabled"])
def test_an_adapter_that_changes_gives_another_weight(change, adapted):
    layer = projection(adapted)
    first = effective_weight(layer, torch.float32)
    if change == "scaling":
        layer.scaling["default"] *= 2
    elif change == "weight":
        layer.lora_B["default"].weight.mul_(2)
    elif change == "data":
        layer.lora_B["default"].weight.data = layer.lora_B["default"].weight.data * 2
    else:
        layer.enable_adapters(enabled=False)
    assert not torch.equal(effective_weight(layer, torch.float32), first)


# The interpreter of an old Triton makes numbers of arrays, and products of the numbers in memory
# that was never written, in a way that NumPy warns of. What is counted here does not depend on it.
@pytest.mark.filterwarnings("ignore:.* encountered in matmul:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:Conversion of an array with ndim > 0:DeprecationWarning")
def test_on_a_gpu_it_is_computed_for_the_first_prompt_alone(adapted, monkeypatch):
    on_gpu(adapted)
    computed, own = [], module._computed
    monkeypatch.setattr(module, "_computed", lambda *each: computed.append(1) or own(*each))
    model, policy = adapted.get_base_model(), kvpolicy.recipe("restkv", budget=40)
    with counting() as counts:
        for _ in range(2):
            cache = policy.cache(adapted)
            before = len(computed)
            model(Pretended(torch.arange(3, 63)[None]), past_key_values=cache)
            # The cache itself compares, when it is made.
            found, waits = len(computed) - before, counts.total("waits")
            counts.clear()
    assert found == 0
    assert waits
