"""A tokenizer of whole words, a tiny model that reads them, and the needle model."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from kvpolicy.evaluation import needle
from kvpolicy.testing import tiny_model

WORDS = "<s> </s> ? : . question answer red blue green the is what colour user model".split()
TEMPLATE = (
    "{% for m in messages %}{{ m.role }} : {{ m.content | trim }} . {% endfor %}"
    "{% if add_generation_prompt %}model :{% endif %}"
)


@pytest.fixture
def tokenizer():
    vocabulary = {word: place for place, word in enumerate(WORDS)}
    vocabulary |= {f"w{number}": len(WORDS) + number for number in range(100)}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<s>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", chat_template=TEMPLATE
    )


@pytest.fixture(scope="session")
def model():
    return tiny_model("qwen3")


@pytest.fixture(scope="session")
def needle_pair():
    return needle.load()


@pytest.fixture
def text():
    """Sixty words that the tokenizer knows."""
    return " ".join(f"w{(7 * number) % 100}" for number in range(60))
