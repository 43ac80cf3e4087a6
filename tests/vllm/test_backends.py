from importlib import import_module
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip(
    "vllm.v1", reason="vLLM is not installed: `make vllm` installs it in .venv-vllm, and tests it"
)

from vllm.v1.attention.backend import AttentionCGSupport
from vllm.v1.kv_cache_interface import FullAttentionSpec

from kvpolicy.errors import UnsupportedModelError
from kvpolicy.vllm.backends import SERVED, evicting
from kvpolicy.vllm.rounding import Rounding
from kvpolicy.vllm.spec import EvictedSpec

MODULES = {
    "CPU_ATTN": ("cpu_attn", "CPUAttentionBackend"),
    "FLASH_ATTN": ("flash_attn", "FlashAttentionBackend"),
    "FLASHINFER": ("flashinfer", "FlashInferBackend"),
    "TRITON_ATTN": ("triton_attn", "TritonAttentionBackend"),
}
HOST = SimpleNamespace(rounding=Rounding(budget=64, protected=0, window=8))


def _backend(name):
    module, kind = MODULES[name]
    try:
        return getattr(import_module(f"vllm.v1.attention.backends.{module}"), kind)
    except ImportError as error:
        # Some of vLLM's backends load CUDA libraries when they are imported.
        pytest.skip(f"{name} does not import without a GPU: {error}")


def test_every_backend_that_is_served_is_tried():
    assert set(MODULES) == set(SERVED)


@pytest.mark.parametrize("name", SERVED)
def test_a_backend_keeps_what_it_is_and_evicts(name):
    backend = _backend(name)
    kind = evicting(backend, HOST)
    assert issubclass(kind, backend)
    assert kind.get_name() == name
    assert issubclass(kind.get_impl_cls(), backend.get_impl_cls())
    assert issubclass(kind.get_builder_cls(), backend.get_builder_cls())
    # What the parent computes and writes is the parent's.
    for own in ("do_kv_cache_update", "__init__"):
        assert getattr(kind.get_impl_cls(), own) is getattr(backend.get_impl_cls(), own)
    assert kind.get_builder_cls().get_cudagraph_support(None, None) is AttentionCGSupport.NEVER


@pytest.mark.parametrize("name", SERVED)
def test_layers_get_a_cache_that_evicts_and_is_otherwise_the_same(name):
    spec = FullAttentionSpec(block_size=32, num_kv_heads=2, head_size=64, dtype=torch.float32)
    evicted = evicting(_backend(name), HOST).customize_spec(spec)
    assert type(evicted) is EvictedSpec
    assert evicted.rounding == HOST.rounding
    assert evicted.page_size_bytes == spec.page_size_bytes
    assert EvictedSpec.merge([evicted, evicted]).rounding == HOST.rounding


def test_another_backend_is_refused_by_name():
    other = type("Other", (_backend("CPU_ATTN"),), {"get_name": staticmethod(lambda: "OTHER")})
    with pytest.raises(UnsupportedModelError, match="backend OTHER"):
        evicting(other, HOST)


def test_a_backend_that_writes_the_cache_by_itself_is_refused():
    other = type("Own", (_backend("CPU_ATTN"),), {"forward_includes_kv_cache_update": True})
    with pytest.raises(UnsupportedModelError, match="CPU_ATTN"):
        evicting(other, HOST)
