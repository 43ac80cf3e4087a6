"""Attention to chosen blocks, against a mask of elements."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from kvpolicy.errors import PrefillFallbackWarning
from kvpolicy.prefill import AShape, VerticalSlash, flex, reference
from kvpolicy.prefill import attention as door
from kvpolicy.prefill.blocks import attended, density, listed

# One process compiles for all of them.
pytestmark = pytest.mark.xdist_group("flex_attention")

SCALING = 0.3
A_SHAPE = AShape(sinks=5, local=12, block=16)
VERTICAL_SLASH = VerticalSlash(queries=9, columns=20, diagonals=14, sinks=3, local=5, block=16)


@pytest.fixture
def check(prompt, element_mask):
    def compare(attention, pattern, *, softcap=None, atol=2e-5, **shape):
        queries, keys, values = prompt(0, **shape)
        chosen = pattern.choose(queries, keys, scaling=SCALING, softcap=softcap)
        blocks = attended(chosen)
        output = attention.block_attention(
            queries, keys, values, blocks, block=pattern.block, scaling=SCALING, softcap=softcap
        )
        allowed = element_mask(chosen, queries.shape[2], pattern.block)
        assert not torch.equal(allowed.all(0).all(0), torch.ones_like(allowed[0, 0]).tril())
        expected = masked_attention(queries, keys, values, allowed, softcap)
        assert output.dtype == queries.dtype
        torch.testing.assert_close(output.float(), expected, atol=atol, rtol=0)

    return compare


def masked_attention(queries, keys, values, allowed, softcap):
    group = queries.shape[1] // keys.shape[1]
    queries, keys, values = queries.float(), keys.float(), values.float()
    if softcap is None:
        return F.scaled_dot_product_attention(
            queries, keys, values, attn_mask=allowed, scale=SCALING, enable_gqa=True
        )
    keys, values = (each.repeat_interleave(group, 1) for each in (keys, values))
    logits = softcap * torch.tanh(queries @ keys.mT * SCALING / softcap)
    return logits.masked_fill(~allowed, -torch.inf).softmax(-1) @ values


SHAPES = [
    (A_SHAPE, {"length": 96}),
    (A_SHAPE, {"length": 117}),
    (VERTICAL_SLASH, {"length": 117}),
    (VERTICAL_SLASH, {"length": 161}),
    (VERTICAL_SLASH, {"length": 110, "batch": 2}),
    (VERTICAL_SLASH, {"length": 117, "batch": 3}),
    (VERTICAL_SLASH, {"length": 117, "batch": 2, "softcap": 2.0}),
    (VERTICAL_SLASH, {"length": 117, "batch": 2, "softcap": 3.0}),
]


@pytest.mark.parametrize(("pattern", "shape"), SHAPES)
def test_the_reference_is_attention_under_the_mask_of_elements(check, pattern, shape):
    check(reference, pattern, **shape)


# tests/behaviour/test_sparse_prefill.py compiles the deep ones' kinds, for models.
@pytest.mark.parametrize(
    ("pattern", "shape"),
    [
        pytest.param(*each, marks=() if index in (2, 3, 6, 7) else pytest.mark.deep)
        for index, each in enumerate(SHAPES)
    ],
)
def test_compiled_attention_is_that_under_the_mask_of_elements(check, pattern, shape):
    check(door, pattern, **shape)


def test_the_reference_takes_what_flex_attention_does_not(check, monkeypatch):
    monkeypatch.setattr(reference, "_BYTES", 1)
    # Half of a bfloat16's last place at 4.
    check(reference, VERTICAL_SLASH, length=117, dtype=torch.bfloat16, atol=0.016)
    check(reference, A_SHAPE, length=117, heads=6, kv_heads=6, dim=5)


def test_a_length_that_is_new_compiles_nothing(check):
    check(door, VERTICAL_SLASH, length=117)
    with torch.compiler.set_stance("fail_on_recompile"):
        for length in (133, 178, 190):
            check(door, VERTICAL_SLASH, length=length)


@pytest.mark.parametrize("pattern", [A_SHAPE, VERTICAL_SLASH], ids=["ashape", "verticalslash"])
def test_density_is_the_share_of_pairs_that_the_mask_allows(prompt, element_mask, pattern):
    queries, keys, _ = prompt(0, batch=2, length=117)
    blocks = attended(pattern.choose(queries, keys, scaling=SCALING)).expand(2, 4, -1, -1)
    lengths = (117, 70)
    allowed = element_mask(blocks, 117, 16)
    pairs = [allowed[row, :, :length, :length].sum() / 4 for row, length in enumerate(lengths)]
    whole = sum(length * (length + 1) / 2 for length in lengths)

    torch.testing.assert_close(density(blocks, lengths, 16), (sum(pairs) / whole).double())


def test_lists_name_the_blocks_in_order():
    blocks = torch.rand(2, 3, 9, 9, generator=torch.Generator().manual_seed(0)) < 0.4
    counts, indices = listed(blocks)

    for place in torch.cartesian_prod(*map(torch.arange, (2, 3, 9))).tolist():
        row = tuple(place)
        assert indices[row][: counts[row]].tolist() == blocks[row].nonzero()[:, 0].tolist()
    assert counts.dtype == indices.dtype == torch.int32
    assert indices.shape == blocks.shape


def test_what_does_not_compile_is_computed_all_the_same_and_said_once(check, monkeypatch, recwarn):
    monkeypatch.setattr(door, "_compiles", {})
    calls = []

    def fails(*args, **kwargs):
        calls.append(args)
        raise NotImplementedError("no C++ compiler\nand a long story")

    monkeypatch.setattr(flex, "block_attention", fails)
    with pytest.warns(PrefillFallbackWarning, match=r"\(NotImplementedError: no C\+\+ compiler\)"):
        check(door, VERTICAL_SLASH, length=117)
    check(door, VERTICAL_SLASH, length=161)
    assert len(calls) == 1


def test_a_dtype_that_flex_attention_refuses_falls_back(check, prompt, monkeypatch):
    monkeypatch.setattr(door, "_compiles", {})
    queries, keys, values = prompt(0, dtype=torch.float64)
    blocks = attended(A_SHAPE.choose(queries, keys, scaling=SCALING))
    with pytest.warns(PrefillFallbackWarning, match="float64 on cpu"):
        door.block_attention(queries, keys, values, blocks, block=16, scaling=SCALING)


def test_memory_that_ran_out_is_no_reason_to_take_more(check, monkeypatch):
    monkeypatch.setattr(door, "_compiles", {})

    def fails(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(flex, "block_attention", fails)
    with pytest.raises(torch.OutOfMemoryError):
        check(door, A_SHAPE, length=117)


def test_turned_off_compilation_gives_the_same_numbers(check, monkeypatch):
    """flex_attention itself would attend to all blocks then, and say nothing."""
    monkeypatch.setattr(door, "_compiles", {})
    with (
        torch.compiler.set_stance("force_eager"),
        pytest.warns(PrefillFallbackWarning, match=r"torch\.compile is turned off"),
    ):
        check(door, VERTICAL_SLASH, length=117)
