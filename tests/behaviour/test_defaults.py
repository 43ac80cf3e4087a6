"""The default dtype and device of the process change nothing."""

import ast
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

import kvpolicy
from kvpolicy.exactness.usages import small_policy
from kvpolicy.exactness.usages.inputs import tokens
from kvpolicy.testing.models import tiny_model

PACKAGE = Path(kvpolicy.__file__).parent
FACTORIES = {
    *("arange", "empty", "eye", "full", "linspace", "ones", "rand", "randint", "randn"),
    *("randperm", "tensor", "zeros"),
}
RECIPES = sorted(each.name for each in kvpolicy.installed() if each.kind == "recipe")
DECIDE_THE_DTYPE = {"arange", "randint", "randperm", "tensor"}
"""Their arguments do, if all are integers."""


@contextmanager
def _default(value):
    change, before = torch.set_default_dtype, torch.get_default_dtype()
    if isinstance(value, str):
        change, before = torch.set_default_device, None
    change(value)
    try:
        yield
    finally:
        change(before)


@pytest.mark.sampled(4, "recipe", "value")
@pytest.mark.parametrize("value", [torch.bfloat16, torch.float16, torch.float64, "meta"], ids=str)
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_keeps_and_says_the_same(recipe, value):
    model, inputs = tiny_model("llama"), [tokens(0, batch=2), tokens(1, 1, 2), tokens(2, 3, 2)]

    def read():
        cache = small_policy(recipe).cache(model)
        said = [model(each, past_key_values=cache).logits for each in inputs]
        return said, cache.positions

    expected, kept = read()
    with _default(value):
        found, positions = read()
    assert all(torch.equal(*each) for each in zip(kept, positions, strict=True))
    assert all(torch.equal(*each) for each in zip(expected, found, strict=True))


@pytest.mark.parametrize("value", [torch.float64, "meta"], ids=str)
@pytest.mark.parametrize("storage", ["quantized", "offloaded"])
@pytest.mark.parametrize("recipe", ["snapkv", "adakv"])
def test_a_storage_gives_back_the_same(recipe, storage, value):
    model, inputs = tiny_model("llama"), [tokens(0), tokens(1, 1), tokens(2, 3)]

    def read():
        cache = small_policy(recipe).cache(model, storage=storage)
        said = [model(each, past_key_values=cache).logits for each in inputs]
        cache.crop(-2)
        return [*said, model(inputs[1], past_key_values=cache).logits]

    expected = read()
    with _default(value):
        found = read()
    assert all(torch.equal(*each) for each in zip(expected, found, strict=True))


def _sources():
    for root in (PACKAGE, PACKAGE.parent / "plugins", PACKAGE.parent / "kernels"):
        yield from root.rglob("*.py")


def _relies_on_a_default(call):
    match call.func:
        case ast.Attribute(value=ast.Name(id="torch"), attr=name) if name in FACTORIES:
            given = {keyword.arg for keyword in call.keywords}
            return "device" not in given or not ("dtype" in given or name in DECIDE_THE_DTYPE)
    return False


def test_every_tensor_is_made_with_a_device_and_a_dtype():
    shipped_for_tests = ("testing", "exactness", "evaluation")
    found = [
        f"{path.name}:{node.lineno}: {ast.unparse(node)}"
        for path in _sources()
        if not set(shipped_for_tests) & set(path.parts)
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call) and _relies_on_a_default(node)
    ]
    assert not found
