"""Masks as transformers builds them, for each kind of attention."""

import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask
from transformers.masking_utils import (
    ALL_MASK_ATTENTION_FUNCTIONS,
    add_offsets_to_mask_function,
    and_masks,
    causal_mask_function,
    padding_mask_function,
)

from kvpolicy.cache.memory.slots import Slots
from kvpolicy.errors import InvalidValueError, UnsupportedModelError
from kvpolicy.huggingface.attention.masks import (
    fit,
    new_real_tokens,
    plainly_causal,
    with_own_padding,
)

PADDED = torch.tensor([[1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 1, 1]]).bool()


def built(backend, *, query_length, held, padded=PADDED):
    """The mask for the last `query_length` of `held` slots, from transformers' own functions."""
    seen = padded.shape[1]
    if backend == "flex_attention":  # its own builder compiles, for minutes
        rule = and_masks(causal_mask_function, padding_mask_function(padded))
        rule = add_offsets_to_mask_function(rule, seen - query_length, seen - held)
        return create_block_mask(rule, len(padded), None, query_length, held, device="cpu")
    return ALL_MASK_ATTENTION_FUNCTIONS[backend](
        batch_size=len(padded),
        q_length=query_length,
        kv_length=held,
        q_offset=seen - query_length,
        kv_offset=seen - held,
        attention_mask=padded,
        dtype=torch.float32,
        device=torch.device("cpu"),
    )


EVERY_KIND = pytest.mark.parametrize(
    "backend", ["sdpa", "eager", "flash_attention_2", "flex_attention"]
)


@EVERY_KIND
@pytest.mark.parametrize(("query_length", "held"), [(6, 6), (3, 5), (5, 5), (1, 4)])
def test_padding_is_read_from_every_kind_of_mask(backend, query_length, held):
    mask = built(backend, query_length=query_length, held=held)
    seen = PADDED[:, :-query_length].sum(1).tolist()
    expected = PADDED[:, -query_length:]

    real = new_real_tokens(mask, seen, query_length, held)

    assert real is None if expected.all() else torch.equal(real, expected)


@EVERY_KIND
def test_no_padding_is_told_apart(backend):
    mask = built(backend, query_length=3, held=5, padded=torch.ones(2, 6).bool())

    assert new_real_tokens(mask, [3, 3], 3, 5) is None


@EVERY_KIND
def test_a_mask_that_hides_what_was_real_is_refused(backend):
    mask = built(backend, query_length=1, held=4)

    with pytest.raises(InvalidValueError, match="earlier tokens"):
        new_real_tokens(mask, [5, 3], 1, 4)


def test_a_padded_batch_needs_its_mask_every_time():
    assert new_real_tokens(None, [5, 4], 1, 5) is None
    with pytest.raises(InvalidValueError, match="needs its attention_mask"):
        new_real_tokens(None, [5, 3], 1, 5)


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32], ids=str)
def test_a_mask_that_does_more_than_hide_padding_is_refused(dtype):
    band = torch.ones(6, 6).tril().triu(-2).bool()
    mask = band if dtype == torch.bool else torch.zeros(6, 6).masked_fill(~band, -torch.inf)

    with pytest.raises(InvalidValueError, match="2D attention_mask"):
        new_real_tokens(mask[None, None], [0], 6, 6)


@pytest.mark.parametrize("backend", ["sdpa", "eager", "flash_attention_2"])
def test_a_shorter_layer_takes_the_last_columns(backend):
    longer, shorter = (built(backend, query_length=2, held=held) for held in (6, 4))

    assert torch.equal(fit(longer, 4), shorter)


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
def test_older_columns_follow_the_lengths_of_the_rows(backend):
    mask = built(backend, query_length=2, held=5, padded=torch.ones(2, 6).bool())

    own = with_own_padding(mask, [5, 3], 2, 5, torch.zeros(1), backend)

    allowed = own if own.dtype == torch.bool else own == 0
    assert allowed[0, 0].int().tolist() == [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]
    assert allowed[1, 0].int().tolist() == [[0, 0, 1, 1, 0], [0, 0, 1, 1, 1]]


def test_a_decoded_token_gets_a_mask_where_transformers_saw_no_need():
    own = with_own_padding(None, [3, 1], 1, 3, torch.zeros(1), "sdpa")

    assert own.int().tolist() == [[[[1, 1, 1]]], [[[0, 0, 1]]]]
    assert with_own_padding(None, [3, 1], 1, 3, torch.zeros(1), "flash_attention_2").dim() == 2
    with pytest.raises(UnsupportedModelError, match="flex_attention"):
        with_own_padding(None, [3, 1], 1, 3, torch.zeros(1), "flex_attention")


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
def test_padding_that_was_moved_to_the_left_is_hidden_there(backend):
    slots = Slots.empty(2, 1, torch.device("cpu"))
    slots.append(5)
    slots.lengths = [5, 2]
    mask = built(backend, query_length=3, held=5)

    own = plainly_causal(mask, slots, torch.zeros(2, 1, 3, 4), backend)

    allowed = own if own.dtype == torch.bool else own == 0
    assert allowed[0, 0].int().tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]
    assert allowed[1, 0, 1:].int().tolist() == [[0, 0, 0, 1, 0], [0, 0, 0, 1, 1]]
    assert bool(allowed[1, 0, 0].any())
    with pytest.raises(UnsupportedModelError, match="flex_attention's block masks"):
        plainly_causal(mask, slots, torch.zeros(2, 1, 3, 4), "flex_attention")
