"""Stretches of the standard library: of the right length, from different texts, always the same."""

from __future__ import annotations

import pytest

from kvpolicy.errors import InvalidValueError
from kvpolicy.evaluation.tasks.stdlib import StandardLibraryTask
from kvpolicy.testing.tokenizers import byte_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return byte_tokenizer()


@pytest.mark.parametrize("kind", ["prose", "code"])
def test_each_stretch_has_the_length_and_is_of_another_text(tokenizer, kind):
    task = StandardLibraryTask(kind=kind, length=64, num_samples=5)
    samples = list(task.samples(tokenizer))
    lengths = {len(tokenizer(each.context)["input_ids"]) for each in samples}
    assert lengths == {64}
    assert len({each.name for each in samples}) == 5
    assert samples == list(task.samples(tokenizer))


def test_fewer_samples_are_the_first_of_more(tokenizer):
    few, more = (
        [each.name for each in StandardLibraryTask(num_samples=count).samples(tokenizer)]
        for count in (3, 8)
    )
    assert more[:3] == few


def test_another_seed_draws_other_texts(tokenizer):
    names = [
        [each.name for each in StandardLibraryTask(seed=seed, num_samples=8).samples(tokenizer)]
        for seed in (0, 1)
    ]
    assert names[0] != names[1]


def test_the_code_is_that_of_modules(tokenizer):
    [sample] = StandardLibraryTask(kind="code", num_samples=1).samples(tokenizer)
    assert sample.name.endswith(".py")


def test_stretches_that_are_too_long_are_refused(tokenizer):
    task = StandardLibraryTask(length=10**6, num_samples=2)
    with pytest.raises(InvalidValueError, match="0 texts of the standard library"):
        list(task.samples(tokenizer))


def test_a_stretch_is_read_in_chunks():
    metric = StandardLibraryTask(chunk=16).metric
    assert (metric.asks, metric.chunk, metric.larger_is_better) == ("stream", 16, False)
