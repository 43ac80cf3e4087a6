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

from kvpolicy.errors import InvalidValueError, UnsupportedModelError
from kvpolicy.huggingface.masks import fit, padding_counts, real_tokens, with_own_padding

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


@pytest.mark.parametrize("backend", ["sdpa", "eager", "flash_attention_2", "flex_attention"])
@pytest.mark.parametrize(("query_length", "held"), [(6, 6), (3, 5), (5, 5)])
def test_padding_is_read_from_every_kind_of_mask(backend, query_length, held):
    mask = built(backend, query_length=query_length, held=held)

    real = real_tokens(mask, 2, query_length, held)

    assert torch.equal(real, PADDED[:, -query_length:])


@pytest.mark.parametrize("backend", ["sdpa", "eager", "flash_attention_2", "flex_attention"])
def test_no_padding_is_told_apart(backend):
    mask = built(backend, query_length=3, held=5, padded=torch.ones(2, 6).bool())

    assert real_tokens(mask, 2, 3, 5) is None


def test_padding_is_counted_on_the_left_only():
    assert padding_counts(PADDED, [False, False]) == [0, 4]
    with pytest.raises(InvalidValueError, match="row 1"):
        padding_counts(PADDED.flip(1), [False, False])
    with pytest.raises(InvalidValueError, match="row 1"):
        padding_counts(PADDED, [True, True])


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
