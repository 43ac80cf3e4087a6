from typing import ClassVar

import attrs
import pytest
import torch

import kvpolicy
from kvpolicy.cache.eviction.one_layer import selected
from kvpolicy.errors import InvalidValueError
from kvpolicy.stages.allocation import UniformAllocator
from kvpolicy.testing import contract, observation
from kvpolicy_chunkkv import ChunkSmoother

test_contract = contract(plugin="chunkkv")


@attrs.frozen(eq=False)
class FixedScorer:
    """Gives every position the score that a case gives it."""

    scores: torch.Tensor
    window: ClassVar[int] = 1

    def score(self, observation, reduce):
        groups = observation.queries.shape[1] // self.scores.shape[1]
        return self.scores.repeat_interleave(groups, 1)


@pytest.mark.golden("chunkkv_select")
def test_whole_chunks_are_kept_as_in_kvpress(case):
    scores, length = case.tensor("fixed_scores"), case.params["chunk_length"]
    expected = case.array("kept_in_emitted_order").long()
    policy = kvpolicy.compose(
        scorer=FixedScorer(scores),
        smoother={"name": "chunkkv", "length": length},
        budget=expected.shape[-1],
        recent=0,
    )
    # The scores were given: there is no query that would set its own position apart.
    layer = case.observation()
    layer = attrs.evolve(layer, queries=layer.queries[:, :, :0])

    assert torch.equal(selected(policy, layer).indices, expected)


def scores_of(layer):
    shape = (*layer.queries.shape[:2], layer.length)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("length", [1, 4, 10, 100])
def test_a_chunk_has_its_mean_over_tokens_and_heads(length):
    layer = observation(positions=41, batch=2)
    scores = scores_of(layer)

    smoothed = ChunkSmoother(length=length).spatial(scores, layer)

    mean = scores.double().mean(1, keepdim=True).expand(scores.shape)
    past = layer.length - layer.window
    for first in range(0, past, length):
        chunk = slice(first, min(first + length, past))
        expected = mean[..., chunk].mean(-1, keepdim=True).expand(-1, -1, chunk.stop - first)
        torch.testing.assert_close(smoothed[..., chunk].double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(smoothed[..., past:].double(), mean[..., past:], rtol=1e-5, atol=0)


def test_chunks_are_those_of_the_text_when_some_of_it_is_gone():
    positions = torch.tensor([0, 1, 2, 9, 10, 11, 12, 13, 30, 31]).expand(1, 2, -1)
    layer = observation(positions=10, window=1)
    layer = attrs.evolve(layer, positions=positions, seen=32)
    scores = torch.tensor([1.0, 3.0, 5.0, 7.0, 2.0, 2.0, 2.0, 6.0, 9.0, 4.0]).expand(1, 4, -1)

    smoothed = ChunkSmoother(length=10).spatial(scores, layer)

    expected = torch.tensor([4.0, 4.0, 4.0, 4.0, 3.0, 3.0, 3.0, 3.0, 9.0, 4.0])
    torch.testing.assert_close(smoothed, expected.expand(1, 4, -1))


def test_small_scores_behind_large_ones_keep_their_order():
    scores = torch.tensor([5e2, 5e2, 1e-9, 1e-9, 2e-9, 2e-9, 0.0]).expand(1, 4, -1)
    smoothed = ChunkSmoother(length=2).spatial(scores, observation(positions=7, window=1))
    torch.testing.assert_close(smoothed, scores, rtol=1e-3, atol=0)


@pytest.mark.parametrize("group", ["mean", "max", "sum"])
def test_all_heads_keep_the_same_whole_chunks_and_the_beginning_of_one(group):
    policy = kvpolicy.recipe("chunkkv", budget=32 + 27, group=group)

    kept = selected(policy, observation(positions=200, window=32, heads=3)).indices

    assert (kept == kept[:, :1]).all()
    past = kept[0, 0, :-32]
    assert torch.equal(kept[0, 0, -32:], torch.arange(168, 200))
    chunks, counts = (past // 10).unique(return_counts=True)
    assert sorted(counts.tolist()) == [7, 10, 10]
    cut = chunks[counts == 7].item()
    assert past[past // 10 == cut].tolist() == list(range(10 * cut, 10 * cut + 7))


def test_an_allocator_that_treats_heads_apart_is_refused():
    class UnevenAllocator(UniformAllocator):
        uneven: ClassVar[bool] = True

    with pytest.raises(InvalidValueError, match=r"'chunkkv'.* needs all heads of a layer to hold"):
        kvpolicy.recipe("chunkkv", allocator=UnevenAllocator())


@pytest.mark.parametrize(
    ("length", "message"),
    [(0, "'length' must be at least 1, not 0"), (2.0, "'length' must be an int, not 2.0")],
)
def test_mistakes_are_named(length, message):
    with pytest.raises(InvalidValueError, match=f"smoother 'chunkkv': {message}"):
        kvpolicy.recipe("chunkkv", smoother={"name": "chunkkv", "length": length})
