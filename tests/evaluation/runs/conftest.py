"""A tokenizer of whole words, a tiny model that reads them, the needle model, and grids of it."""

from __future__ import annotations

from random import Random

import attrs
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from kvpolicy.evaluation import needle
from kvpolicy.evaluation.measures.catalogue import METRICS
from kvpolicy.evaluation.needle.prompts import write_document
from kvpolicy.evaluation.runs.engine import InProcess
from kvpolicy.evaluation.runs.entrant import entrants
from kvpolicy.evaluation.runs.grid import Grid, Named
from kvpolicy.evaluation.runs.prompt import PromptFormat
from kvpolicy.task import Sample
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


@pytest.fixture(scope="session")
def samples():
    """Four prompts of the needle task, each with its question."""
    prompts = needle.generate_prompts(tokens=96, facts=6, count=4, seed=1)
    return [
        Sample(
            name=str(number),
            context=prompt.text.rpartition(" question ")[0],
            question=" question " + prompt.text.rpartition(" question ")[2],
            answers=(prompt.answer,),
        )
        for number, prompt in enumerate(prompts)
    ]


@pytest.fixture
def make(needle_pair, samples):
    """Give a function that makes a grid of recipes and budgets on the needle model."""
    model, tokenizer = needle_pair

    def make(recipes=("restkv", "streamingllm"), budgets=(40, 0.5), **options):
        question = options.pop("question", "inside")
        references = {"oracle": options.pop("oracle", False)}
        task = Named(name="needles", samples=samples, metric=METRICS["exact_match"])
        given = {"tasks": [task], "max_new_tokens": 4} | options
        return Grid(
            engine=InProcess(model=given.pop("model", model), tokenizer=tokenizer),
            format=PromptFormat(tokenizer=tokenizer, question=question),
            entrants=entrants(recipes, budgets, **references),
            **given,
        )

    return make


@pytest.fixture(scope="session")
def shared():
    """Three questions on each of two contexts."""
    rng = Random(4)
    documents = {text: write_document(rng, tokens=93, facts=6) for text in "ab"}
    return [
        Sample(
            name=text + fact.name,
            context=" ".join(document.words),
            question=f" question password {fact.name}",
            answers=(" ".join(fact.code),),
            choices=(" ".join(fact.code), "amber lemon oak"),
        )
        for text, document in documents.items()
        for fact in document.facts[:3]
    ]


@pytest.fixture
def figures():
    """Give a function that returns what two runs have in common: all but times."""
    return lambda rows: [
        attrs.evolve(row, first_seconds=None, token_seconds=None)
        for row in sorted(rows, key=lambda row: row.key)
    ]
