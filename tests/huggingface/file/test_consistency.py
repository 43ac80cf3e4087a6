"""A file whose parts contradict one another is refused, and the model stays as it was found."""

import copy
import gc
import inspect
import sys
from pathlib import Path

import pytest
import torch
from transformers.cache_utils import LinearAttentionLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import kvpolicy
from kvpolicy.errors import CacheFileError
from kvpolicy.exactness.architectures import tiny_architecture
from kvpolicy.exactness.usages import small_policy
from kvpolicy.exactness.usages.inputs import padded, read
from kvpolicy.huggingface.attention import attach
from kvpolicy.huggingface.file import container, loading
from kvpolicy.testing.models import FAMILIES, tiny_model

sys.path.insert(0, str(Path(__file__).parent))
from contradictions import ATTACKS, number

_STATES_ARE_COUNTED = (
    "number_of_states" in inspect.signature(LinearAttentionLayer.__init__).parameters
)
"""Models with attention and a linear state in one layer are refused in older transformers."""
CACHES = {
    "dense": ("h2o", "llama", None),
    "uneven": ("adakv", "llama", None),
    "quantized": ("snapkv", "llama", {"name": "quantized", "residual": 9}),
    "offloaded": ("h2o", "llama", "offloaded"),
    "sliding": ("snapkv", "gemma3_text", None),
    "linear": ("snapkv", "falcon_h1", None),
}


@pytest.fixture(scope="module")
@torch.no_grad()
def wholes(tmp_path_factory):
    """Of each kind of cache: a model, and what is in a file of it."""
    gc.collect()  # open caches of other tests would be closed later
    found = {}
    for name, (recipe, family, storage) in CACHES.items():
        if family not in FAMILIES and not _STATES_ARE_COUNTED:
            continue
        model = tiny_model(family) if family in FAMILIES else tiny_architecture(family)
        cache = small_policy(recipe, every=4).cache(model, storage=storage)
        ids, mask = padded([60, 30])
        model(input_ids=ids, attention_mask=mask, past_key_values=cache)
        mask = torch.cat([mask, torch.ones(2, 1).long()], 1)
        model(input_ids=ids[:, :1] + 1, attention_mask=mask, past_key_values=cache)
        path = tmp_path_factory.mktemp(name) / "cache"
        cache.save(path)
        cache.close()
        found[name] = (model, *container.read(path))
    return found


@pytest.fixture
def load(wholes, monkeypatch):
    """Give a function that loads a changed file of a kind of cache."""

    def loaded(kind, change):
        if kind not in wholes:
            # The oldest that is allowed does not, and saves no such cache. `make oldest` runs this.
            pytest.skip("this transformers does not say how many states a layer has")
        model, text, tensors = wholes[kind]
        text, tensors = copy.deepcopy(text), {name: each.clone() for name, each in tensors.items()}
        change(text, tensors)
        monkeypatch.setattr(loading, "source", lambda path: path)
        monkeypatch.setattr(loading, "read", lambda path: (text, tensors))
        return kvpolicy.load("changed", model)

    return loaded


@pytest.mark.parametrize("kind", CACHES)
def test_an_unchanged_file_is_loaded(kind, load):
    cache = load(kind, lambda text, tensors: None)
    assert cache.get_seq_length() == 61
    cache.close()


@pytest.mark.parametrize(
    ("kind", "change"),
    [pytest.param(kind, change, id=f"{kind}-{name}") for kind, name, change in ATTACKS],
)
def test_a_contradiction_is_refused_in_one_sentence(kind, change, load, wholes):
    if kind not in wholes:
        # As in `load`: there is no such file to change.
        pytest.skip("this transformers does not say how many states a layer has")
    model = wholes[kind][0]
    found, attributes = dict(ALL_ATTENTION_FUNCTIONS), _attributes(model)
    is_open = len(attach._open)
    with pytest.raises(CacheFileError) as raised:
        load(kind, change)
    message = str(raised.value)
    assert message.endswith(".")
    assert "\n" not in message
    assert len(message) < 900
    # The error, and with it the frames of the cache that was not to be, is still alive.
    assert len(attach._open) == is_open
    assert dict(ALL_ATTENTION_FUNCTIONS) == found
    assert _attributes(model) == attributes


def _attributes(model):
    """Every attribute and hook of every module, as it is."""
    return {
        (name, key): (list(value) if isinstance(value, dict) else id(value))
        for name, module in model.named_modules()
        for key, value in vars(module).items()
    }


def test_a_cache_that_is_open_stays_open_when_a_file_is_refused(load, wholes):
    model = wholes["dense"][0]
    cache = small_policy("h2o").cache(model)
    read(model, cache, (60,))
    with pytest.raises(CacheFileError):
        load("dense", number("held", 3))
    read(model, cache, (1,))
    cache.close()
