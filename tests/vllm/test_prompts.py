import pytest
import torch

import kvpolicy
from kvpolicy.vllm.prompts import Prompts


def _queries(count, start):
    return torch.arange(start, start + count, dtype=torch.float32)[:, None, None]


def _read(prompts, chunks):
    start, found = 0, None
    for count in chunks:
        found = prompts.read("a", 0, _queries(count, start), first=start == 0)
        prompts.remember("a", 0, found)
        start += count
    return found.flatten().tolist()


@pytest.mark.parametrize("chunks", [(50,), (49, 1), (30, 20), (11, 11, 11, 11, 6)])
def test_the_window_reaches_over_chunks(chunks):
    prompts = Prompts(kvpolicy.recipe("restkv", budget=64))
    assert _read(prompts, chunks) == list(range(18, 50))


@pytest.mark.parametrize("recipe", ["expectedattention", "h2o"])
def test_a_scorer_of_all_queries_is_shown_all(recipe):
    prompts = Prompts(kvpolicy.recipe(recipe, budget=64))
    assert _read(prompts, (30, 20)) == list(range(50))


def test_a_prompt_that_begins_anew_forgets_what_was_read_before():
    prompts = Prompts(kvpolicy.recipe("restkv", budget=64))
    _read(prompts, (20, 10))
    assert _read(prompts, (5,)) == list(range(5))


def test_forgotten_requests_leave_nothing():
    prompts = Prompts(kvpolicy.recipe("restkv", budget=64))
    _read(prompts, (20,))
    prompts.forget(["b", "a"])
    assert len(prompts) == 0


def test_what_is_remembered_does_not_change_with_the_batch():
    prompts = Prompts(kvpolicy.recipe("restkv", budget=64))
    batch = _queries(4, 0)
    prompts.remember("a", 0, prompts.read("a", 0, batch, first=True))
    batch.fill_(-1)
    assert prompts.read("a", 0, _queries(1, 4), first=False).flatten().tolist() == [0, 1, 2, 3, 4]
