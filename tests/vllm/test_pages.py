from types import SimpleNamespace

import pytest
import torch

from kvpolicy.errors import UnsupportedModelError
from kvpolicy.vllm.pages import Pages

HEADS, BLOCK, DIM = 2, 4, 8
LAYER = SimpleNamespace(attn_backend=SimpleNamespace(get_name=lambda: "ODD"))


class Shuffled:
    """Writes each number of a block somewhere else, keys and values mixed."""

    def __init__(self, seed=0):
        count = HEADS * BLOCK * 2 * DIM
        self.order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))

    def do_kv_cache_update(self, layer, keys, values, cache, slots):
        for row, slot in enumerate(slots.tolist()):
            both = torch.stack([keys[row], values[row]]).flatten()
            places = self.order.view(BLOCK, -1)[slot % BLOCK]
            cache[slot // BLOCK].view(-1)[places] = both


class Rounding(Shuffled):
    """Stores less than it is given."""

    def do_kv_cache_update(self, layer, keys, values, cache, slots):
        super().do_kv_cache_update(layer, (keys / 4).floor(), values, cache, slots)


def _cache(dtype):
    return torch.zeros(6, HEADS, BLOCK, 2 * DIM, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tokens", [1, 4, 7, 12])
def test_rows_are_read_back_whatever_the_layout(dtype, tokens):
    impl, cache = Shuffled(), _cache(dtype)
    keys, values = (torch.randn(tokens, HEADS, DIM).to(dtype) for _ in range(2))
    blocks = torch.tensor([4, 1, 3])
    places = torch.arange(tokens)
    slots = blocks[places // BLOCK] * BLOCK + places % BLOCK
    impl.do_kv_cache_update(LAYER, keys, values, cache, slots)
    pages = Pages.of(impl, LAYER, cache, HEADS, (DIM, DIM))
    read = pages.read(cache, blocks[: -(-tokens // BLOCK)], tokens)
    assert torch.equal(read[0], keys)
    assert torch.equal(read[1], values)


def test_finding_the_layout_writes_nothing_into_the_cache():
    cache = _cache(torch.float32)
    Pages.of(Shuffled(), LAYER, cache, HEADS, (DIM, DIM))
    assert not cache.any()


def test_a_backend_that_rounds_is_refused():
    with pytest.raises(UnsupportedModelError, match="ODD does not keep keys and values as they"):
        Pages.of(Rounding(), LAYER, _cache(torch.float32), HEADS, (DIM, DIM))
