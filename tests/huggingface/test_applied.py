"""A policy that is applied to a model serves code that passes no cache."""

import threading
from queue import Queue

import peft
import pytest
import torch
from transformers import GenerationConfig, TextIteratorStreamer, pipeline

import kvpolicy
from kvpolicy.errors import CacheStateError, UnsupportedModelError
from kvpolicy.evaluation import needle
from kvpolicy.exactness.usages import small_policy
from kvpolicy.exactness.usages.inputs import generate, padded, tokens
from kvpolicy.testing.models import tiny_model

POLICY = small_policy("snapkv")
OTHER = small_policy("streamingllm")
BEAMS, SAMPLES = {"num_beams": 3}, {"num_return_sequences": 2, "do_sample": True}


def plain(model, ids=None, **options):
    """Generate without passing a cache."""
    return generate(model, None, tokens(1) if ids is None else ids, **options)


def expected(model, policy=POLICY, ids=None, **options):
    """Generate with a cache that is passed, and closed again."""
    with policy.cache(model) as cache:
        return generate(model, cache, tokens(1) if ids is None else ids, **options)


def is_as_found(model, text):
    return "generate" not in vars(type(model)) and torch.equal(plain(model), text)


@pytest.mark.parametrize("recipe", ["restkv", "adakv", "h2o"])
@pytest.mark.parametrize("options", [{}, BEAMS, SAMPLES, {"prefill_chunk_size": 13}], ids=str)
def test_generate_answers_as_with_a_cache_that_is_passed(recipe, options):
    model, policy = tiny_model("llama"), small_policy(recipe)

    def seeded(answer):
        torch.manual_seed(0)
        return answer(**options)

    text = seeded(lambda **options: expected(model, policy, **options))
    with policy.applied(model) as applied:
        assert torch.equal(seeded(lambda **options: plain(model, **options)), text)
    assert [report.seen for report in applied.reports] == [67]
    assert applied.reports[0].nbytes < applied.reports[0].full_nbytes


def test_every_generate_gets_a_cache_of_its_own_and_is_reported():
    model = tiny_model("llama")
    with POLICY.applied(model) as applied:
        texts = [plain(model, tokens(seed, 40 + seed)) for seed in range(3)]
    assert [report.seen for report in applied.reports] == [47, 48, 49]
    assert str(applied).splitlines()[0].split() == ["cache", "seen", "held", "bytes", "of", "full"]
    assert len(str(applied).splitlines()) == 4
    for seed, text in enumerate(texts):
        assert torch.equal(text, expected(model, ids=tokens(seed, 40 + seed)))


def test_padded_batches_are_served():
    model, (ids, mask) = tiny_model("llama"), padded([60, 40, 12])
    text = expected(model, ids=ids, attention_mask=mask)
    with POLICY.applied(model):
        assert torch.equal(plain(model, ids, attention_mask=mask), text)


def test_outside_of_the_block_the_model_is_as_found():
    model = tiny_model("llama")
    text = plain(model)
    block = POLICY.applied(model)
    assert is_as_found(model, text)
    with block:
        assert not torch.equal(plain(model), text)
    assert is_as_found(model, text)
    with pytest.raises(KeyboardInterrupt), block:
        raise KeyboardInterrupt
    assert is_as_found(model, text)
    assert len(block.reports) == 1


def test_a_generate_that_raises_leaves_no_open_cache():
    model = tiny_model("llama")

    def interrupt(ids, scores, **options):
        raise KeyboardInterrupt

    with POLICY.applied(model) as applied:
        with pytest.raises(KeyboardInterrupt):
            plain(model, stopping_criteria=[interrupt])
        assert applied.reports == []
        assert "prepare_inputs_for_generation" not in vars(type(model))
        assert torch.equal(plain(model), expected(model))


def test_a_generate_with_a_cache_of_its_own_is_left_alone():
    model = tiny_model("llama")
    text = expected(model, OTHER)
    with POLICY.applied(model) as applied, OTHER.cache(model) as cache:
        assert torch.equal(generate(model, cache, tokens(1)), text)
    assert applied.reports == []


def test_plain_forwards_are_left_alone():
    model = tiny_model("llama")
    with POLICY.applied(model) as applied:
        cache = model(tokens(0)).past_key_values
        model(tokens(1, 5), past_key_values=cache)
    assert cache.layers[0].keys.shape[2] == 65
    assert applied.reports == []


def test_other_models_are_left_alone():
    model, other = tiny_model("llama"), tiny_model("llama", seed=1)
    text = plain(other)
    with POLICY.applied(model) as applied:
        assert torch.equal(plain(other), text)
    assert applied.reports == []


def test_the_inner_block_is_in_force_and_then_the_outer_one_again():
    model = tiny_model("llama")
    texts = [expected(model, policy) for policy in (POLICY, OTHER)]
    with POLICY.applied(model) as outer:
        with OTHER.applied(model) as inner:
            assert torch.equal(plain(model), texts[1])
        assert torch.equal(plain(model), texts[0])
    assert (len(outer.reports), len(inner.reports)) == (1, 1)


def test_a_block_may_be_entered_twice_at_once():
    model = tiny_model("llama")
    block = POLICY.applied(model)
    with block:
        with block:
            plain(model)
        plain(model)
    assert len(block.reports) == 2
    assert "generate" not in vars(type(model))


def in_a_thread(run):
    found = Queue()
    thread = threading.Thread(target=lambda: found.put(torch.no_grad()(run)()))
    thread.start()
    return thread, found


def test_threads_with_blocks_of_their_own_do_not_meet():
    model, both = tiny_model("llama"), threading.Barrier(2, timeout=60)
    texts = [expected(model, policy) for policy in (POLICY, OTHER)]

    def of(policy):
        def run():
            with policy.applied(model) as applied:
                both.wait()
                text = plain(model)
                both.wait()
            return text, len(applied.reports)

        return run

    started = [in_a_thread(of(policy)) for policy in (POLICY, OTHER)]
    found = [queue.get(timeout=60) for _, queue in started]
    for thread, _ in started:
        thread.join()
    assert all(map(torch.equal, [text for text, _ in found], texts))
    assert [count for _, count in found] == [1, 1]
    assert "generate" not in vars(type(model))


def test_a_thread_without_a_block_uses_the_block_that_surrounds_it():
    model = tiny_model("llama")
    text = expected(model)
    with POLICY.applied(model) as applied:
        thread, found = in_a_thread(lambda: plain(model))
        thread.join()
    assert torch.equal(found.get(timeout=60), text)
    assert len(applied.reports) == 1


def test_a_cache_that_generate_returns_is_open_until_the_block_is_left():
    model = tiny_model("llama")
    with POLICY.applied(model):
        output = model.generate(tokens(1), max_new_tokens=8, return_dict_in_generate=True)
        cache = output.past_key_values
        model(tokens(2, 3), past_key_values=cache)
    assert cache.get_seq_length() == 70
    with pytest.raises(CacheStateError, match="closed"):
        model(tokens(2, 3), past_key_values=cache)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"use_cache": False}, "use_cache=False where a policy is applied"),
        ({"generation_config": GenerationConfig(use_cache=False)}, "use_cache=False"),
        ({"cache_implementation": "static"}, "cache_implementation='static'"),
        ({"assistant_early_exit": 1}, "assistant_early_exit"),
    ],
    ids=["use_cache", "config", "implementation", "early exit"],
)
def test_what_no_policy_can_serve_is_refused_before_any_work(options, message):
    model, forwards = tiny_model("llama"), []
    hook = model.register_forward_pre_hook(lambda *_: forwards.append(1))
    with POLICY.applied(model) as applied, pytest.raises(UnsupportedModelError, match=message):
        model.generate(tokens(1), max_new_tokens=4, **options)
    hook.remove()
    assert forwards == []
    assert applied.reports == []
    assert "prepare_inputs_for_generation" not in vars(type(model))


def test_a_model_that_is_refused_a_cache_is_refused_at_once():
    with pytest.raises(UnsupportedModelError, match="nothing to evict"):
        POLICY.applied(tiny_model("mistral", sliding_window=8))
    with pytest.raises(UnsupportedModelError, match="no method generate"):
        POLICY.applied(tiny_model("llama").model)


def test_prefill_and_storage_are_those_of_the_caches():
    model = tiny_model("llama")
    storage = {"name": "quantized", "bits": 8}
    with POLICY.cache(model, storage=storage) as cache:
        text = generate(model, cache, tokens(1))
        nbytes = cache.nbytes
    with POLICY.applied(model, storage=storage) as applied:
        assert torch.equal(plain(model), text)
    assert applied.reports[0].nbytes == nbytes


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
def test_a_peft_model_is_served():
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "o_proj"], init_lora_weights=False)
    model = peft.get_peft_model(tiny_model("llama"), config).eval()
    text = expected(model)
    with POLICY.applied(model) as applied:
        assert torch.equal(plain(model), text)
    assert len(applied.reports) == 1


def needle_pipeline():
    model, tokenizer = needle.load()
    prompts = needle.generate_prompts(tokens=256, facts=8, count=4, seed=0)
    options = {"do_sample": False, "max_new_tokens": 4, "return_full_text": False}
    answer = pipeline("text-generation", model=model, tokenizer=tokenizer, **options)
    return model, tokenizer, prompts, answer


@pytest.mark.parametrize("batch", [1, 4])
def test_a_pipeline_over_a_list_answers_from_evicted_caches(batch):
    model, tokenizer, prompts, answer = needle_pipeline()
    tokenizer.padding_side = "left"
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.convert_ids_to_tokens(0)
    with kvpolicy.recipe("restkv", budget=64).applied(model) as applied:
        found = answer([prompt.text for prompt in prompts], batch_size=batch)
    texts = [each[0]["generated_text"].split() for each in found]
    assert texts == [prompt.answer.split() for prompt in prompts]
    assert [report.held for report in applied.reports] == [67] * (4 // batch)


def test_a_chat_pipeline_is_served_turn_by_turn():
    model, tokenizer, prompts, answer = needle_pipeline()
    tokenizer.chat_template = "{% for each in messages %}{{ each['content'] }} {% endfor %}"
    chat = [{"role": "user", "content": prompts[0].text}]
    with kvpolicy.recipe("restkv", budget=64).applied(model) as applied:
        first = answer(chat)[0]["generated_text"]
        chat += [{"role": "assistant", "content": first}, {"role": "user", "content": "question"}]
        answer(chat)
    assert len(applied.reports) == 2
    assert first.split() == prompts[0].answer.split()


def test_a_streamer_in_a_thread_gets_every_token():
    model, tokenizer, prompts, _ = needle_pipeline()
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    inputs = tokenizer(prompts[0].text, return_tensors="pt")
    options = {"input_ids": inputs["input_ids"], "max_new_tokens": 4, "do_sample": False}
    with kvpolicy.recipe("restkv", budget=64).applied(model) as applied:
        thread = threading.Thread(target=model.generate, kwargs=options | {"streamer": streamer})
        thread.start()
        text = "".join(streamer)
        thread.join()
    assert text.split() == prompts[0].answer.split()
    assert applied.reports[0].held == 67
