"""The cache in transformers' own text-generation pipeline."""

from transformers import pipeline

import kvpolicy
from kvpolicy.evaluation import needle


def test_a_pipeline_answers_from_an_evicted_cache():
    model, tokenizer = needle.load()
    (prompt,) = needle.generate_prompts(tokens=256, facts=8, count=1, seed=0)
    generate = pipeline("text-generation", model=model, tokenizer=tokenizer)

    with kvpolicy.recipe("restkv", budget=64).cache(model) as cache:
        (answer,) = generate(
            prompt.text,
            past_key_values=cache,
            return_full_text=False,
            do_sample=False,
            max_new_tokens=4,
        )

    assert answer["generated_text"].split() == prompt.answer.split()
    assert cache.get_seq_length() == 256 + 3
    assert [layer.held for layer in cache.policy_layers] == [64 + 3] * 4
