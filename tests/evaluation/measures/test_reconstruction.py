"""The reconstruction error is what eviction changes in each attention block's output."""

import subprocess
import sys

import pytest
import torch
from jaxtyping import TypeCheckError
from transformers import DynamicCache

import kvpolicy
from kvpolicy.errors import InvalidValueError, UnsupportedModelError
from kvpolicy.evaluation.measures.reconstruction import (
    reconstruction_error,
    record,
    relative_error,
    token_errors,
)
from kvpolicy.evaluation.recording.listening import heard
from kvpolicy.testing import tiny_model

KEPT = [0, 1, 2, 3, *range(32, 40)]
"""What streaming with 4 sinks keeps of 40 tokens at a budget of 12."""

FAMILIES = ["llama", "qwen3", "gemma2", "gemma3_text", "phi3"]


@pytest.fixture(scope="module")
def ids():
    return torch.randint(1, 128, (2, 44), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def split(ids):
    return ids[:, :40], ids[:, 40:]


def model_of(family):
    attention = "eager" if family.startswith("gemma") else "sdpa"
    return tiny_model(family, attn_implementation=attention)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_policy_that_keeps_everything_has_an_error_of_exactly_zero(family, ids):
    policy = kvpolicy.recipe("streamingllm", budget=1.0)
    for propagate in (False, True):
        errors = reconstruction_error(model_of(family), policy, *split(ids), propagate=propagate)
        assert torch.equal(errors, torch.zeros_like(errors))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_layer_that_evicts_has_an_error(family, ids):
    model, policy = model_of(family), kvpolicy.recipe("streamingllm", budget=12)
    with policy.cache(model) as cache:
        evicting = len(cache.policy_layers)
    errors = reconstruction_error(model, policy, *split(ids))
    assert errors.shape == (evicting,)
    assert (errors > 0).all()


def test_the_first_layer_errs_as_masked_attention_does(model, ids):
    """Written out for the layer whose inputs no eviction can change."""
    full = record(model, *split(ids))
    weight, cache = model.model.layers[0].self_attn.o_proj.weight, DynamicCache(config=model.config)
    with torch.no_grad():
        model(ids, past_key_values=cache)
    keys, values = (
        each.repeat_interleave(2, dim=1) for each in (cache.layers[0].keys, cache.layers[0].values)
    )
    logits = full.layers[0].future.queries @ keys.mT * 8**-0.5

    def output(visible):
        attention = logits.masked_fill(~visible, -torch.inf).softmax(-1)
        return ((attention @ values).transpose(1, 2).flatten(2) @ weight.mT).detach()

    causal = torch.ones(4, 44, dtype=torch.bool).tril(40)
    held = torch.arange(44) >= 40
    held[KEPT] = True
    torch.testing.assert_close(full.layers[0].outputs, output(causal), rtol=1e-4, atol=1e-6)

    errors = token_errors(model, kvpolicy.compose(scorer="streamingllm", sinks=4, budget=12), full)

    expected = relative_error(output(causal & held), output(causal))
    torch.testing.assert_close(errors[0], expected, rtol=1e-3, atol=1e-5)


def test_a_layer_alone_does_not_inherit_the_errors_below_it(model, ids):
    policy = kvpolicy.recipe("streamingllm", budget=12)
    alone, passed_on = (
        reconstruction_error(model, policy, *split(ids), propagate=propagate)
        for propagate in (False, True)
    )
    torch.testing.assert_close(alone[0], passed_on[0])
    assert alone[1] != passed_on[1]


def test_a_layer_is_judged_as_if_all_others_held_everything(model, ids):
    full = record(model, *split(ids))
    block, layer = model.model.layers[1].self_attn, full.layers[1]
    cache = DynamicCache(config=model.config)
    outputs = []
    hook = block.register_forward_hook(lambda module, args, output: outputs.append(output[0]))
    with torch.no_grad():
        model(full.prompt, past_key_values=cache)
        for name in ("keys", "values"):
            setattr(cache.layers[1], name, getattr(cache.layers[1], name)[:, :, KEPT])
        model(full.continuation[:, :1], past_key_values=cache)
    hook.remove()

    errors = token_errors(model, kvpolicy.compose(scorer="streamingllm", sinks=4, budget=12), full)

    expected = relative_error(outputs[1], layer.outputs[:, :1])
    torch.testing.assert_close(errors[1, :, :1], expected, rtol=1e-3, atol=1e-5)


def test_the_mean_over_prompts_and_tokens_is_what_is_returned(model, ids):
    policy = kvpolicy.recipe("random", budget=12)
    errors = token_errors(model, policy, record(model, *split(ids)))
    assert errors.shape == (2, 2, 4)
    torch.testing.assert_close(
        reconstruction_error(model, policy, *split(ids)), errors.mean((1, 2))
    )


def test_a_prompt_of_a_batch_is_judged_as_if_alone(model, ids):
    policy = kvpolicy.compose(scorer={"name": "snapkv", "window": 4}, budget=12)
    both = token_errors(model, policy, record(model, *split(ids)))
    second = token_errors(model, policy, record(model, *split(ids[1:])))
    torch.testing.assert_close(both[:, 1:], second, rtol=1e-3, atol=1e-5)


def test_a_policy_that_evicts_while_decoding_does_so_meanwhile(model, ids):
    once, again = (
        token_errors(
            model,
            kvpolicy.recipe("streamingllm", budget=12, every=every),
            record(model, *split(ids)),
        )
        for every in (None, 1)
    )
    assert torch.equal(once[..., :1], again[..., :1])
    assert (once[..., 1:] != again[..., 1:]).any()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_recording_is_what_the_model_did(ids, attention):
    """Queries, keys and values give the outputs; logits are those of a plain forward."""
    model = tiny_model("qwen3", attn_implementation=attention)
    full = record(model, *split(ids))
    inputs = []
    hook = model.model.layers[1].self_attn.register_forward_pre_hook(
        lambda module, args, kwargs: inputs.append(kwargs["hidden_states"]), with_kwargs=True
    )
    with torch.no_grad():
        model(ids)
    hook.remove()
    torch.testing.assert_close(full.layers[1].inputs, inputs[0][:, 40:], rtol=1e-4, atol=1e-5)
    assert [layer.block for layer in full.layers] == [
        f"model.layers.{index}.self_attn" for index in range(2)
    ]
    assert full.layers[1].future.queries.shape == (2, 4, 4, 8)
    assert full.layers[1].future.keys.shape == (2, 2, 4, 8)


def test_layers_with_a_sliding_window_are_not_counted(ids):
    model = model_of("gemma3_text")
    assert [layer.block for layer in record(model, *split(ids)).layers] == [
        "model.layers.1.self_attn",
        "model.layers.3.self_attn",
    ]


def test_the_model_is_left_as_it_was_found(ids):
    model = tiny_model()
    before = model(ids).logits
    reconstruction_error(model, kvpolicy.recipe("streamingllm", budget=12), *split(ids))
    assert model.config._attn_implementation == "sdpa"
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert torch.equal(model(ids).logits, before)


def test_the_model_is_left_as_it_was_found_when_listening_fails(ids):
    model = tiny_model()

    def fails(block, queries):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), heard(model, fails):
        model(ids)
    assert model.config._attn_implementation == "sdpa"
    model(ids)


def test_a_cache_that_is_open_meanwhile_goes_on_being_observed(model, ids):
    policy = kvpolicy.compose(scorer={"name": "snapkv", "window": 4}, budget=12)
    with policy.cache(model) as cache:
        record(model, *split(ids))
        model(ids[:, :40], past_key_values=cache)
        assert cache.positions[0].shape[-1] == 12


@pytest.mark.parametrize(
    ("prompt", "continuation"),
    [((2, 40), (2, 0)), ((2, 0), (2, 4)), ((2, 40), (1, 4)), ((40,), (4,))],
)
def test_tokens_that_are_no_prompts_with_a_continuation_each_are_refused(
    model, prompt, continuation
):
    ids = torch.ones(prompt, dtype=torch.long), torch.ones(continuation, dtype=torch.long)
    # Where shapes are checked, that check may be the first to refuse.
    with pytest.raises((InvalidValueError, TypeCheckError), match=r"B.*T"):
        record(model, *ids)


def test_a_model_that_policies_do_not_support_is_refused():
    from transformers import GPTJConfig, GPTJForCausalLM

    small = GPTJConfig(vocab_size=64, n_positions=64, n_embd=32, n_layer=1, n_head=2, rotary_dim=8)
    with pytest.raises(UnsupportedModelError, match="does not call transformers' attention"):
        record(GPTJForCausalLM(small), torch.ones(1, 4, dtype=torch.long), torch.ones(1, 1).long())


def test_importing_it_loads_no_transformers():
    code = (
        "import kvpolicy.evaluation.measures.reconstruction, sys\n"
        "print('transformers' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


def test_an_error_is_relative_and_finite():
    expected = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    found = torch.tensor([[3.0, 5.0], [0.0, 0.0]])
    torch.testing.assert_close(relative_error(found, expected), torch.tensor([0.2, 0.0]))
    assert relative_error(found.half(), expected.half()).dtype == torch.float32
