"""What patterns choose, against their definitions spelt out query by query."""

from __future__ import annotations

import math

import attrs
import pytest
import torch

import kvpolicy.prefill.last_attention as last_attention
from kvpolicy.discovery.registry import installed
from kvpolicy.errors import (
    InvalidComponentError,
    InvalidOptionError,
    InvalidValueError,
    UnknownComponentError,
)
from kvpolicy.named import resolved
from kvpolicy.prefill import AShape, PrefillPattern, VerticalSlash
from kvpolicy.prefill.blocks import blocks_of

SMALL = VerticalSlash(queries=9, columns=12, diagonals=14, sinks=5, local=10, block=8)


def causal(count):
    return torch.ones(count, count, dtype=torch.bool).tril()


def choose(pattern, queries, keys, **options):
    return pattern.choose(queries, keys, scaling=queries.shape[-1] ** -0.5, **options)


@pytest.mark.parametrize("length", [1, 8, 31, 64, 83])
@pytest.mark.parametrize(("sinks", "local"), [(0, 1), (1, 2), (8, 9), (9, 10), (5, 40)])
def test_an_a_shape_is_every_block_with_a_sink_or_a_local_key(length, sinks, local):
    pattern = AShape(sinks=sinks, local=local, block=8)
    count = blocks_of(length, 8)
    expected = torch.zeros(count, count, dtype=torch.bool)
    for query in range(length):
        for key in range(query + 1):
            if key < sinks or query - key < local:
                expected[query // 8, key // 8] = True
    prompt = torch.zeros(2, 4, length, 8)

    assert torch.equal(choose(pattern, prompt, prompt)[0, 0], expected)


def naive_vertical_slash(pattern, queries, keys, softcap=None):
    """The choice for one head of one sequence, in float64 and plain loops."""
    block, length, dim = pattern.block, len(keys), keys.shape[-1]
    count = blocks_of(length, block)
    near = math.ceil((pattern.local - 1) / block)
    first = math.ceil(pattern.sinks / block)
    columns, diagonals = [0.0] * count, [0.0] * (count + 1)
    for query in range(length - min(pattern.queries, length), length):
        logits = keys[: query + 1].double() @ queries[query].double() / dim**0.5
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        for key, weight in enumerate(logits.softmax(-1).tolist()):
            if key // block >= first and query // block - key // block > near:
                columns[key // block] += weight
                ahead, rest = divmod(query - key, block)
                diagonals[ahead] += weight * (1 - rest / block)
                diagonals[ahead + 1] += weight * rest / block
    best = sorted(range(first, count), key=lambda column: -columns[column])
    vertical = best[: math.ceil(pattern.columns / block)]
    best = sorted(range(near + 1, count), key=lambda ahead: -diagonals[ahead])
    slash = best[: math.ceil(pattern.diagonals / block)]
    chosen = torch.zeros(count, count, dtype=torch.bool)
    for row in range(count):
        for column in range(row + 1):
            ahead = row - column
            kept = column < first or ahead <= near or column in vertical or ahead in slash
            chosen[row, column] = kept
    return chosen


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize(
    ("pattern", "length"),
    [
        (SMALL, 83),
        (SMALL, 128),
        (attrs.evolve(SMALL, queries=40), 97),
        (attrs.evolve(SMALL, queries=200, sinks=0, local=1), 70),
        (attrs.evolve(SMALL, columns=0), 83),
        (attrs.evolve(SMALL, diagonals=0, columns=1), 83),
    ],
)
def test_vertical_slash_keeps_the_best_columns_and_diagonals_of_every_head(
    prompt, pattern, length, softcap
):
    queries, keys, _ = prompt(0, batch=2, length=length)
    chosen = choose(pattern, queries, keys, softcap=softcap)

    for row in range(2):
        for head in range(4):
            one = queries[row, head], keys[row, head // 2]
            assert torch.equal(chosen[row, head], naive_vertical_slash(pattern, *one, softcap))
    assert not chosen.all(0).all(0).equal(causal(chosen.shape[-1]))


def test_vertical_slash_finds_a_distance_that_every_query_looks_back(prompt):
    _, keys, _ = prompt(1, heads=2, kv_heads=2, length=96, dim=64)
    keys = torch.nn.functional.normalize(keys, dim=-1)
    queries = keys.roll(40, dims=2) * 100
    pattern = VerticalSlash(queries=16, columns=0, diagonals=8, sinks=0, local=1, block=8)

    ahead = torch.arange(12)[:, None] - torch.arange(12)
    expected = (ahead == 0) | (ahead == 5)
    assert torch.equal(choose(pattern, queries, keys)[0, 0], expected)


def test_the_sums_do_not_depend_on_how_much_is_held_at_once(prompt, monkeypatch):
    queries, keys, _ = prompt(2, batch=2)
    at_once = choose(SMALL, queries, keys)
    monkeypatch.setattr(last_attention, "_BYTES", {"cpu": 1})

    assert torch.equal(choose(SMALL, queries, keys), at_once)


def test_a_sequence_is_read_as_if_alone(prompt):
    queries, keys, _ = prompt(3, batch=3)
    together = choose(SMALL, queries, keys)

    for row in range(3):
        one = slice(row, row + 1)
        assert torch.equal(choose(SMALL, queries[one], keys[one])[0], together[row])


def test_half_precision_is_taken(prompt):
    queries, keys, _ = prompt(4, dtype=torch.bfloat16)
    chosen = choose(SMALL, queries, keys)

    assert torch.equal(chosen, choose(SMALL, queries.float(), keys.float()))


@pytest.mark.parametrize(
    "pattern",
    [
        AShape(sinks=5, local=20, block=8),
        SMALL,
        attrs.evolve(SMALL, columns=60),
        attrs.evolve(SMALL, columns=0, diagonals=33),
    ],
)
def test_nothing_is_left_out_of_a_prompt_up_to_the_length_that_is_dense(prompt, pattern):
    assert pattern.dense_up_to % pattern.block == 0
    for length in range(1, pattern.dense_up_to + 1, 3):
        queries, keys, _ = prompt(length, length=length)
        chosen = choose(pattern, queries, keys)
        assert torch.equal(chosen.all(0).all(0), causal(chosen.shape[-1]))
    queries, keys, _ = prompt(0, length=3 * pattern.dense_up_to)
    chosen = choose(pattern, queries, keys)
    assert not chosen.all(0).all(0).equal(causal(chosen.shape[-1]))


def pattern_of(given):
    return resolved("prefill_pattern", given).part


@pytest.mark.parametrize("name", [each.name for each in installed("prefill_pattern")])
def test_a_pattern_is_a_name_a_mapping_or_an_object(name):
    pattern = pattern_of(name)
    assert isinstance(pattern, PrefillPattern)
    assert pattern == pattern_of({"name": name}) == pattern_of(pattern)
    assert pattern_of({"name": name, "block": 64}).block == 64


@pytest.mark.parametrize(
    ("prefill", "error", "sentence"),
    [
        ("a-shape", UnknownComponentError, "no prefill pattern named 'a-shape'. Did you mean 'ash"),
        ({"sinks": 4}, InvalidValueError, "a mapping with a 'name'"),
        ({"name": "ashape", "sink": 4}, InvalidOptionError, "no option 'sink'. Did you mean 'si"),
        ({"name": "ashape", "local": 0}, InvalidValueError, "'ashape': 'local' must be at least"),
        ({"name": "verticalslash", "queries": 1.5}, InvalidValueError, "'queries' must be an int"),
        ({"name": "verticalslash", "block": 0}, InvalidValueError, "'block' must be at least 1"),
        (AShape, InvalidComponentError, "a PrefillPattern"),
        (7, InvalidComponentError, "a PrefillPattern"),
    ],
)
def test_what_cannot_be_is_said(prefill, error, sentence):
    with pytest.raises(error, match=sentence):
        pattern_of(prefill)
