"""A model is known by all its numbers and settings, and by nothing else."""

import copy
import enum
import json
import types

import attrs
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import kvpolicy
from kvpolicy.errors import CacheFileError
from kvpolicy.exactness.usages import small_policy
from kvpolicy.exactness.usages.inputs import read
from kvpolicy.huggingface.file.fingerprint import differences, fingerprint
from kvpolicy.testing.models import tiny_model


def known(model):
    """The fingerprint as it comes out of a file."""
    return json.loads(json.dumps(fingerprint(model)))


def attention(model):
    return model.model.layers[0].self_attn


@pytest.fixture(scope="module")
def plain():
    model = tiny_model()
    return model, known(model)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_every_number_of_every_tensor_counts(data, plain):
    model, before = plain
    owned = dict(model.named_parameters()) | dict(model.named_buffers())
    tensor = owned[data.draw(st.sampled_from(sorted(owned)))].data.view(-1)
    at = data.draw(st.integers(0, tensor.numel() - 1))
    kept = tensor[at].clone()
    tensor[at] += 1e-3
    try:
        assert differences(before, model) == ["weights"]
    finally:
        tensor[at] = kept
    assert differences(before, model) == []


class Projection(torch.nn.Module):
    """A projection that keeps its weight and its options in a way of its own."""

    def __init__(self, linear, **owned):
        super().__init__()
        self.linear = linear
        for name, value in owned.items():
            setattr(self, name, value)

    def forward(self, x):
        return self.linear(x)


class Custom(Projection):
    """As libraries do that pack weights: what is saved is no parameter and no buffer."""

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        destination[prefix + "packed"] = (self.hidden.packed, 4)


class Extra(Projection):
    def get_extra_state(self):
        return {"scale": self.hidden.packed}


class Packed:
    """An object that does not show what it has."""

    def __init__(self, numbers):
        self._numbers = numbers

    __slots__ = ("__weakref__", "_numbers")

    @property
    def packed(self):
        return self._numbers


class Kind(enum.Enum):
    ONE = 1
    TWO = 2


@attrs.define
class Options:
    active: str
    scale: torch.Tensor


class Callable:
    def __init__(self, factor):
        self.factor = factor

    def __call__(self, x):
        return self.factor * x


LONG = torch.arange(5000.0)
OTHER = LONG.clone()
OTHER[4321] += 1
OWNED = {
    "name": ("one", "two"),
    "flag": (False, True),
    "number": (1, 2),
    "scaling": (0.5, 0.25),
    "absent": (None, "one"),
    "list": (["one"], ["one", "two"]),
    "order": (["one", "two"], ["two", "one"]),
    "set": ({"one"}, {"two"}),
    "by name": ({"one": 0.5, "two": 0.5}, {"one": 0.5, "two": 0.6}),
    "member": (Kind.ONE, Kind.TWO),
    "dtype": (torch.float16, torch.bfloat16),
    "array": (np.arange(5), np.arange(1, 6)),
    "type of array": (np.zeros(2, np.float32), np.zeros(1, np.float64)),
    "tensor": (LONG, OTHER),
    "short tensor": (torch.ones(3), torch.ones(3) * 1.001),
    "integers": (torch.ones(3, dtype=torch.int8), -torch.ones(3, dtype=torch.int8)),
    "tensors by name": ({"one": LONG}, {"one": OTHER}),
    "nested": ([{"a": [({"b": 1},)]}], [{"a": [({"b": 2},)]}]),
    "modules in a list": ([torch.nn.ReLU()], [torch.nn.SiLU()]),
    "namespace": (types.SimpleNamespace(active="one"), types.SimpleNamespace(active="two")),
    "object": (Options("one", LONG), Options("two", LONG)),
    "tensor of an object": (Options("one", LONG), Options("one", OTHER)),
    "tensor in a slot": (Packed(LONG), Packed(OTHER)),
    "callable object": (Callable(1), Callable(2)),
}


@pytest.mark.parametrize("kind", OWNED)
def test_what_a_module_keeps_counts(kind):
    first, second = OWNED[kind]
    model = tiny_model()
    attention(model).v_proj = Projection(attention(model).v_proj, owned=first)
    before = known(model)
    assert differences(before, copy.deepcopy(model)) == []
    attention(model).v_proj.owned = second
    assert differences(before, model) in (["weights"], ["settings"], ["weights", "settings"])


@pytest.mark.parametrize("kind", [Custom, Extra])
def test_what_a_module_saves_in_its_own_way_counts(kind):
    # Only what it saves shows the numbers.
    def of(numbers):
        model = tiny_model()
        hidden = types.MethodType(lambda self: None, numbers)  # a method is not looked into
        module = kind(attention(model).v_proj, hidden=hidden)
        module.__class__ = type(kind.__name__, (kind,), {"hidden": Packed(numbers)})
        vars(module).pop("hidden")
        attention(model).v_proj = module
        return model

    before = known(of(LONG))
    assert differences(before, of(LONG)) == []
    assert differences(before, of(OTHER)) == ["weights"]


def _row(model):
    model.model.layers[1].mlp.down_proj.weight.data[5] += 1


def _swap_layers(model):
    layers = model.model.layers
    layers[0], layers[1] = layers[1], layers[0]


def _share(model):
    model.model.layers[1].mlp = model.model.layers[0].mlp


def _scale_of_a_tensor(model):
    attention(model).v_proj.weight.scale = torch.tensor(2.0)


CHANGES = {
    "row": _row,
    "last number": lambda model: model.lm_head.weight.data.view(-1)[-1:].add_(1e-6),
    "numpy": lambda model: model.lm_head.weight.detach().numpy().__setitem__((0, 0), 7.0),
    "frequencies": lambda model: model.model.rotary_emb.inv_freq.mul_(0.5),
    "one frequency": lambda model: model.model.rotary_emb.inv_freq[-1:].mul_(1.0001),
    "buffer": lambda model: model.register_buffer("more", torch.ones(2)),
    "bias": lambda model: setattr(
        model.lm_head, "bias", torch.nn.Parameter(torch.zeros(model.config.vocab_size))
    ),
    "layers swapped": _swap_layers,
    "module shared": _share,
    "epsilon": lambda model: setattr(model.model.norm, "variance_epsilon", 1e-3),
    "attention's scaling": lambda model: setattr(attention(model), "scaling", 1.0),
    "activation": lambda model: setattr(model.model.layers[0].mlp, "act_fn", torch.nn.ReLU()),
    "scale of a tensor": _scale_of_a_tensor,
    "precision": lambda model: model.bfloat16(),
    "precision of a layer": lambda model: model.model.layers[1].double(),
    "training adapters": lambda model: attention(model).q_proj.register_parameter(
        "lora", torch.nn.Parameter(torch.zeros(2))
    ),
    "config": lambda model: setattr(model.config, "rms_norm_eps", 1e-3),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_model_is_another_one(change, plain):
    model, before = copy.deepcopy(plain[0]), plain[1]
    with torch.no_grad():
        CHANGES[change](model)
    assert differences(before, model)


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
    assert differences(known(adapted()), adapted(order=("two", "one"))) == []


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

    before = known(quantised())
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


def _read_more(model):
    cache = small_policy("snapkv").cache(model)
    read(model, cache, (300, 1))
    return cache


def _clean(model):
    model.requires_grad_(requires_grad=False)
    for module in model.modules():
        if hasattr(module, "gradient_checkpointing"):
            module.gradient_checkpointing = True


SAME = {
    "copied": lambda model: None,
    "with an open cache": _read_more,
    "with a closed cache": lambda model: _read_more(model).close(),
    "without gradients": _clean,
    "with other strides": lambda model: setattr(
        attention(model).v_proj.weight, "data", attention(model).v_proj.weight.data.T.clone().T
    ),
    "with equal weights that are not tied": lambda model: setattr(
        model.lm_head, "weight", torch.nn.Parameter(model.lm_head.weight.detach().clone())
    ),
    "with frequencies of another device": lambda model: model.model.rotary_emb.inv_freq.mul_(
        1 + 2e-7
    ),
}


@pytest.mark.parametrize("change", SAME)
@pytest.mark.parametrize("rope", ["default", "dynamic"])
def test_an_equal_model_is_the_same_one(change, rope):
    kinds = {"default": {}, "dynamic": {"factor": 2.0}}
    parameters = {"rope_type": rope, "rope_theta": 1e4, **kinds[rope]}
    model = tiny_model(
        rope_parameters=parameters, max_position_embeddings=128, tie_word_embeddings=True
    )
    before = known(model)
    other = copy.deepcopy(model)
    with torch.no_grad():
        kept = SAME[change](other)
    assert differences(before, other) == []
    del kept


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_a_model_from_disk_is_the_same_one(family, tmp_path):
    model = tiny_model(family)
    model.save_pretrained(tmp_path)
    assert differences(known(model), type(model).from_pretrained(tmp_path)) == []


def test_another_attention_implementation_is_no_other_model():
    assert differences(known(tiny_model()), tiny_model(attn_implementation="eager")) == []


def test_a_model_in_chunks_is_the_same_one():
    model = tiny_model()
    before = known(model)
    with kvpolicy.chunked_mlp(model, tokens=16):
        assert differences(before, model) == []


@pytest.mark.parametrize("name", ["weight", "buffer"])
def test_a_tensor_without_numbers_is_refused_in_one_sentence(name, path, saved):
    model, _ = saved(path)
    if name == "weight":
        model.lm_head.to("meta")
    else:
        model.register_buffer("more", torch.ones(2, device="meta"))
    whole = path.read_bytes()
    with pytest.raises(CacheFileError, match="is on the meta device"):
        kvpolicy.load(path, model)
    cache = small_policy("snapkv").cache(model)
    with pytest.raises(CacheFileError, match="is on the meta device"):
        cache.save(path)
    assert path.read_bytes() == whole
    assert list(path.parent.iterdir()) == [path]


def test_offloaded_buffers_are_read():
    accelerate = pytest.importorskip("accelerate")

    def model():
        found = tiny_model()
        attention(found).register_buffer("steps", torch.arange(9))
        return found

    before = known(model())
    waiting = accelerate.cpu_offload(model(), torch.device("cpu"), offload_buffers=True)
    assert attention(waiting).steps.is_meta
    assert differences(before, waiting) == []
    assert attention(waiting).steps.is_meta


def test_numbers_are_read_only_if_the_configuration_is_the_same(plain, monkeypatch):
    monkeypatch.setattr(
        "kvpolicy.huggingface.file.fingerprint.fingerprint", lambda model: pytest.fail("read")
    )
    assert differences(plain[1], tiny_model("mistral")) == ["class", "config"]


JUNK = [None, 3, "x", [], {}, {"model.rotary": None}, [1.0], {"model.model.rotary_emb.inv_freq": 3}]


@pytest.mark.parametrize("junk", JUNK, ids=repr)
@pytest.mark.parametrize("part", ["weights", "settings", "tables"])
def test_junk_is_another_model(part, junk, plain):
    assert differences({**plain[1], part: junk}, plain[0])


def test_containers_that_hold_themselves_come_to_an_end():
    model = tiny_model()
    circle = [1]
    circle.append({"again": circle})
    vars(model.model.norm)["circle"] = circle
    vars(model.model.norm)["parents"] = [model, model.model]
    assert differences(known(model), model) == []
