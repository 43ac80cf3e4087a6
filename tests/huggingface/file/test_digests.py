"""Equal numbers have equal digests, and no others."""

import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kvpolicy.huggingface.file import digests
from kvpolicy.huggingface.file.digests import Digests, digest


def numbers(*shape):
    return torch.arange(torch.Size(shape).numel(), dtype=torch.float32).view(shape)


def by_quanto(plain, bits):
    quanto = pytest.importorskip("optimum.quanto")
    linear = torch.nn.Linear(128, 128)
    linear.weight = torch.nn.Parameter(plain.repeat(64, 64))
    model = torch.nn.Sequential(linear)
    quanto.quantize(model, weights=getattr(quanto, bits))
    quanto.freeze(model)
    return model[0].weight


@pytest.fixture
def small_blocks(monkeypatch):
    """Have tensors cut into blocks of 64 bytes, and return the sizes of those that are hashed."""
    sizes, whole = [], digests._block_digest

    def noted(block):
        sizes.append(block.numel())
        return whole(block)

    monkeypatch.setattr(digests, "BLOCK", 64)
    monkeypatch.setattr(digests, "_block_digest", noted)
    return sizes


@pytest.mark.parametrize("shape", [(1000,), (10, 100), (1, 2, 500), (100, 1, 3)])
def test_no_more_than_a_block_is_hashed_at_once(shape, small_blocks):
    digest(numbers(*shape))
    assert max(small_blocks) <= 64
    assert sum(small_blocks) == 4 * numbers(*shape).numel()


@pytest.mark.parametrize("shape", [(30, 40), (2, 3, 5, 7), (1, 100), (100, 1)])
def test_strides_change_nothing(shape, small_blocks):
    plain = numbers(*shape)
    turned = plain.transpose(0, -1).contiguous().transpose(0, -1)
    assert digest(turned) == digest(plain)
    assert digest(torch.ones(1).expand(shape)) == digest(torch.ones(shape))


@given(data=st.data())
def test_every_number_counts(data):
    shape = data.draw(st.lists(st.integers(1, 9), max_size=3))
    plain = numbers(*shape)
    changed = plain.clone()
    changed.view(-1)[data.draw(st.integers(0, plain.numel() - 1))] += 1
    assert digest(changed) != digest(plain)


def test_shape_and_dtype_count():
    found = [
        numbers(6),
        numbers(2, 3),
        numbers(3, 2),
        numbers(1, 6),
        numbers(6).double(),
        numbers(6).view(torch.int32),
        torch.zeros(0),
        torch.zeros(0, 3),
        torch.zeros(0, dtype=torch.int8),
        torch.zeros(()),
        torch.zeros(1),
    ]
    assert len({digest(each) for each in found}) == len(found)


@pytest.mark.parametrize(
    "make",
    [
        lambda plain: plain.to(torch.bfloat16),
        lambda plain: plain.to(torch.float8_e4m3fn),
        lambda plain: plain.bool(),
        lambda plain: torch.complex(plain, plain).conj(),
        lambda plain: torch.complex(plain, plain).conj().imag,
        lambda plain: plain.to_sparse(),
        lambda plain: plain.to_sparse_csr(),
        lambda plain: plain.to_sparse_csc(),
        lambda plain: torch.quantize_per_tensor(plain, 0.1, 2, torch.qint8),
        lambda plain: torch.quantize_per_channel(
            plain, torch.tensor([0.1, 0.2]), torch.tensor([0, 1]), 0, torch.qint8
        ),
        lambda plain: by_quanto(plain, "qint8"),
        lambda plain: by_quanto(plain, "qint4"),
        torch.nn.Parameter,
    ],
)
def test_every_kind_of_tensor_is_read(make):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        same = [digest(make(torch.tensor([[1.0, 0.0], [0.0, 2.0]]))) for _ in range(2)]
        other = digest(make(torch.tensor([[1.0, 0.0], [1.0, 2.0]])))
    assert same[0] == same[1] != other


def test_the_step_of_a_quantised_tensor_counts():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        steps = {
            digest(torch.quantize_per_tensor(torch.zeros(2), step, zero, torch.qint8))
            for step in (0.1, 0.2)
            for zero in (0, 1)
        }
    assert len(steps) == 4


def test_edits_that_pytorch_does_not_count_are_noticed():
    plain = torch.nn.Parameter(numbers(4))
    found = [digest(plain)]
    plain.data[1] = 7
    found.append(digest(plain))
    plain.detach().numpy()[2] = 9
    found.append(digest(plain))
    with torch.inference_mode():
        made = numbers(4)
        found.append(digest(made))
        made[0] = 5
        found.append(digest(made))
    assert found[3] == found[0]
    assert len(set(found)) == 4


def test_a_tied_tensor_is_read_once(small_blocks):
    plain = numbers(64)
    with Digests() as found:
        first = found.of(plain, lasting=True)
        read = len(small_blocks)
        assert found.of(torch.nn.Parameter(plain), lasting=True) == first
        assert len(small_blocks) == read
        # Another view of the same memory is another tensor.
        assert found.of(plain.view(8, 8), lasting=True) != first
        assert found.of(plain[:32], lasting=True) != first


def test_a_tensor_that_went_away_is_not_taken_for_the_next_one():
    with Digests() as found:
        seen = {found.of(torch.full((1000,), float(each))) for each in range(20)}
    assert len(seen) == 20


def test_a_tensor_without_numbers_raises():
    with pytest.raises(NotImplementedError):
        digest(torch.empty(2, device="meta"))
