import attrs
import pytest
import torch

import kvpolicy
from kvpolicy.cache.eviction.one_layer import selected
from kvpolicy.errors import InvalidValueError, UnsupportedModelError
from kvpolicy.observation.rotary import PlainRotary
from kvpolicy.pipeline.capabilities import ModelFacts
from kvpolicy.stages.grouping import reduce_groups
from kvpolicy.testing import contract, observation
from kvpolicy_expectedattention import ExpectedAttentionScorer
from kvpolicy_kernels import rotate_half

test_contract = contract(plugin="expectedattention")


def mean(values):
    return values.mean(-2)


def rotated(vectors, positions, rotary):
    cosines, sines = rotary.tables(positions)
    size = cosines.shape[-1]
    front = vectors[..., :size]
    front = front * cosines + rotate_half(front, interleaved=rotary.interleaved) * sines
    return torch.cat([front, vectors[..., size:]], dim=-1)


def rotation_matrix(position, rotary, dim):
    """The rotation of one position, as a matrix that is applied from the left."""
    return rotated(torch.eye(dim), torch.tensor(position), rotary).double().T


@pytest.mark.golden("expected_attention")
def test_scores_are_the_authors(case):
    params = case.params
    scorer = ExpectedAttentionScorer(
        future=params["n_future_positions"],
        sinks=params["n_sink"],
        covariance=params["use_covariance"],
        values=params["use_vnorm"],
        epsilon=params["epsilon"],
    )
    rotary = PlainRotary(dim=16, base=params["rope_base"])
    queries = case.tensor("hidden_states") @ case.tensor("q_proj_weight").T
    queries = queries.unflatten(-1, (8, 16)).transpose(1, 2)
    layer = attrs.evolve(
        case.observation(),
        queries=rotated(queries, torch.arange(200), rotary),
        rotary=rotary,
    )

    scores = reduce_groups(scorer.score(layer, mean), 2, "mean")

    # Their sinks get the largest score of all and one more.
    sinks = params["n_sink"]
    expected = case.array("scores")[..., sinks:]
    torch.testing.assert_close(scores[..., sinks:], expected, rtol=2e-4, atol=0)
    assert (scores[..., :sinks] >= expected.amax(-1, keepdim=True) * (1 - 1e-6)).all()


@pytest.mark.parametrize(
    "rotary",
    [
        PlainRotary(dim=8, base=100.0),
        PlainRotary(dim=8, base=100.0, interleaved=True),
        PlainRotary(dim=4, base=100.0),
        PlainRotary(dim=4, base=100.0, interleaved=True),
    ],
    ids=["whole", "interleaved", "partial", "partial-interleaved"],
)
@pytest.mark.parametrize("covariance", [True, False])
def test_scores_are_the_closed_form_with_rotations_as_matrices(rotary, covariance):
    sinks, future, length, scaling = 3, 5, 40, 0.7
    layer = observation(positions=length, window=length, rotary=rotary, scaling=scaling)
    scorer = ExpectedAttentionScorer(
        sinks=sinks, future=future, covariance=covariance, epsilon=0.01
    )
    matrices = [rotation_matrix(p, rotary, 8) for p in range(length + future)]
    turn = torch.stack(matrices[length:]).mean(0)

    scores = scorer.score(layer, mean)

    for head in range(4):
        plain = torch.stack(
            [matrices[p].T @ layer.queries[0, head, p].double() for p in range(length)]
        )[sinks:]
        keys, values = (x[0, head // 2, sinks:].double() for x in (layer.keys, layer.values))
        logits = scaling * keys @ turn @ plain.mean(0)
        if covariance:
            spread = turn @ torch.cov(plain.T, correction=0) @ turn.T
            logits += scaling**2 / 2 * torch.einsum("si,ij,sj->s", keys, spread, keys)
        expected = (logits.softmax(0) + 0.01) * values.norm(dim=-1)
        torch.testing.assert_close(scores[0, head, sinks:].double(), expected, rtol=1e-4, atol=0)
        assert (scores[0, head, :sinks] == scores[0, head, sinks:].max()).all()


def test_a_long_prompt_is_walked_in_blocks():
    layer = observation(positions=5000, window=5000, heads=1, groups=2)
    scorer = ExpectedAttentionScorer(values=False)
    plain = rotated(
        layer.queries.double(), -torch.arange(5000), PlainRotary(dim=8)
    )  # To turn by -p undoes a turn by p.
    plain = plain[:, :, 4:].double()
    turn = torch.stack([rotation_matrix(5000 + p, PlainRotary(dim=8), 8) for p in range(512)])
    turn, keys = turn.mean(0), layer.keys[:, :, 4:].double()
    centred = plain - plain.mean(2, keepdim=True)
    spread = turn @ (centred.mT @ centred / plain.shape[2]) @ turn.T
    logits = (keys @ (turn @ plain.mean(2)[..., None]))[..., 0] / 8**0.5
    logits = (
        logits
        + torch.einsum(
            "bhsi,bhij,bhsj->bhs", keys.expand(1, 2, -1, -1), spread, keys.expand(1, 2, -1, -1)
        )
        / 16
    )

    scores = scorer.score(layer, mean)[..., 4:].double()

    torch.testing.assert_close(scores, logits.softmax(-1), rtol=1e-4, atol=0)


def test_a_later_turn_is_measured_by_its_own_queries():
    whole = observation(positions=40, window=40)
    turn = attrs.evolve(whole, queries=whole.queries[:, :, -10:])
    other = attrs.evolve(
        whole, queries=torch.cat([whole.queries[:, :, :30] * 5, turn.queries], dim=2)
    )
    scorer = ExpectedAttentionScorer()
    assert not torch.allclose(scorer.score(whole, mean), scorer.score(other, mean))
    # Of a turn that begins behind the sinks every query counts.
    all_count = ExpectedAttentionScorer(sinks=0).score(turn, mean)
    behind = scorer.score(turn, mean)
    ratio = behind[..., 4:] / all_count[..., 4:]
    torch.testing.assert_close(ratio, ratio[..., :1].expand_as(ratio))


@pytest.mark.parametrize("positions", [1, 3, 4, 5])
def test_a_sequence_of_hardly_more_than_sinks_has_finite_scores(positions):
    scores = ExpectedAttentionScorer().score(
        observation(positions=positions, window=positions), mean
    )
    assert scores.isfinite().all()


def test_sinks_are_known_by_their_position_in_the_text():
    layer = observation(positions=12, window=4)
    positions = torch.tensor([1, *range(89, 100)]).expand(1, 2, -1)
    scores = ExpectedAttentionScorer(values=False).score(
        attrs.evolve(layer, positions=positions, seen=100), mean
    )
    torch.testing.assert_close(scores[..., 1:].sum(-1), torch.ones(1, 4))
    assert (scores[..., 0] == scores[..., 1:].amax(-1)).all()


def test_the_recipe_protects_the_sinks_alone():
    policy = kvpolicy.recipe("expectedattention", budget=10)
    assert policy == kvpolicy.compose(scorer="expectedattention", sinks=4, budget=10)
    assert (policy.scorer.window, policy.recent) == (None, 0)

    kept = selected(policy, observation(positions=100, window=100)).indices

    assert kept.shape[-1] == 10
    assert torch.equal(kept[..., :4], torch.arange(4).expand(1, 2, -1))


def test_it_does_not_judge_while_decoding():
    with pytest.raises(InvalidValueError, match=r"every=8 .*'expectedattention'.* whole prompt"):
        kvpolicy.recipe("expectedattention", every=8)


def test_a_model_without_known_rotary_embedding_is_refused():
    facts = ModelFacts(name="GPT2LMHeadModel", layers=2, heads=4, kv_heads=4, has_rotary=False)
    scorer = ExpectedAttentionScorer()
    with pytest.raises(UnsupportedModelError, match="not known for GPT2LMHeadModel"):
        scorer.check_model(facts)
    scorer.check_model(attrs.evolve(facts, has_rotary=True))
    with pytest.raises(UnsupportedModelError, match="not known for this model"):
        scorer.score(observation(rotary=None), mean)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("future", 0, "'future' must be at least 1, not 0"),
        ("future", 1.5, "'future' must be an int, not 1.5"),
        ("sinks", -1, "'sinks' must be at least 0, not -1"),
        ("covariance", 1, "'covariance' must be True or False, not 1"),
        ("values", "no", "'values' must be True or False, not 'no'"),
        ("epsilon", -0.5, r"'epsilon' must be in \[0, 1\], not -0.5"),
        ("epsilon", "x", "'epsilon' must be a number, not 'x'"),
    ],
)
def test_mistakes_are_named(option, value, message):
    with pytest.raises(InvalidValueError, match=f"scorer 'expectedattention': {message}"):
        kvpolicy.compose(scorer={"name": "expectedattention", option: value})
