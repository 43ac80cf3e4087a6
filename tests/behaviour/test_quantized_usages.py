"""A quantized cache is right in every usage: as itself used otherwise, and with rows in place."""

import pytest
import torch

from kvpolicy.exactness.usages import AGAINST_ITSELF, BITWISE, PROMPT, USAGES, small_policy
from kvpolicy.policy import Policy
from kvpolicy.quantization import RowFormat
from kvpolicy.testing.models import tiny_model

RECIPES = ["restkv", "adakv", "h2o", "streamingllm"]
RESIDUAL = 4
BITS = [8, 4]


def quantized(bits=8, residual=RESIDUAL):
    return {"name": "quantized", "bits": bits, "residual": residual}


@pytest.fixture
def always(monkeypatch):
    """Let `policy.cache(model)` use a storage, as the usages call it."""
    plain = Policy.cache

    def use(storage):
        monkeypatch.setattr(
            Policy,
            "cache",
            lambda self, model, **options: plain(self, model, **{"storage": storage} | options),
        )

    return use


@pytest.fixture
def lossless(monkeypatch):
    """Let bytes be the rows' own: what is left is where they go."""

    def decoded(form, code, dim, dtype):
        rows = code.reshape(-1, code.shape[-1]).clone().view(dtype)
        return rows.view(*code.shape[:-1], dim)

    def encoded(form, rows):
        flat = rows.reshape(-1, rows.shape[-1]).contiguous().view(torch.uint8)
        return flat.view(*rows.shape[:-1], flat.shape[-1])

    monkeypatch.setattr(RowFormat, "encoded", encoded)
    monkeypatch.setattr(RowFormat, "decoded", decoded)


@pytest.mark.sampled(8, "recipe", "bits", "usage")
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("usage", sorted(AGAINST_ITSELF & set(USAGES)))
def test_a_cache_that_is_used_otherwise_gives_the_same(usage, recipe, bits, always):
    # What has nothing evicted is compared with a full cache: all of it must be recent.
    always(quantized(bits, PROMPT if usage == "nothing to evict" else RESIDUAL))
    difference = USAGES[usage](tiny_model(), small_policy(recipe))
    assert difference <= (0 if usage in BITWISE else 1e-4)


@pytest.mark.sampled(8, "recipe", "usage")
@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("usage", sorted(USAGES))
def test_rows_stay_with_their_positions_in_every_usage(usage, recipe, always, lossless):
    always(quantized())
    assert USAGES[usage](tiny_model(), small_policy(recipe)) <= 1e-4


@pytest.mark.parametrize("usage", ["five turns", "second turn of a padded batch", "beam search"])
def test_rows_stay_with_their_positions_beside_sliding_windows(usage, always, lossless):
    always(quantized())
    assert USAGES[usage](tiny_model("gemma3_text"), small_policy("restkv")) <= 1e-4
