"""Whatever a module computes with counts, wherever it keeps it."""

import copy
import enum
import types

import attrs
import numpy as np
import pytest
import torch

from kvpolicy.huggingface.file.fingerprint import differences, fingerprint
from kvpolicy.testing.models import tiny_model


def attention(model):
    return model.model.layers[0].self_attn


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
    before = fingerprint(model)
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

    before = fingerprint(of(LONG))
    assert differences(before, of(LONG)) == []
    assert differences(before, of(OTHER)) == ["weights"]


def test_offloaded_buffers_are_read():
    accelerate = pytest.importorskip("accelerate")

    def model():
        found = tiny_model()
        attention(found).register_buffer("steps", torch.arange(9))
        return found

    before = fingerprint(model())
    waiting = accelerate.cpu_offload(model(), torch.device("cpu"), offload_buffers=True)
    assert attention(waiting).steps.is_meta
    assert differences(before, waiting) == []
    assert attention(waiting).steps.is_meta


def test_containers_that_hold_themselves_come_to_an_end():
    model = tiny_model()
    circle = [1]
    circle.append({"again": circle})
    vars(model.model.norm)["circle"] = circle
    vars(model.model.norm)["parents"] = [model, model.model]
    assert differences(fingerprint(model), model) == []
