"""A cache goes into a file and comes out as it was, for the same model and policy only."""

import subprocess
import sys
from pathlib import Path

import attrs
import pytest
import torch

import kvpolicy
from kvpolicy.errors import CacheFileError, CacheStateError, InvalidComponentError
from kvpolicy.exactness.usages import small_policy, tokens
from kvpolicy.exactness.usages.inputs import read
from kvpolicy.huggingface.file import container
from kvpolicy.testing.models import tiny_model

OTHERS = ("restkv", "h2o", "streamingllm")


@pytest.mark.parametrize(
    "recipe", ["adakv", *(pytest.param(each, marks=pytest.mark.deep) for each in OTHERS)]
)
def test_another_process_goes_on_where_this_one_stood(recipe, path, saved):
    model, cache = saved(path, recipe=recipe)
    script = (
        "import sys, torch, kvpolicy\n"
        "from kvpolicy.testing.models import tiny_model\n"
        "from kvpolicy.exactness.usages.inputs import read\n"
        "torch.set_num_threads(1)\n"
        "model = tiny_model()\n"
        "cache = kvpolicy.load(sys.argv[1], model)\n"
        "with torch.no_grad():\n"
        "    torch.save(read(model, cache, (1, 9, 1), first_seed=7), sys.argv[2])\n"
    )
    answer = path.with_name("answer.pt")
    environment = {"PYTHONPATH": ":".join(filter(None, sys.path))}
    subprocess.run([sys.executable, "-c", script, path, answer], env=environment, check=True)

    for found, expected in zip(
        torch.load(answer), read(model, cache, (1, 9, 1), first_seed=7), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_positions_policy_and_report_come_along(path, saved):
    model, cache = saved(path)
    loaded = kvpolicy.load(path, model)

    assert loaded.policy == cache.policy
    for ours, theirs in zip(loaded.report().layers, cache.report().layers, strict=True):
        # A file has no room for the tokens to come.
        assert ours.nbytes <= theirs.nbytes
        assert attrs.evolve(ours, nbytes=0) == attrs.evolve(theirs, nbytes=0)
    for ours, theirs in zip(loaded.positions, cache.positions, strict=True):
        assert torch.equal(ours, theirs)


def test_the_cache_that_was_saved_goes_on(path, saved):
    model, cache = saved(path)
    twin = cache.clone()
    for a, b in zip(read(model, cache, (1, 9)), read(model, twin, (1, 9)), strict=True):
        assert torch.equal(a, b)


def test_a_padded_batch_and_remembered_queries_come_along(path):
    model = tiny_model()
    cache = small_policy("snapkv", every=4).cache(model)
    mask = torch.ones(2, 60).long()
    mask[1, :45] = 0
    model(input_ids=tokens(0, 60, 2) * mask, attention_mask=mask, past_key_values=cache)
    turns = []
    for turn in range(2):
        mask = torch.cat([mask, torch.ones(2, 1).long()], 1)
        turns.append({"input_ids": tokens(1 + turn, 1, 2), "attention_mask": mask})
    model(**turns[0], past_key_values=cache)
    cache.save(path)
    loaded = kvpolicy.load(path, model)

    for each in (cache, loaded):
        each.logits = model(**turns[1], past_key_values=each).logits
    assert torch.equal(loaded.logits, cache.logits)


def test_modes_of_pytorch_change_nothing(path, saved):
    model, _ = saved(path)
    with torch.inference_mode():
        kvpolicy.load(path, model).save(path)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            loaded = kvpolicy.load(path, model)
    finally:
        torch.set_default_dtype(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        loaded.save(path)
    assert kvpolicy.load(path, model).get_seq_length() == 66


def test_a_folder_that_is_not_there_is_named(tmp_path, saved):
    with pytest.raises(CacheFileError, match="there is no folder"):
        saved(tmp_path / "no" / "where.safetensors")


def test_a_failed_write_leaves_the_old_file(path, monkeypatch, saved):
    _, cache = saved(path)
    whole = path.read_bytes()

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(container, "save_file", full)
    with pytest.raises(CacheFileError, match="No space left"):
        cache.save(path)
    assert path.read_bytes() == whole
    assert list(path.parent.iterdir()) == [path]


def test_a_policy_with_parts_of_ones_own_is_refused_before_anything_is_written(path):
    @attrs.frozen
    class Mine:
        def select(self, scores, budgets):
            return small_policy("restkv").selector.select(scores, budgets)

    model = tiny_model()
    cache = attrs.evolve(small_policy("restkv"), selector=Mine()).cache(model)
    read(model, cache, (60,))
    with pytest.raises(InvalidComponentError):
        cache.save(path)
    assert not Path(path).exists()


def test_a_failed_cache_is_not_saved(path):
    model = tiny_model()
    cache = small_policy("restkv").cache(model)
    cache.session.guard.failure = "on purpose"
    with pytest.raises(CacheStateError, match="on purpose"):
        cache.save(path)
    assert model is not None


def test_a_cache_whose_model_is_gone_says_so(path):
    cache = small_policy("restkv").cache(tiny_model())
    with pytest.raises(CacheStateError, match="no longer exists"):
        cache.save(path)
