"""Adapters and quantized weights are facts of a model."""

import pytest
import torch

import kvpolicy
from kvpolicy.errors import CacheFileError
from kvpolicy.exactness.usages import small_policy
from kvpolicy.exactness.usages.inputs import read
from kvpolicy.huggingface.file.fingerprint import differences, fingerprint
from kvpolicy.testing.models import tiny_model


def attention(model):
    return model.model.layers[0].self_attn


class Adapted(torch.nn.Module):
    """A projection with two adapters, under the names that PEFT gives to its parts."""

    def __init__(self, base, order=("one", "two")):
        super().__init__()
        self.base_layer = base
        generator = torch.Generator().manual_seed(1)
        weights = {
            name: torch.nn.Parameter(torch.randn(base.weight.shape, generator=generator))
            for name in ("one", "two")
        }
        self.lora = torch.nn.ParameterDict({name: weights[name] for name in order})
        self.scaling = dict.fromkeys(order, 0.5)
        self._active_adapter = ["one"]
        self._disable_adapters = False
        self.merged_adapters = []

    def forward(self, x):
        active = () if self._disable_adapters else self._active_adapter
        added = (x @ self.lora[name].T * self.scaling[name] for name in active)
        return self.base_layer(x) + sum(added)


def adapted(**options):
    model = tiny_model()
    for layer in model.model.layers:
        layer.self_attn.v_proj = Adapted(layer.self_attn.v_proj, **options)
    return model


ADAPTERS = {
    "another is active": lambda each: setattr(each, "_active_adapter", ["two"]),
    "both are active": lambda each: each._active_adapter.append("two"),
    "none is active": lambda each: setattr(each, "_disable_adapters", True),
    "scaled": lambda each: each.scaling.update(one=1.0),
    "said to be merged": lambda each: each.merged_adapters.append("one"),
    "another's numbers": lambda each: each.lora["one"].data.neg_(),
    "an idle one's numbers": lambda each: each.lora["two"].data.neg_(),
    "one more": lambda each: each.lora.update({"three": each.lora["one"]}),
}


@pytest.mark.parametrize("change", ADAPTERS)
def test_adapters_count(change, path):
    model = adapted()
    cache = small_policy("snapkv").cache(model)
    read(model, cache, (60, 1))
    cache.save(path)
    other = adapted()
    kvpolicy.load(path, other)
    ADAPTERS[change](other.model.layers[1].self_attn.v_proj)
    with pytest.raises(CacheFileError, match="active adapters"):
        kvpolicy.load(path, other)


def test_the_order_in_which_adapters_were_added_does_not_count():
    assert differences(fingerprint(adapted()), adapted(order=("two", "one"))) == []


@pytest.mark.parametrize("bits", ["qint8", "qint4"])
def test_weights_of_quanto_count(bits):
    quanto = pytest.importorskip("optimum.quanto")

    def quantised(change=None):
        model = tiny_model(hidden_size=128, intermediate_size=128)
        quanto.quantize(model, weights=getattr(quanto, bits), exclude="lm_head")
        quanto.freeze(model)
        if change is not None:
            change(attention(model).v_proj)
        return model

    before = fingerprint(quantised())
    assert differences(before, quantised()) == []
    for change in (
        lambda each: (
            each.weight._data._data.view(-1)[-1:].add_(1)
            if bits == "qint4"
            else each.weight._data.view(-1)[-1:].add_(1)
        ),
        lambda each: each.weight._scale.mul_(1.01),
        lambda each: each.output_scale.mul_(2),
    ):
        with torch.no_grad():
            assert differences(before, quantised(change)) == ["weights"]
