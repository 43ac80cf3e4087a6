import os

import pytest

pytest.importorskip(
    "vllm.v1", reason="vLLM is not installed: `make vllm` installs it in .venv-vllm, and tests it"
)

from kvpolicy.evaluation.serving.engine import ENVIRONMENT
from kvpolicy.evaluation.serving.exactness import LIMIT, RECIPES, measured
from kvpolicy.evaluation.serving.models import MODELS
from kvpolicy.evaluation.serving.situations import SITUATIONS

os.environ.update(ENVIRONMENT | {"VLLM_LOGGING_LEVEL": "WARNING"})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


def _check(cell):
    assert all(each.same_positions for each in cell.requests)
    assert all(each.same_tokens for each in cell.requests)
    assert cell.difference < LIMIT
    assert cell.left == 0
    # The policy matters: with a full cache the answers would be far away.
    assert max(each.moved for each in cell.requests) > 1000 * LIMIT


@pytest.mark.parametrize("situation", SITUATIONS)
def test_vllm_answers_like_a_policy_cache_in_every_situation(situation, folder):
    cell = measured("llama", "restkv", situation, folder)
    _check(cell)
    assert bool(cell.preemptions) == SITUATIONS[situation].preempts


@pytest.mark.sampled(4, "model", "recipe")
@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("model", MODELS)
def test_vllm_answers_like_a_policy_cache_with_every_recipe(model, recipe, folder):
    cell = measured(model, recipe, "all together", folder)
    _check(cell)
