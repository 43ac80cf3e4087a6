import pickle

import pytest
import torch

pytest.importorskip(
    "vllm.v1", reason="vLLM is not installed: `make vllm` installs it in .venv-vllm, and tests it"
)

from vllm.v1.core.block_pool import BlockPool
from vllm.v1.core.single_type_kv_cache_manager import FullAttentionManager
from vllm.v1.kv_cache_interface import FullAttentionSpec
from vllm.v1.kv_cache_spec_registry import KVCacheSpecRegistry

from kvpolicy.errors import UnsupportedModelError
from kvpolicy.vllm.rounding import Rounding
from kvpolicy.vllm.spec import EvictedManager, EvictedSpec

FULL = FullAttentionSpec(block_size=32, num_kv_heads=2, head_size=64, dtype=torch.float32)
SPEC = EvictedSpec.of(FULL, Rounding(budget=64, protected=0, window=8))


@pytest.fixture
def manager():
    pool = BlockPool(num_gpu_blocks=40, enable_caching=False, hash_block_size=32)
    made = EvictedManager(
        SPEC, block_pool=pool, enable_caching=False, kv_cache_group_id=0, scheduler_block_size=32
    )
    made.allocate_new_blocks("a", 201, 201)
    return made


def test_vllm_finds_the_manager_of_the_spec_and_keeps_its_own():
    assert KVCacheSpecRegistry.get_manager_class(SPEC) is EvictedManager
    assert KVCacheSpecRegistry.get_manager_class(FULL) is FullAttentionManager


def test_a_spec_travels_between_processes():
    assert pickle.loads(pickle.dumps(SPEC)) == SPEC


def test_layers_that_evict_differently_are_not_one_group():
    other = EvictedSpec.of(FULL, Rounding(budget=96, protected=0, window=8))
    with pytest.raises(UnsupportedModelError, match="evict differently"):
        EvictedSpec.merge([SPEC, other])


@pytest.mark.parametrize("processed", [0, 100, 199])
def test_no_block_goes_before_the_prompt_was_processed(manager, processed):
    free = manager.block_pool.get_num_free_blocks()
    manager.remove_skipped_blocks("a", processed, 200)
    assert manager.block_pool.get_num_free_blocks() == free


def test_the_blocks_in_the_middle_go_once(manager):
    free, before = manager.block_pool.get_num_free_blocks(), list(manager.req_to_blocks["a"])
    for processed in (200, 201, 230):
        manager.remove_skipped_blocks("a", processed, 200)
        assert manager.block_pool.get_num_free_blocks() == free + 4
    held = manager.req_to_blocks["a"]
    assert held[:2] == before[:2]
    assert held[6:] == before[6:]
    assert all(each.is_null for each in held[2:6])
    manager.free("a")
    assert manager.block_pool.get_num_free_blocks() == 39


def test_a_prompt_within_the_budget_keeps_its_blocks(manager):
    manager.allocate_new_blocks("b", 90, 90)
    free = manager.block_pool.get_num_free_blocks()
    manager.remove_skipped_blocks("b", 90, 80)
    assert manager.block_pool.get_num_free_blocks() == free
