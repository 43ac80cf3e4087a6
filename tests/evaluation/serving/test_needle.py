import os

import pytest

pytest.importorskip(
    "vllm.v1", reason="vLLM is not installed: `make vllm` installs it in .venv-vllm, and tests it"
)

import kvpolicy
from kvpolicy.evaluation.serving.engine import ENVIRONMENT
from kvpolicy.evaluation.serving.needle import answers

os.environ.update(ENVIRONMENT | {"VLLM_LOGGING_LEVEL": "WARNING"})


@pytest.mark.parametrize("recipe", ["snapkv", "restkv"])
def test_vllm_answers_the_questions_that_a_policy_cache_answers(recipe):
    found = answers(kvpolicy.recipe(recipe, budget=64), prompts=20)
    assert found.same == found.asked == 20
    assert found.vllm == found.transformers
    assert found.vllm > 0
