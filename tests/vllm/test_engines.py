import pytest

pytest.importorskip(
    "vllm.v1", reason="vLLM is not installed: `make vllm` installs it in .venv-vllm, and tests it"
)

from vllm.engine.arg_utils import EngineArgs

from kvpolicy.errors import InvalidValueError, KvpolicyError, UnsupportedModelError
from kvpolicy.evaluation.serving.engine import OPTIONS
from kvpolicy.evaluation.serving.models import saved
from kvpolicy.testing.models import tiny_model
from kvpolicy.vllm.engines import check_version
from kvpolicy.vllm.plugin import register


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


def _configured(model, policy=None, **options):
    register()
    policy = {"recipe": "snapkv", "budget": 64} if policy is None else policy
    options = {**OPTIONS, **options, "additional_config": {"kvpolicy": policy}}
    return EngineArgs(model=str(model), **options).create_engine_config()


def test_an_engine_that_is_served_gets_a_worker_that_evicts_and_no_prefix_caching(folder):
    config = _configured(saved("llama", folder))
    assert config.parallel_config.worker_cls == "kvpolicy.vllm.workers.cpu.EvictingWorker"
    assert config.cache_config.enable_prefix_caching is False


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"enable_prefix_caching": True}, "prefix caching.*Leave out --enable-prefix-caching"),
        (
            {"speculative_config": {"method": "ngram", "num_speculative_tokens": 2}},
            "speculative decoding.*Leave out --speculative-config",
        ),
        ({"block_size": 128}, "budget 64 is smaller than a block of 128 tokens"),
        ({"pipeline_parallel_size": 2}, "--pipeline-parallel-size 2"),
        ({"worker_cls": "vllm.v1.worker.xpu_worker.XPUWorker"}, "worker vllm.v1.worker.xpu"),
    ],
)
def test_an_engine_in_which_eviction_is_not_exact_is_refused(options, message, folder):
    with pytest.raises(UnsupportedModelError, match=message):
        _configured(saved("llama", folder), **options)


@pytest.mark.parametrize(
    ("policy", "error"),
    [
        ({"recipe": "adakv", "budget": 64}, InvalidValueError),
        ({"recipe": "tova", "budget": 64}, InvalidValueError),
        ({"recipe": "nothing", "budget": 64}, KvpolicyError),
        ({"recipe": "snapkv", "budget": 64, "width": 3}, KvpolicyError),
    ],
)
def test_a_policy_that_is_refused_starts_no_engine(policy, error, folder):
    with pytest.raises(error):
        _configured(saved("llama", folder), policy)


@pytest.mark.parametrize("family", ["gemma2", "gemma3_text"])
def test_a_model_with_sliding_layers_is_refused(family, tmp_path):
    tiny_model(family, head_dim=32, hidden_size=128).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModelError, match="layers without full attention"):
        _configured(tmp_path, max_model_len=256)


def test_another_version_of_vllm_is_refused_unless_it_is_asked_for():
    with pytest.raises(UnsupportedModelError, match=r"tested with vLLM 0\.32, but vLLM 0\.33\.1"):
        check_version(untested=False, version="0.33.1")
    check_version(untested=True, version="0.33.1")
    check_version(untested=False, version="0.32.5")
    check_version(untested=False)
