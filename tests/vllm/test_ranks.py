import pytest

pytest.importorskip(
    "vllm.v1", reason="vLLM is not installed: `make vllm` installs it in .venv-vllm, and tests it"
)

from transformers import AutoModelForCausalLM
from vllm import LLM, SamplingParams

import kvpolicy
from kvpolicy.evaluation.serving.engine import OPTIONS, Served
from kvpolicy.evaluation.serving.models import saved
from kvpolicy.evaluation.serving.situations import prompts
from kvpolicy.evaluation.serving.yardstick import compared


@pytest.mark.parametrize("recipe", ["restkv", "tova"])
def test_two_processes_that_share_a_model_answer_like_one(recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    folder, policy = saved("llama", tmp_path), kvpolicy.recipe(recipe, budget=64, every=None)
    own = {
        "tensor_parallel_size": 2,
        "distributed_executor_backend": "mp",
        "max_num_batched_tokens": 96,
        "additional_config": {"kvpolicy": policy.to_dict()},
    }
    llm = LLM(str(folder), **OPTIONS | own)
    params = SamplingParams(
        max_tokens=12, temperature=0, detokenize=False, ignore_eos=True, logprobs=0
    )
    asked = prompts(256)
    found = llm.generate([{"prompt_token_ids": each} for each in asked], params)
    llm.llm_engine.engine_core.shutdown()
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    for prompt, output in zip(asked, found, strict=True):
        [answer] = output.outputs
        logprobs = [next(iter(each.values())).logprob for each in answer.logprobs]
        served = Served(prompt, tokens=list(answer.token_ids), logprobs=logprobs)
        comparison = compared(model, policy, served)
        assert comparison.same_tokens
        assert comparison.difference < 1e-4
