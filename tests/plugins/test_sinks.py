"""Where a model has learned sinks, what goes by attention goes by what the sinks leave."""

import attrs
import pytest
import torch

import kvpolicy
from kvpolicy.evaluation.recording import Future
from kvpolicy.stages.scoring import with_state
from kvpolicy.stages.smoothing import MeanSmoother, fold_of
from kvpolicy.testing import observation
from kvpolicy_restkv import WindowedReconstructionScorer

BLIND = {
    *("capkv", "keydiff", "knorm", "lacache", "lagkv", "random", "streamingllm", "triattention"),
    "kvzip",  # It scores by what it accumulated, and here it accumulated nothing.
}
"""Scorers that do not look at attention when they score: no softmax is in it."""


class Repeats:
    """A future that is the present once more."""

    def future_of(self, layer):
        return Future(
            queries=layer.queries[:, :, -2:], keys=layer.keys[:, :, -2:],
            values=layer.values[:, :, -2:],
        )  # fmt: skip


def scorer_of(name):
    options = {"future": Repeats()} if name.startswith("oracle") else {}
    return kvpolicy.compose(scorer={"name": name, **options}, budget=200).scorer


def scores(scorer, layer):
    return scorer.score(with_state(scorer, layer), fold_of(MeanSmoother()))


@pytest.mark.parametrize("name", sorted(each.name for each in kvpolicy.installed("scorer")))
def test_a_scorer_sees_the_sink_if_it_looks_at_attention(name):
    scorer, layer = scorer_of(name), observation(window=8)
    plain = scores(scorer, layer)
    sunk = scores(scorer, attrs.evolve(layer, sink_logits=torch.tensor([1.0, 4.0, 8.0, 2.0])))
    none = scores(scorer, attrs.evolve(layer, sink_logits=torch.full((4,), -torch.inf)))

    assert torch.equal(plain, sunk) == (name in BLIND)
    torch.testing.assert_close(none, plain, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("normalize", [False, True])
def test_restkv_scores_what_a_head_with_a_sink_loses(normalize):
    layer = observation(window=1, positions=9, sink_logits=torch.tensor([0.5, -1.0, 3.0, 1.0]))
    scorer = WindowedReconstructionScorer(normalize=normalize)
    values = layer.values.double().repeat_interleave(2, 1)
    attention = layer.attention[:, :, 0].double()
    output = torch.einsum("bhs,bhsd->bhd", attention, values)
    weight = layer.head_weights.double()
    lost = []
    for gone in range(9):
        rest = [i for i in range(9) if i != gone]
        # What is left shares the whole with the sink, which is all but the attention to all.
        left = attention[..., rest] / (1 - attention[..., gone, None])
        change = torch.einsum("bhs,bhsd->bhd", left, values[:, :, rest]) - output
        lost.append(torch.einsum("hmd,bhd->bhm", weight, change).norm(dim=-1))
    expected = torch.stack(lost, -1)
    if normalize:
        expected /= torch.einsum("hmd,bhd->bhm", weight, output).norm(dim=-1)[..., None]

    for reduce in (fold_of(MeanSmoother()), lambda rows: rows.mean(-2)):
        scored = scorer.score(layer, reduce).double()
        torch.testing.assert_close(scored, expected, rtol=1e-4, atol=1e-6)


def test_a_sink_that_leaves_nothing_leaves_nothing_to_score():
    layer = observation(window=8, sink_logits=torch.full((4,), 1e4))
    for name in ("snapkv", "h2o", "restkv", "tova"):
        assert (scores(scorer_of(name), layer) == 0).all()
