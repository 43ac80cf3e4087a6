"""Layers that share keys and values are evicted as one, with the queries of all of them."""

import functools
import sys

import attrs
import pytest
import torch

import kvpolicy
from kvpolicy.errors import InvalidValueError, UnsupportedModelError
from kvpolicy.exactness.architectures import tiny_architecture
from kvpolicy.exactness.limits import LIMIT
from kvpolicy.exactness.usages import USAGES, small_policy
from kvpolicy.exactness.usages.inputs import generate, read, tokens

TYPES = ("gemma3n_text", "gemma4_text", "gemma4_unified_text")
OWNER, READER = 1, 3
WINDOW = 8


@pytest.fixture(autouse=True)
def _without_gradients():
    with torch.no_grad():
        yield


@functools.cache
def model_of(model_type, shared=2, attention="sdpa"):
    return tiny_architecture(model_type, attn_implementation=attention, num_kv_shared_layers=shared)


@attrs.frozen
class Spy:
    """Scores like attention of the window, and keeps what it was shown."""

    window = WINDOW
    shown: list = attrs.field(factory=list)

    def score(self, observation, reduce):
        self.shown.append(observation)
        return reduce(observation.attention)


def spied(model, use, **changes):
    spy = Spy()
    use(kvpolicy.compose(scorer=spy, budget=24, **changes).cache(model))
    return spy.shown


def queries_of(model, layer, ids):
    """Return a layer's queries as its attention function gets them."""
    found = []
    module = model.model.layers[layer].self_attn
    scope = vars(sys.modules[type(module).__module__])
    own = scope["eager_attention_forward"]

    def attention(each, query, *args, **kwargs):
        if each is module:
            found.append(query)
        return own(each, query, *args, **kwargs)

    scope["eager_attention_forward"] = attention
    try:
        model(input_ids=ids, use_cache=False)
    finally:
        scope["eager_attention_forward"] = own
    return found[0]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("shared", [0, 2])
@pytest.mark.parametrize("model_type", TYPES)
@pytest.mark.parametrize(
    "usage",
    [
        "one prompt",
        "second turn by forward",
        "chunked prefill",
        "second turn of a padded batch",
        "beam search",
        "saved and loaded",
    ],
)
@pytest.mark.sampled(6, "usage", "model_type")
def test_logits_are_those_of_the_masked_full_cache(model_type, shared, usage):
    assert USAGES[usage](model_of(model_type, shared), small_policy("restkv")) <= LIMIT


@pytest.mark.parametrize("recipe", ["h2o", "adakv", "layerdefensivekv"])
def test_recipes_of_every_kind_are_served(recipe):
    usage = USAGES["chosen and reordered rows"]
    assert usage(model_of("gemma4_text"), small_policy(recipe)) <= LIMIT


@pytest.mark.parametrize("model_type", TYPES)
def test_the_scorer_is_shown_the_queries_of_all_layers_by_key_value_head(model_type):
    model = model_of(model_type, attention="eager")
    (shown,) = spied(model, lambda cache: read(model, cache, (60,)))
    heads = shown.keys.shape[1]
    own, reader = (
        queries_of(model, layer, tokens(0))[:, :, -WINDOW:].unflatten(1, (heads, -1))
        for layer in (OWNER, READER)
    )
    torch.testing.assert_close(shown.queries.unflatten(1, (heads, -1)), torch.cat([own, reader], 2))
    assert shown.readers == 2


def test_each_head_has_the_output_projection_of_its_layer():
    model = model_of("gemma4_text")
    policy = small_policy("restkv")
    spy, own = [], type(policy.scorer).score

    def score(self, observation, reduce):
        spy.append(observation)
        return own(self, observation, reduce)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(policy.scorer), "score", score)
        read(model, policy.cache(model), (60,))
    weights = spy[0].head_weights
    dim, heads = spy[0].values.shape[-1], spy[0].keys.shape[1]
    of_layers = [
        model.model.layers[layer].self_attn.o_proj.weight.unflatten(1, (heads, -1, dim))
        for layer in (OWNER, READER)
    ]
    expected = torch.cat(of_layers, 2).flatten(1, 2).transpose(0, 1)
    torch.testing.assert_close(weights, expected)


def test_generate_shows_as_many_queries_as_forward():
    # generate asks for the last logits only, and the model then drops all other queries.
    model = model_of("gemma4_text")
    by_forward = spied(model, lambda cache: read(model, cache, (60,)))[0]
    by_generate = spied(model, lambda cache: generate(model, cache, tokens(0)))[0]
    torch.testing.assert_close(by_generate.queries, by_forward.queries)


@pytest.mark.parametrize("length", [60, 12])
def test_as_many_logits_are_returned_as_were_asked_for(length):
    model = model_of("gemma4_text")
    cache = small_policy("restkv").cache(model)
    output = model(input_ids=tokens(0, length), past_key_values=cache, logits_to_keep=2)
    assert output.logits.shape[1] == 2
    expected = model(input_ids=tokens(0, length), use_cache=False).logits[:, -2:]
    torch.testing.assert_close(output.logits, expected, atol=LIMIT, rtol=0)


def test_layers_can_be_reduced_by_their_maximum():
    model = model_of("gemma4_text")
    (shown,) = spied(model, lambda cache: read(model, cache, (60,)))
    heads, settings = shown.keys.shape[1], {"scorer": "snapkv", "smoother": "mean"}
    by_head = shown.attention.mean(-2).unflatten(1, (heads, 2, -1)).mean(3)
    for name, expected in (("mean", by_head.mean(2)), ("max", by_head.amax(2))):
        policy = kvpolicy.compose(**settings, budget=24, recent=0, layer_group=name)
        torch.testing.assert_close(policy.group_scores(shown), expected)
    with pytest.raises(InvalidValueError, match="layer_group"):
        kvpolicy.compose(**settings, layer_group="sum")


def test_the_report_says_how_long_a_prompt_is_held():
    model = model_of("gemma4_text")
    cache = small_policy("restkv").cache(model)
    read(model, cache, (60,))
    report = cache.report()
    assert report.layers[OWNER].readers == (READER,)
    assert str(report).splitlines()[-1] == (
        "layer 1 shares its keys and values with 3: "
        "it holds a whole prompt until layer 3 has read it"
    )


def test_methods_that_need_one_layer_alone_are_refused_by_their_names():
    model = model_of("gemma4_text")
    policy = kvpolicy.compose(scorer="jointrestkv", budget=48)
    with pytest.raises(UnsupportedModelError, match="'jointrestkv' measures the joint output"):
        policy.cache(model)
    policy.cache(model_of("gemma4_text", shared=0))


def test_fewer_queries_in_some_layers_are_refused_before_anything_is_evicted(monkeypatch):
    model = model_of("gemma4_text")
    monkeypatch.setattr(
        "kvpolicy.huggingface.session.Session.queries_to_keep", lambda self, seen, logits: logits
    )
    cache = small_policy("restkv").cache(model)
    with pytest.raises(UnsupportedModelError, match="Call the model with logits_to_keep=0"):
        generate(model, cache, tokens(0))


def test_the_model_is_left_as_it_was_found():
    model = model_of("gemma4_text")
    kind = type(model.model)
    before = kind.forward, kind._maybe_slice_kv_shared_inputs
    with small_policy("restkv").cache(model) as cache:
        read(model, cache, (60,))
        assert kind.forward is not before[0]
    assert (kind.forward, kind._maybe_slice_kv_shared_inputs) == before
