"""Queries of the prompt are shown as they would be at the next position."""

import attrs
import pytest
import torch

import kvpolicy
from kvpolicy.errors import UnsupportedModelError
from kvpolicy.observation.replay import continued, most_attended, replayed
from kvpolicy.observation.rotary import DisplacedRotary, PlainRotary, rotated
from kvpolicy.testing import observation
from kvpolicy.testing.models import tiny_model
from kvpolicy.testing.samples import normal
from kvpolicy.testing.shards import in_shards


@attrs.frozen(kw_only=True)
class Shown:
    """A scorer that remembers what each layer shows."""

    seen: list = attrs.field(factory=list)
    window = None
    needs = ("rotary",)

    def score(self, layer, reduce):
        self.seen.append(layer)
        return layer.folded_attention(reduce)


def shown(model, ids, **settings):
    scorer = Shown()
    policy = kvpolicy.compose(scorer=scorer, budget=5, **settings)
    model(ids, past_key_values=policy.cache(model))
    return scorer.seen


@pytest.mark.parametrize("slot_positions", [False, True])
@pytest.mark.parametrize("family", ["llama", "qwen3", "phi3", "gemma"])
def test_a_replayed_query_is_what_the_first_layer_asks_if_the_token_comes_again(
    family, slot_positions
):
    model, ids = tiny_model(family), torch.arange(10, 40)[None]
    first = shown(model, ids, slot_positions=slot_positions)[0]
    places = torch.tensor([[3, 17, 28]])

    found = replayed(first, places)

    for column, place in enumerate(places[0].tolist()):
        again = torch.cat([ids, ids[:, place, None]], 1)
        expected = shown(model, again, slot_positions=slot_positions)[0].queries[:, :, -1]
        torch.testing.assert_close(found.queries[:, :, column], expected, rtol=1e-4, atol=1e-4)
    assert found.ahead
    assert torch.equal(found.keys, first.keys)


@pytest.mark.parametrize("slot_positions", [False, True])
@pytest.mark.parametrize("family", ["llama", "qwen3", "phi3", "gemma"])
def test_continued_queries_are_what_the_first_layer_asks_if_the_tokens_come_again_in_turn(
    family, slot_positions
):
    model, ids = tiny_model(family), torch.arange(10, 40)[None]
    first = shown(model, ids, slot_positions=slot_positions)[0]
    places = torch.tensor([[3, 28, 17, 17]])

    found = continued(first, places)

    again = torch.cat([ids, ids[:, places[0]]], 1)
    expected = shown(model, again, slot_positions=slot_positions)[0]
    torch.testing.assert_close(found.queries, expected.queries[:, :, -4:], rtol=1e-4, atol=1e-4)
    assert torch.equal(found.query_positions, expected.query_positions[-4:])
    assert found.ahead
    assert torch.equal(found.keys, first.keys)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("dim", [4, 8])
@pytest.mark.parametrize("by", [0, -7])
def test_each_row_has_tokens_of_its_own(interleaved, dim, by):
    rotary = PlainRotary(dim=dim, base=100.0, interleaved=interleaved)
    plain, earlier = normal(0, 2, 4, 6, 8), 11
    positions = torch.arange(earlier, earlier + 6)
    layer = observation(
        batch=2,
        positions=9,
        window=6,
        queries=rotated(plain, positions + by, rotary),
        seen=earlier + 6,
        rotary=DisplacedRotary(rotary=rotary, by=by),
    )
    places = torch.tensor([[0, 5], [2, 2]])

    for turn, step in ((replayed, 0), (continued, 1)):
        queries = turn(layer, places).queries
        for row, column in ((0, 0), (0, 1), (1, 0), (1, 1)):
            position = torch.tensor(earlier + 6 + by + step * column)
            expected = rotated(plain[row, :, places[row, column]], position, rotary)
            torch.testing.assert_close(queries[row, :, column], expected, rtol=1e-4, atol=1e-4)


def test_half_precision_stays_half_precision():
    layer = observation(positions=9, window=9, dtype=torch.bfloat16)
    assert replayed(layer, torch.tensor([[1]])).queries.dtype == torch.bfloat16


def test_without_rotary_embedding_nothing_can_be_turned():
    for turn in (replayed, continued):
        with pytest.raises(UnsupportedModelError, match="embedding of this model is not known"):
            turn(observation(rotary=None), torch.tensor([[1]]))


def test_shares_are_squares_of_the_mean_over_heads():
    layer = observation(batch=2, positions=12, window=12)
    scores = normal(7, 2, 4, 12).square()

    found = most_attended(layer, scores, tokens=3, near=2)

    for row in range(2):
        means = scores[row].mean(0)
        best = sorted(sorted(range(1, 10), key=lambda place: -means[place])[:3])
        assert found.places[row].tolist() == best
        squares = means[best].square()
        torch.testing.assert_close(found.shares[row], squares / squares.sum())


def test_only_tokens_whose_queries_are_shown_can_be_replayed():
    layer = observation(positions=12, window=5, seen=20)
    scores = torch.arange(12.0).flip(0).expand(1, 4, 12)
    assert most_attended(layer, scores, tokens=64, near=2).places.tolist() == [[0, 1, 2]]
    assert most_attended(layer, scores, tokens=64, near=5) is None
    assert most_attended(layer, scores, tokens=64, near=9) is None


def test_scores_of_nothing_give_no_shares():
    layer = observation(positions=6, window=6)
    found = most_attended(layer, torch.zeros(1, 4, 6), tokens=2, near=1)
    assert found.shares.tolist() == [[0.0, 0.0]]


def test_processes_that_share_a_layer_choose_the_same_tokens():
    layer = observation(positions=12, window=12)
    scores = normal(3, 1, 4, 12).square()
    expected = most_attended(layer, scores, tokens=4, near=2)

    def places(shown, heads, kv_heads):
        return most_attended(shown, scores[:, heads], tokens=4, near=2).places

    assert (
        in_shards(layer, places).unflatten(1, (2, 4))[0].tolist()
        == [expected.places[0].tolist()] * 2
    )
