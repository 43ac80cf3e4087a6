"""Scorer `kvzip` against plain forwards of the model over a prompt and what repeats it."""

import attrs
import pytest
import torch
from transformers import DynamicCache
from transformers.masking_utils import eager_mask

import kvpolicy
from kvpolicy.errors import InvalidValueError, UnsupportedModelError
from kvpolicy.exactness import full_cache
from kvpolicy.exactness.attention import replaced_attention
from kvpolicy.exactness.forwards import recorded
from kvpolicy.observation.repetition import Repeated
from kvpolicy.testing import contract, observation
from kvpolicy.testing.models import tiny_model
from kvpolicy_kernels.common.pytorch import blocks
from kvpolicy_kvzip import RepetitionScorer, scoring

test_contract = contract(plugin="kvzip")

LENGTH, LAYERS, GROUPS = 50, 3, 2
WORDS = {"first_ids": (3, 4, 5), "later_ids": (6, 7), "answer_ids": (8,)}
WAYS = {
    "no words": {},
    "words": WORDS,
    "chunks": WORDS | {"chunk": 17, "overlap": 4},
    "chunks without words": {"chunk": 13, "overlap": 2, "sinks": 0},
    "chunks of one token": {"chunk": 1, "overlap": 3, "sinks": 2},
}


def double(**config):
    return tiny_model("llama", num_hidden_layers=LAYERS, **config).double()


def prompt(seed=0, length=LENGTH):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(10, 128, (1, length), generator=generator)


def told(scorer, text, start, *, begins):
    """What the authors' code lets the model read behind a text, to repeat a chunk of it."""
    words = scorer.first_ids if begins and not start else scorer.later_ids
    before = text[max(0, start - scorer.overlap) : start]
    return [*words, *before, *scorer.answer_ids, *text[start : start + scorer.chunk]]


def sizes(model, output, layer):
    """||W_h v_i|| of each query head, [H, T], and ||x_t|| of each token, [T]."""
    values = output.past_key_values.layers[layer].values[0].repeat_interleave(GROUPS, 0)
    weight = model.model.layers[layer].self_attn.o_proj.weight
    by_head = weight.unflatten(1, (len(values), -1)).transpose(0, 1)
    projected = torch.einsum("hmd,htd->htm", by_head, values).norm(dim=-1)
    return projected, output.hidden_states[layer][0].norm(dim=-1)


def expected(model, ids, scorer):
    """[L, N, S]: what a plain forward over the prompt and what repeats a chunk attends to."""
    text, found = ids[0].tolist(), []
    for start in range(0, len(text), scorer.chunk):
        more = torch.tensor([told(scorer, text, start, begins=True)])
        with torch.no_grad():
            output = model(
                torch.cat([ids, more], 1),
                past_key_values=DynamicCache(config=model.config),
                output_attentions=True,
                output_hidden_states=True,
            )
        end = min(start + scorer.chunk, len(text))
        layers = []
        for layer, attentions in enumerate(output.attentions):
            rows = attentions[0, :, len(text) :]
            sinks = range(min(scorer.sinks, start))
            seen = [*sinks, *range(start, end), *range(len(text), rows.shape[-1])]
            shares = rows[..., start:end] / rows[..., seen].sum(-1, keepdim=True)
            if scorer.plus:
                projected, residual = sizes(model, output, layer)
                shares = shares * projected[:, None, start:end] / residual[len(text) :, None]
            layers.append(shares.amax(1).unflatten(0, (-1, GROUPS)).amax(1))
        found.append(torch.stack(layers))
    return torch.cat(found, -1)


def spied(monkeypatch):
    """What the scorer returns from now on: for each layer, or each uneven head, [n, S]."""
    found, own = [], RepetitionScorer.score

    def score(scorer, shown, reduce):
        scores = own(scorer, shown, reduce)
        assert torch.equal(scores[:, ::GROUPS], scores[:, 1::GROUPS])
        found.append(scores[0, ::GROUPS])
        return scores

    monkeypatch.setattr(RepetitionScorer, "score", score)
    return found


@torch.no_grad()
def read(model, cache, *turns):
    return [model(turn, past_key_values=cache).logits for turn in turns]


@pytest.mark.parametrize("plus", [False, True])
@pytest.mark.parametrize("options", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_scores_are_the_attention_of_a_plain_forward(monkeypatch, backend, options, plus):
    model, ids = double(attn_implementation=backend), prompt()
    policy = kvpolicy.recipe("kvzip", budget=20, scorer=options | {"plus": plus})
    found = spied(monkeypatch)
    with policy.cache(model) as cache:
        read(model, cache, ids)
    plain = double(attn_implementation="eager")
    want = expected(plain, ids, policy.scorer)
    torch.testing.assert_close(torch.stack(found).double(), want, rtol=1e-5, atol=1e-7)


def test_what_is_kept_are_the_best_scores_of_all_layers_and_heads():
    model, ids = double(attn_implementation="eager"), prompt()
    policy = kvpolicy.recipe("kvzip", budget=20, sinks=0, recent=0)
    with policy.cache(model) as cache:
        read(model, cache, ids)
        kept = [
            {int(at) for at in head if at >= 0} for of in cache.positions for head in of[0].tolist()
        ]
    scores = expected(model, ids, policy.scorer).flatten(0, 1)
    best = scores.flatten().topk(20 * len(scores)).indices.tolist()
    want = [{at % LENGTH for at in best if at // LENGTH == head} for head in range(len(scores))]
    assert kept == want
    assert len({len(each) for each in kept}) > 1


@pytest.mark.parametrize("allocator", ["uniform", "layerdefensivekv"])
@pytest.mark.parametrize("chunk", [2000, 9])
def test_a_later_turn_is_repeated_behind_what_is_left(monkeypatch, allocator, chunk):
    """The reference is the yardstick: a full cache whose attention sees what was held."""
    model = double(attn_implementation="eager")
    options = WORDS | {"chunk": chunk, "overlap": 3}
    policy = kvpolicy.recipe("kvzip", budget=20, allocator=allocator, scorer=options)
    turns = prompt(0), prompt(1, 1), prompt(2, 1), prompt(3, 23)
    answer = torch.cat(turns[1:], 1)
    cache = policy.cache(model)
    with recorded(model, cache) as forwards:
        read(model, cache, *turns[:-1])
        held = [each[0] for each in cache.positions]
        found = spied(monkeypatch)
        read(model, cache, turns[-1])
    want = []
    for start in range(0, answer.shape[1], chunk):
        more = torch.tensor([told(policy.scorer, answer[0].tolist(), start, begins=False)])
        weights = masked_weights(model, forwards, turns[-1], more)
        for layer, rows in enumerate(weights):
            rows = rows[0, :, -more.shape[1] :]
            before = LENGTH + start
            end = min(before + chunk, LENGTH + answer.shape[1])
            first = [sorted(at for at in head if at >= 0)[:4] for head in held[layer].tolist()]
            assert all(each == [0, 1, 2, 3] for each in first)
            new = range(LENGTH + answer.shape[1], rows.shape[-1])
            seen = [*range(4), *range(before, end), *new]
            shares = rows[..., before:end] / rows[..., seen].sum(-1, keepdim=True)
            want.append((layer, start, shares.amax(1).unflatten(0, (-1, GROUPS)).amax(1)))
    layers = [
        torch.cat([each for at, _, each in want if at == layer], 1) for layer in range(LAYERS)
    ]
    heads = torch.cat([each[:, -answer.shape[1] :] for each in found])
    torch.testing.assert_close(heads.double(), torch.cat(layers), rtol=1e-5, atol=1e-7)


def masked_weights(model, forwards, turn, more):
    """The attention of each layer, [B, H, Q, T], of a turn and more tokens behind it."""
    full, found = full_cache.FullCache(config=model.config), []
    both = torch.cat([turn, more], 1)
    arguments = forwards[-1].arguments | {"input_ids": both}
    last = attrs.evolve(forwards[-1], arguments=arguments)
    own = full_cache._softmax

    def softmax(*args, **kwargs):
        found.append(own(*args, **kwargs))
        return found[-1]

    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(full_cache, "_softmax", softmax)
        for forward in [*forwards[:-1], last]:
            found.clear()
            attend = full_cache.masked_attention(forward, full, set(range(LAYERS)), None)
            with replaced_attention(model, attend, name="masked", mask=eager_mask):
                model(**forward.arguments | {"past_key_values": full})
    return found


def test_scores_of_earlier_turns_stay_what_they_were(monkeypatch):
    model = double()
    policy = kvpolicy.recipe("kvzip", budget=20, allocator="uniform", scorer={"chunk": 11})
    with policy.cache(model) as cache:
        read(model, cache, prompt(0))
        before = [layer.memory.contents.state[0, ::GROUPS].clone() for layer in cache.policy_layers]
        found = spied(monkeypatch)
        read(model, cache, prompt(1, 15))
    for old, new in zip(before, found, strict=True):
        assert torch.equal(new[:, : old.shape[1]], old)
        assert old.amin() > 0


def test_what_fits_is_repeated_when_a_later_turn_does_not(monkeypatch):
    """Tokens that were never scored are repeated together with the turn that makes room scarce."""
    model, ids = double(), prompt()
    policy = kvpolicy.recipe("kvzip", budget=30, scorer={"chunk": 20})
    found = spied(monkeypatch)
    with policy.cache(model) as cache:
        read(model, cache, ids[:, :25])
        assert found == []
        read(model, cache, ids[:, 25:26], ids[:, 26:])
    together = list(found)
    found.clear()
    with policy.cache(model) as cache:
        read(model, cache, ids)
    torch.testing.assert_close(torch.stack(together), torch.stack(found), rtol=1e-5, atol=1e-7)


def one_chunk(plus, **fields):
    layer = observation(positions=40, window=9, **fields)
    return Repeated(observation=layer, first=20, end=31, residual=torch.rand(1, 9) + 0.5)


@pytest.mark.parametrize("fields", [{}, {"softcap": 2.0}, {"sink_logits": torch.ones(4)}])
def test_norms_of_one_give_the_scores_without_them(monkeypatch, fields):
    """With W_h v_i and x_t of norm 1, `plus` changes nothing; its own blocks of queries agree."""
    monkeypatch.setattr(scoring, "rows_per_block", lambda floats, device: 2)
    monkeypatch.setattr(blocks, "CACHED_BYTES", 1)
    values = torch.nn.functional.normalize(torch.randn(1, 2, 40, 8), dim=-1)
    weight = torch.eye(8).repeat(1, 4)
    shown = one_chunk(True, values=values, output_weight=weight, **fields)
    shown = attrs.evolve(shown, residual=torch.ones(1, 9))
    plain = RepetitionScorer().repeated(shown)
    torch.testing.assert_close(RepetitionScorer(plus=True).repeated(shown), plain)


def test_a_larger_residual_stream_lowers_the_scores():
    shown = one_chunk(True)
    twice = attrs.evolve(shown, residual=2 * shown.residual)
    scorer = RepetitionScorer(plus=True)
    torch.testing.assert_close(scorer.repeated(twice) * 2, scorer.repeated(shown))


@pytest.mark.parametrize("missing", ["output_weight", "residual"])
def test_norms_that_are_not_known_are_refused(missing):
    shown = one_chunk(True, **({"output_weight": None} if missing == "output_weight" else {}))
    if missing == "residual":
        shown = attrs.evolve(shown, residual=None)
    with pytest.raises(UnsupportedModelError, match="plus=False"):
        RepetitionScorer(plus=True).repeated(shown)


@pytest.mark.parametrize("ids", ["text", (1, -2), (1.0,), (True,), 5])
@pytest.mark.parametrize("option", ["first_ids", "later_ids", "answer_ids"])
def test_words_that_are_no_token_ids_are_refused(option, ids):
    with pytest.raises(InvalidValueError, match=rf"{option}.* tuple\(tokenizer"):
        RepetitionScorer(**{option: ids})


def test_eviction_while_decoding_is_refused():
    with pytest.raises(InvalidValueError, match="every=4 evicts while decoding"):
        kvpolicy.recipe("kvzip", budget=20, every=4)
