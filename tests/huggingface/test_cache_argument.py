"""Who takes a cache under which name, and that our own calls never use a deprecated one."""

from __future__ import annotations

import ast
import warnings
from pathlib import Path

import pytest
import torch
from transformers import DynamicCache, LlamaForCausalLM

from kvpolicy.evaluation.continuations import logits_of_continuations
from kvpolicy.exactness.limits import LIMIT
from kvpolicy.exactness.usages import small_policy
from kvpolicy.exactness.usages.inputs import generate, read, replayed, tokens
from kvpolicy.huggingface.cache_argument import (
    NAMES,
    cache_in,
    cache_of,
    handed,
    name_for,
    renamed,
    takes_a_cache,
)
from kvpolicy.huggingface.size import model_shape
from kvpolicy.testing.models import tiny_model

ROOT = Path(__file__).parents[2]
OWN = name_for(LlamaForCausalLM.forward)
"""The name of the transformers that is installed."""


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama")


@pytest.fixture(autouse=True)
def no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


class Checkpoint(LlamaForCausalLM):
    """Has the names of an older transformers, as the code of a checkpoint may have."""

    def forward(self, input_ids=None, attention_mask=None, past_key_values=None, **kwargs):
        return super().forward(input_ids, attention_mask, **{OWN: past_key_values}, **kwargs)


@pytest.fixture(scope="module")
def checkpoint_model(model):
    return Checkpoint(model.config).eval()


def test_both_names_are_known():
    assert OWN in NAMES
    assert all(cache_in({"input_ids": 1, name: "it"}) == "it" for name in NAMES)
    assert cache_in(dict.fromkeys(NAMES)) is None
    assert renamed({"past_key_values": None}, "cache") == {"past_key_values": None}
    assert not takes_a_cache(lambda input_ids, **kwargs: None)


def test_the_signature_says_the_name(model, checkpoint_model):
    assert name_for(model) == name_for(model.model.layers[0].self_attn) == OWN
    assert name_for(checkpoint_model) == "past_key_values"
    assert name_for(model.generate) == name_for(checkpoint_model.generate) == OWN


def test_wrappers_are_looked_through(checkpoint_model):
    peft = pytest.importorskip("peft")
    hooks = pytest.importorskip("accelerate.hooks")
    own = Checkpoint(checkpoint_model.config)
    with warnings.catch_warnings(action="ignore"):  # of PyTorch's compiler
        assert name_for(torch.compile(own)) == "past_key_values"
    hooks.add_hook_to_module(own, hooks.ModelHook())
    assert name_for(own) == "past_key_values"
    with warnings.catch_warnings(action="ignore"):  # of PEFT
        adapted = peft.get_peft_model(own, peft.LoraConfig(target_modules=["q_proj"], r=2))
    assert name_for(adapted) == "past_key_values"


def test_outputs_give_their_cache_back(model):
    cache = DynamicCache(config=model.config)
    assert cache_of(model(tokens(0), **handed(cache, to=model))) is cache
    assert cache_of(torch.zeros(1)) is None


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_generate_takes_either_name_once_the_cache_is_made(name, model):
    cache = small_policy("snapkv").cache(model)
    options = {"max_new_tokens": 3, "do_sample": False, "pad_token_id": 0}
    text = model.generate(tokens(0), **{name: cache}, **options)
    other = small_policy("snapkv").cache(model)
    assert torch.equal(text, generate(model, other, tokens(0), max_new_tokens=3))
    assert cache.seen == text.shape[1] - 1
    cache.close()


@torch.no_grad()
def test_the_code_of_a_checkpoint_may_have_the_other_name(checkpoint_model):
    def use(cache):
        generate(checkpoint_model, cache, tokens(0))
        read(checkpoint_model, cache, (5, 1), first_seed=1)

    assert replayed(checkpoint_model, small_policy("snapkv"), use) <= LIMIT


@torch.no_grad()
def test_our_own_calls_give_no_warning(model):
    policy = small_policy("restkv")
    with policy.applied(model) as applied:
        model.generate(tokens(0), max_new_tokens=2, do_sample=False, pad_token_id=0)
    assert applied.reports[0].seen
    assert model_shape(model.config, torch.float32).layers
    prompt, answer = tokens(0)[0].tolist(), tokens(1, 3)[0].tolist()
    assert len(logits_of_continuations(model, policy, prompt, [answer])) == 1


def names_in(file):
    """Return the lines of a file that use the old name as code; docstrings may show it."""
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        given = isinstance(node, ast.keyword) and node.arg == "past_key_values"
        read_ = isinstance(node, ast.Attribute) and node.attr == "past_key_values"
        named = isinstance(node, ast.Constant) and node.value == "past_key_values"
        if given or read_ or named:
            yield f"{file.relative_to(ROOT)}:{node.lineno}"


def test_no_other_module_knows_the_old_name():
    files = [
        each
        for folder in ("kvpolicy", "plugins", "benchmarks")
        for each in (ROOT / folder).rglob("*.py")
    ]
    found = [line for each in files if each.name != "cache_argument.py" for line in names_in(each)]
    assert found == []
