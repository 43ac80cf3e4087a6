"""Models have the published sizes, and a fixed cache decodes as a growing one."""

import torch
from transformers import AutoModelForCausalLM, DynamicCache

from benchmarks.gpu.caches import fixed_cache, growing_cache
from benchmarks.gpu.models import MODELS, config_of, prompt, random_model
from benchmarks.gpu.scale import REAL, TOY

CPU = torch.device("cpu")


def test_the_models_have_the_published_sizes():
    with torch.device("meta"):
        for name, billions in zip(MODELS, (8.03, 7.25), strict=True):
            model = AutoModelForCausalLM.from_config(config_of(name, REAL, REAL.layers))
            assert round(model.num_parameters() / 1e9, 2) == billions


def test_a_fixed_cache_decodes_as_a_growing_one_and_again_and_again():
    model = random_model(MODELS[0], TOY, TOY.layers, CPU)
    token = prompt(model, 1)
    fixed = fixed_cache(TOY, 20, 1, TOY.layers, CPU)
    growing = growing_cache(fixed, model.config)
    assert isinstance(growing, DynamicCache)

    with torch.no_grad():
        steps = [model(token, past_key_values=fixed).logits for _ in range(2)]
        expected = model(token, past_key_values=growing).logits

    torch.testing.assert_close(steps[0], expected)
    assert torch.equal(steps[0], steps[1])
    assert growing.get_seq_length() == 21
