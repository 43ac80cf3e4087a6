"""The weight of a quantised output projection is what its package computes with.

`make quantizers` installs the packages; where one is missing, its tests are skipped.
"""

import importlib

import pytest
import torch
from torch import nn

from kvpolicy.exactness.usages import small_policy
from kvpolicy.exactness.usages.inputs import tokens
from kvpolicy.huggingface.model.output_projection import output_weight
from kvpolicy.testing.models import tiny_model

pytestmark = pytest.mark.filterwarnings("ignore")  # The packages warn when they are imported.
LIKE = torch.zeros(1)


def _torchao(config):
    def quantized(projection):
        from torchao import quantization

        quantization.quantize_(projection, getattr(quantization, config)())
        return projection, projection.weight.dequantize()

    return quantized


def _hqq(projection):
    from hqq.core import quantize

    config = quantize.BaseQuantizeConfig(nbits=4, group_size=64)
    made = quantize.HQQLinear(projection, config, compute_dtype=torch.float32, device="cpu")
    return made, made.dequantize()


def _four_bits(kind):
    def quantized(projection):
        import bitsandbytes

        shape = projection.in_features, projection.out_features
        made = bitsandbytes.nn.Linear4bit(
            *shape, bias=False, compute_dtype=torch.float32, quant_type=kind
        )
        made.load_state_dict(projection.state_dict())
        made = made.to("cpu")
        weight = made.weight
        return made, bitsandbytes.functional.dequantize_4bit(weight.data, weight.quant_state)

    return quantized


def _eight_bits(projection):
    import bitsandbytes

    shape = projection.in_features, projection.out_features
    made = bitsandbytes.nn.Linear8bitLt(*shape, bias=False, has_fp16_weights=False)
    made.load_state_dict(projection.state_dict())
    made = made.to("cpu")
    made(torch.zeros(1, shape[0]))  # The first forward moves the weight's codes and scales.
    return made, made.state.CB * made.state.SCB[:, None] / 127


KINDS = {
    "torchao, 8-bit weights": ("torchao", _torchao("Int8WeightOnlyConfig")),
    "torchao, 8-bit inputs": ("torchao", _torchao("Int8DynamicActivationInt8WeightConfig")),
    "hqq, 4 bits": ("hqq", _hqq),
    "bitsandbytes, nf4": ("bitsandbytes", _four_bits("nf4")),
    "bitsandbytes, fp4": ("bitsandbytes", _four_bits("fp4")),
    "bitsandbytes, LLM.int8()": ("bitsandbytes", _eight_bits),
}


@pytest.fixture(params=KINDS)
def kind(request):
    package, quantized = KINDS[request.param]
    try:
        importlib.import_module(package)
    except ImportError:
        # `make quantizers` runs this in an environment of its own: transformers imports hqq
        # wherever it is installed.
        pytest.skip(f"{package} is not installed: `make quantizers` installs it")
    return quantized


def test_the_weight_is_the_one_that_the_package_computes_with(kind):
    # 64 by 64: 4-bit blocks of bitsandbytes have 64 numbers, and torchao leaves small layers alone.
    plain = nn.Linear(64, 64, bias=False)
    attention = nn.Module()
    attention.o_proj, expected = kind(plain)
    found = output_weight(attention, needed=True, like=LIKE)
    # torchao rounds an input of 1 to 127/127.5, so its whole weight is smaller by 0.4 %. LLM.int8()
    # computes in float16, whose last bit is 2**-11 of a number.
    torch.testing.assert_close(found.float(), expected.float(), rtol=4e-3, atol=1e-6)
    assert type(attention.o_proj) is not nn.Linear or type(plain.weight.data) is not torch.Tensor


@pytest.mark.parametrize("recipe", ["restkv", "criticalkv"])
def test_a_model_with_such_projections_is_served(kind, recipe):
    model = tiny_model("llama", hidden_size=64, head_dim=16)
    for module in model.modules():
        if hasattr(module, "o_proj"):
            module.o_proj, _ = kind(module.o_proj)
    policy = small_policy(recipe)
    cache = policy.cache(model)
    model(tokens(0), past_key_values=cache)
    assert cache.report().held == policy.budget
