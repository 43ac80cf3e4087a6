"""A decoded token's logits come for all heads at once where that is small."""

import pytest
import torch

from kvpolicy_kernels.common.pytorch import logits as room
from kvpolicy_kernels.common.pytorch.logits import query_blocks


def blocks_of(queries, keys, **options):
    """Every block with its own copy of the logits."""
    return [
        block._replace(logits=block.logits.clone())
        for block in query_blocks(queries, keys, **options)
    ]


def tensors(window, dtype=torch.float32):
    draw = torch.Generator().manual_seed(0)
    queries = torch.randn(2, 6, window, 8, generator=draw).to(dtype)
    return queries, torch.randn(2, 3, 21, 8, generator=draw).to(dtype)[:, :, 1:]


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_query_together_has_the_logits_that_its_heads_have_alone(dtype, softcap):
    queries, keys = tensors(1, dtype)
    options = {"scaling": 0.5, "softcap": softcap}
    together = blocks_of(queries, keys, together=True, **options)
    alone = blocks_of(queries, keys, **options)
    assert [(block.batch, block.heads) for block in together] == [
        (0, slice(0, 6)),
        (1, slice(0, 6)),
    ]
    for whole in together:
        parts = [block.logits for block in alone if block.batch == whole.batch]
        torch.testing.assert_close(whole.logits, torch.cat(parts))


def test_a_window_of_several_queries_is_walked_head_by_head():
    queries, keys = tensors(2)
    found = blocks_of(queries, keys, scaling=1.0, softcap=None, together=True)
    assert [(block.batch, block.kv_head) for block in found] == [
        (row, head) for row in range(2) for head in range(3)
    ]


@pytest.mark.parametrize(
    ("dtype", "limit"), [(torch.float32, 4 * 20 * 6 - 1), (torch.bfloat16, 4 * 20 * 3 * 8 - 1)]
)
def test_what_is_not_small_is_walked_head_by_head(dtype, limit, monkeypatch):
    queries, keys = tensors(1, dtype)
    options = {"scaling": 1.0, "softcap": None, "together": True}
    monkeypatch.setattr(room, "LOGITS_BYTES", limit + 1)
    assert all(block.kv_head is None for block in blocks_of(queries, keys, **options))
    monkeypatch.setattr(room, "LOGITS_BYTES", limit)
    assert all(block.kv_head is not None for block in blocks_of(queries, keys, **options))
