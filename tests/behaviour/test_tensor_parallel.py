"""A model spread over two processes: both select what one process would, and say the same."""

import os
import runpy
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

import kvpolicy
from kvpolicy.errors import UnsupportedModelError
from kvpolicy.testing.models import tiny_model

SCRIPT = Path(__file__).with_name("two_ranks.py")
LIMIT = 1e-4
SECONDS = 600
"""A process that hangs is ended then. On a busy machine both are slow to start."""

two_ranks = runpy.run_path(str(SCRIPT))
pytestmark = [
    pytest.mark.skipif(
        two_ranks["can_spread"]() is not None, reason=str(two_ranks["can_spread"]())
    ),
    # Two processes are started once, not by every worker.
    pytest.mark.xdist_group("tensor_parallel"),
]


@pytest.fixture(scope="module")
def names(request):
    """The policies that this run compares: `make test` compares a sample."""
    test = test_two_processes_select_what_one_selects
    return [item.callspec.params["name"] for item in request.session.items if item.obj is test]


@pytest.fixture(scope="module")
def whole(names):
    """What one process sees."""
    with torch.no_grad():
        models = {
            name: tiny_model(family, **config)
            for name, (family, config) in two_ranks["MODELS"].items()
        }
        return two_ranks["seen"](models, names)


@pytest.fixture(scope="module")
def ranks(names, tmp_path_factory):
    """What each of two processes sees."""
    folder = tmp_path_factory.mktemp("two-ranks")
    for name, (family, config) in two_ranks["MODELS"].items():
        tiny_model(family, **config).save_pretrained(folder / "models" / name)
    one_head = tiny_model(num_key_value_heads=1)
    one_head.save_pretrained(folder / "models" / two_ranks["UNEVEN_SHARE"])
    with torch.no_grad():
        _save_a_cache(folder / "saved.safetensors")
    return _seen_by_ranks(folder, names)


def _save_a_cache(path):
    model = tiny_model("llama")
    cache = two_ranks["small_policy"]("snapkv").cache(model)
    model(input_ids=two_ranks["tokens"](0), past_key_values=cache)
    cache.save(path)


def _seen_by_ranks(folder, names):
    environment = os.environ | {"LOCAL_RANK": "0", "WORLD_SIZE": "2"}
    started = subprocess.Popen(
        [sys.executable, SCRIPT, folder, *names],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        error = started.communicate(timeout=SECONDS)[1]
    finally:
        with suppress(ProcessLookupError):  # both have ended
            os.killpg(started.pid, signal.SIGKILL)
        started.wait()
    assert started.returncode == 0, error
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(two_ranks["WORLD"])]


def joined(parts):
    """Join the heads of all processes; a head ends where -1 begins."""
    longest = max(part.shape[-1] for part in parts)
    return torch.cat([F.pad(part, (0, longest - part.shape[-1]), value=-1) for part in parts], 1)


def _names():
    """Give all policies; `make test` leaves out every other recipe, and every other padded one."""
    recipes = {part.name for part in kvpolicy.installed("recipe")}
    for place, name in enumerate(two_ranks["policies"]()):
        skipped = place % 2 and name.removesuffix(", padded") in recipes
        yield pytest.param(name, marks=[pytest.mark.deep] if skipped else [])


@pytest.mark.parametrize("name", list(_names()))
def test_two_processes_select_what_one_selects(whole, ranks, name):
    model = two_ranks["policies"]()[name][0]
    logits, positions = whole["conversations"][name]
    of_ranks = [rank["conversations"][name] for rank in ranks]
    for turn, expected in enumerate(positions):
        for layer, of_layer in enumerate(expected):
            parts = [found[1][turn][layer] for found in of_ranks]
            found = parts[0] if model == "phi3" else joined(parts)
            assert torch.equal(found, of_layer), f"turn {turn}, layer {layer}"
        for found in of_ranks:
            torch.testing.assert_close(found[0][turn], logits[turn], rtol=0, atol=LIMIT)
        assert torch.equal(of_ranks[0][0][turn], of_ranks[1][0][turn])


def test_a_cache_in_two_processes_can_be_changed_on_the_way(whole, ranks):
    logits, made, positions = whole["changes"]
    for rank in ranks:
        for found, expected in zip(rank["changes"][0], logits, strict=True):
            torch.testing.assert_close(found, expected, rtol=0, atol=LIMIT)
        assert torch.equal(rank["changes"][1], made)
    for layer, expected in enumerate(positions):
        assert torch.equal(joined([rank["changes"][2][layer] for rank in ranks]), expected)


@pytest.mark.parametrize(
    ("what", "error", "says"),
    [
        ("save", "CacheFileError", "spread over processes"),
        ("load", "CacheFileError", "spread over processes"),
        ("allocator", "InvalidComponentError", "allocator ByNumberOfKeys returned"),
        ("heads", "UnsupportedModelError", "4 query and 1 key/value heads"),
        ("crop", "CacheStateError", "of them are held, depending on head"),
        ("by hand", "UnsupportedModelError", "o_proj.weight of LlamaForCausalLM is spread"),
    ],
)
def test_what_two_processes_cannot_do_both_refuse(ranks, what, error, says):
    for rank in ranks:
        name, message = rank["refusals"][what]
        assert name == error
        assert says in message


def test_other_kinds_of_parallelism_beside_it_are_refused(monkeypatch):
    model = tiny_model()
    mesh = SimpleNamespace(ndim=2, mesh_dim_names=("fsdp", "tp"), size=lambda: 4)
    monkeypatch.setattr(model, "_tp_size", 2, raising=False)
    monkeypatch.setattr(model, "_device_mesh", mesh, raising=False)
    with pytest.raises(UnsupportedModelError, match="mesh of 4 processes, of which 2 share"):
        two_ranks["small_policy"]("snapkv").cache(model)
