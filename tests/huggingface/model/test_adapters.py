"""A PEFT model is served with its active adapters, or refused by name."""

import peft
import pytest
import torch

import kvpolicy
from kvpolicy.errors import CacheFileError, UnsupportedModelError
from kvpolicy.exactness.forwards import recorded
from kvpolicy.exactness.limits import LIMIT
from kvpolicy.exactness.replay import max_logit_difference
from kvpolicy.exactness.usages import small_policy
from kvpolicy.exactness.usages.inputs import generate, replayed, tokens
from kvpolicy.huggingface.model.adapters import plain_model
from kvpolicy.testing.models import tiny_model

# peft asks an older name of this flag.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
TARGETS = {"target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "down_proj"]}
RECIPES = pytest.mark.parametrize("recipe", ["snapkv", "restkv", "adakv", "h2o"])


def lora(*names, **options):
    """Return a tiny model with adapters of random numbers; the first is active."""
    config = peft.LoraConfig(r=4, **TARGETS | options)
    model = peft.get_peft_model(tiny_model("llama"), config, adapter_name=names[0])
    for name in names[1:]:
        model.add_adapter(name, config)
    randomise(model)
    return model.eval()


def randomise(model):
    torch.manual_seed(0)
    for name, weight in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, std=0.3)


def virtual_tokens(config, **options):
    """Return a tiny model with prompt learning."""
    return peft.get_peft_model(
        tiny_model("llama"), config(task_type="CAUSAL_LM", num_virtual_tokens=4, **options)
    ).eval()


def difference(model, recipe="restkv", use=None):
    """Return how far what `model` generates with a cache is from the masked full cache."""
    return replayed(
        plain_model(model),
        small_policy(recipe),
        use or (lambda cache: generate(model, cache, tokens(1))),
    )


def kept(model, recipe="restkv", ids=None):
    cache = small_policy(recipe).cache(model)
    model(input_ids=tokens(0) if ids is None else ids, past_key_values=cache)
    return cache.positions


def same(found, expected):
    return all(torch.equal(*each) for each in zip(found, expected, strict=True))


@RECIPES
def test_generate_of_the_peft_model_is_exact(recipe):
    model = lora("one")
    cache = small_policy(recipe).cache(model)
    generate(model, cache, tokens(1))
    assert cache.get_seq_length() == 67
    assert difference(model, recipe) <= LIMIT


def test_a_mixed_peft_model_is_served():
    config = peft.LoraConfig(r=4, **TARGETS)
    model = peft.get_peft_model(tiny_model("llama"), config, mixed=True)
    model.add_adapter("two", peft.LoHaConfig(r=4, target_modules=["o_proj"]))
    model.set_adapter(["default", "two"])
    randomise(model)
    assert difference(model.eval()) <= LIMIT


def test_adapters_are_switched_between_two_prompts_of_one_cache():
    model = lora("one", "two")
    cache = small_policy("restkv").cache(model)
    with recorded(plain_model(model), cache) as forwards:
        answered = generate(model, cache, tokens(1))
        first_of_two = len(forwards)
        model.set_adapter("two")
        generate(model, cache, torch.cat([answered, tokens(2, 40)], 1))
    forwards[0].changes.append(lambda full: model.set_adapter("one"))
    forwards[first_of_two].changes.append(lambda full: model.set_adapter("two"))
    assert max_logit_difference(plain_model(model), forwards, cache) <= LIMIT


def test_each_adapter_keeps_what_the_model_keeps_into_which_it_is_merged():
    for name in ("one", "two"):
        model = lora("one", "two")
        model.set_adapter(name)
        found = kept(model)
        model.merge_adapter()
        merged = kept(model)
        model.unmerge_adapter()
        expected = kept(model.merge_and_unload(adapter_names=[name]))
        assert same(found, expected)
        assert same(merged, expected)


def test_a_cache_goes_on_while_adapters_are_merged_and_unmerged():
    model = lora("one")
    steps = (lambda: None, model.merge_adapter, model.unmerge_adapter)

    def read(change):
        cache = small_policy("restkv").cache(model)
        logits = []
        for turn, step in enumerate(steps):
            change(step)
            logits.append(model(input_ids=tokens(turn, 40), past_key_values=cache).logits)
        return torch.cat(logits, 1)

    torch.testing.assert_close(
        read(lambda step: step()), read(lambda step: None), atol=1e-4, rtol=0
    )


@torch.enable_grad()
def test_an_adapter_that_is_being_trained_is_served_with_gradients():
    model = lora("one", lora_dropout=0.5).train()
    cache = small_policy("restkv").cache(model)
    model(input_ids=tokens(0), past_key_values=cache)
    model(input_ids=tokens(1, 5), past_key_values=cache).logits.sum().backward()
    trained = [weight for name, weight in model.named_parameters() if weight.requires_grad]
    assert trained
    assert all(weight.grad is not None and bool(weight.grad.any()) for weight in trained)


@pytest.mark.parametrize(
    ("config", "options", "name"),
    [
        (peft.PromptTuningConfig, {}, "PROMPT_TUNING"),
        (peft.PrefixTuningConfig, {}, "PREFIX_TUNING"),
        (peft.PromptEncoderConfig, {"encoder_hidden_size": 8}, "P_TUNING"),
    ],
)
def test_prompt_learning_is_refused_by_name(config, options, name):
    model = virtual_tokens(config, **options)
    with pytest.raises(UnsupportedModelError, match=rf"prompt learning \({name}\)"):
        small_policy("snapkv").cache(model)
    cache = small_policy("snapkv").cache(model.base_model)
    with pytest.raises(UnsupportedModelError, match=rf"prompt learning \({name}\)"):
        generate(model, cache, tokens(0))
    assert cache.get_seq_length() == 0
    assert kvpolicy.restore(model) is None


def test_adapters_that_read_each_token_twice_are_refused_by_name():
    model = lora("one")
    model.peft_config["one"].peft_type = "XLORA"
    with pytest.raises(UnsupportedModelError, match="XLORA, which runs the model before each"):
        small_policy("snapkv").cache(model)


def test_rows_of_different_adapters_are_served_unless_the_output_projection_is_needed():
    model, ids = lora("one", "two"), tokens(0, batch=2)
    cache = small_policy("snapkv").cache(model)
    generate(model, cache, ids, adapter_names=["one", "two"])
    for row, name in enumerate(("one", "two")):
        model.set_adapter(name)
        alone = kept(model, "snapkv", ids[row : row + 1])
        assert all(
            torch.equal(a[row, :, :24], b[0]) for a, b in zip(cache.positions, alone, strict=True)
        )
    with pytest.raises(
        UnsupportedModelError, match=r"different adapters in one batch \(adapter_names"
    ):
        generate(model, small_policy("restkv").cache(model), ids, adapter_names=["one", "two"])


def test_a_file_goes_on_with_the_same_adapter_only(tmp_path):
    model, path = lora("one", "two"), tmp_path / "cache.safetensors"
    cache = small_policy("restkv").cache(model)
    answered = generate(model, cache, tokens(1))
    kvpolicy.save(cache, path)
    more = torch.cat([answered, tokens(2, 9)], 1)
    assert torch.equal(
        generate(model, kvpolicy.load(path, model), more), generate(model, cache, more)
    )
    model.set_adapter("two")
    with pytest.raises(CacheFileError, match="the same active adapters"):
        kvpolicy.load(path, model)


def test_chunked_mlps_and_restore_take_a_peft_model():
    model, cache = lora("one"), None
    expected = model(input_ids=tokens(0)).logits
    with kvpolicy.chunked_mlp(model, tokens=16):
        torch.testing.assert_close(
            model(input_ids=tokens(0)).logits, expected, rtol=1e-4, atol=1e-4
        )
    cache = small_policy("snapkv").cache(model)
    kvpolicy.restore(model)
    with pytest.raises(kvpolicy.errors.CacheStateError, match="closed"):
        model(input_ids=tokens(0), past_key_values=cache)
