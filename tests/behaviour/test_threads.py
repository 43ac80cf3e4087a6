"""Caches are opened, used and closed by several threads at once, on one model."""

import sys
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch

from kvpolicy.exactness.usages import small_policy
from kvpolicy.exactness.usages.inputs import tokens
from kvpolicy.testing.models import tiny_model

THREADS, ROUNDS = 4, 12


@pytest.fixture
def _often():
    """Let threads take turns every few instructions."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("_often")
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_leaving_while_another_thread_opens_detaches_nobody(attention):
    model = tiny_model("llama", attn_implementation=attention)
    recipes = ["snapkv", "adakv", "h2o", "streamingllm"]
    barrier = Barrier(THREADS)

    def answer(recipe):
        with torch.no_grad(), small_policy(recipe).cache(model) as cache:
            model(tokens(0), past_key_values=cache)
            assert cache.policy_layers[0].seen == 60 > cache.policy_layers[0].held
            return model(tokens(1, 1), past_key_values=cache).logits

    expected = [answer(recipe) for recipe in recipes]
    plain = model(tokens(0)).logits

    def work(thread):
        for turn in range(ROUNDS):
            which = (thread + turn) % len(recipes)
            barrier.wait(timeout=60)
            assert torch.equal(answer(recipes[which]), expected[which])

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(work, range(THREADS)))
    assert torch.equal(model(tokens(0)).logits, plain)
