"""Every decoder of the installed transformers is served exactly, or refused at once."""

import pytest
import torch

from kvpolicy.errors import UnsupportedModelError
from kvpolicy.exactness.architectures import model_types, tiny_architecture
from kvpolicy.exactness.limits import LIMIT
from kvpolicy.exactness.usages import small_policy
from kvpolicy.exactness.usages.turns import second_turn_by_forward

SERVED = """
    cohere cohere2 deepseek_v3 exaone4 gemma gemma2 gemma3_text glm4 gpt2 gpt_neox gpt_oss
    granite jamba llama llama4_text ministral mistral mixtral olmo olmo2 phi phi3 qwen2
    qwen2_moe qwen3 qwen3_moe qwen3_next smollm3 stablelm starcoder2
""".split()
REFUSED = {
    "bloom": "does not call its attention",
    "deepseek_v32": "an indexer",
    "diffllama": "attends twice",
    "falcon": "does not call its attention",
    "deepseek_v4": "DeepseekV4HCACache",
    "mamba": "takes no cache|has full attention",
}


@pytest.fixture(autouse=True)
def _quiet():
    with torch.no_grad():
        yield


def _types():
    """Give all types; `make test` runs those in common use, and one of twelve others."""
    others = 0
    for model_type in model_types():
        others += model_type not in SERVED
        skipped = model_type not in SERVED and others % 12
        yield pytest.param(model_type, marks=[pytest.mark.deep] if skipped else [])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("model_type", list(_types()))
def test_a_model_is_served_exactly_or_refused_at_once(model_type):
    try:
        model = tiny_architecture(model_type, attn_implementation="eager")
    except Exception:  # noqa: BLE001 - transformers cannot make it small
        assert model_type not in SERVED
        return
    policy = small_policy("snapkv")
    try:
        policy.cache(model)
    except UnsupportedModelError:
        assert model_type not in SERVED
    else:
        assert second_turn_by_forward(model, policy) <= LIMIT


@pytest.mark.parametrize("model_type", SERVED)
def test_models_in_common_use_are_known(model_type):
    assert model_type in model_types()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("model_type", REFUSED)
def test_a_refusal_says_the_reason(model_type):
    model = tiny_architecture(model_type, attn_implementation="eager")
    with pytest.raises(UnsupportedModelError, match=REFUSED[model_type]):
        small_policy("snapkv").cache(model)
