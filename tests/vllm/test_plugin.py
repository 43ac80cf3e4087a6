from importlib.metadata import entry_points

import pytest

pytest.importorskip(
    "vllm.v1", reason="vLLM is not installed: `make vllm` installs it in .venv-vllm, and tests it"
)

from vllm.engine.arg_utils import EngineArgs

from kvpolicy.evaluation.serving.engine import core_of, engine, serve, worker_of
from kvpolicy.evaluation.serving.models import saved
from kvpolicy.evaluation.serving.situations import SITUATIONS
from kvpolicy.vllm import plugin


def test_vllm_finds_the_plugin():
    [found] = entry_points(group="vllm.general_plugins", name="kvpolicy")
    assert found.load() is plugin.register


def test_registering_again_wraps_nothing_again():
    plugin.register()
    once = EngineArgs.create_engine_config
    plugin.register()
    assert EngineArgs.create_engine_config is once


def test_a_vllm_without_the_seam_goes_on(monkeypatch, caplog):
    monkeypatch.delattr(EngineArgs, "create_engine_config")
    plugin.register()
    assert "kvpolicy cannot evict in this vLLM" in caplog.text


def _answers(folder):
    arrivals = SITUATIONS["mixed arrivals"].arrivals(256)
    with engine(folder, None, max_num_batched_tokens=48) as llm:
        worker = worker_of(llm)
        layers = worker.vllm_config.compilation_config.static_forward_context.values()
        kinds = {type(worker), *(type(layer.impl) for layer in layers)}
        caching = core_of(llm).vllm_config.cache_config.enable_prefix_caching
        served = serve(llm, arrivals)
    return kinds, caching, [(each.tokens, each.logprobs) for each in served]


def test_without_a_policy_vllm_is_what_it_was_bit_for_bit(tmp_path, monkeypatch):
    folder = saved("llama", tmp_path)
    plugin.register()
    found = _answers(folder)
    own = EngineArgs.create_engine_config.kvpolicy_wraps
    monkeypatch.setattr(EngineArgs, "create_engine_config", own)
    assert found == _answers(folder)
    kinds, caching, _ = found
    assert all(kind.__module__.startswith("vllm.") for kind in kinds)
    assert caching


def test_prompts_within_the_budget_are_answered_bit_for_bit_as_without_a_policy(tmp_path):
    folder = saved("llama", tmp_path)
    arrivals = [each for each in SITUATIONS["one batch"].arrivals(256) if len(each.prompt) <= 64]
    answers = []
    for policy in ({"recipe": "restkv", "budget": 64}, None):
        with engine(folder, policy, enable_prefix_caching=False) as made:
            answers.append([(each.tokens, each.logprobs) for each in serve(made, arrivals)])
    assert len(answers[0]) == 3
    assert answers[0] == answers[1]
