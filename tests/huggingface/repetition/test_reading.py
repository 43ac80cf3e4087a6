"""A prompt is read twice, and the second time leaves nothing behind but scores."""

import pytest
import torch

import kvpolicy
from kvpolicy.errors import CacheStateError, UnsupportedModelError
from kvpolicy.exactness.conversation import check_equal, contents_of
from kvpolicy.exactness.usages.inputs import tokens
from kvpolicy.huggingface.layer import PolicyLayer
from kvpolicy.testing.models import tiny_model
from kvpolicy_kvzip import RepetitionScorer

OPTIONS = {"chunk": 25, "overlap": 3, "first_ids": (5, 6), "later_ids": (7,), "answer_ids": (8, 9)}
RECIPES = pytest.mark.parametrize("recipe", ["kvzip", "kvzipplus"])
ALLOCATORS = pytest.mark.parametrize("allocator", ["uniform", "layerdefensivekv"])


def policy_of(recipe="kvzip", **changes):
    return kvpolicy.recipe(recipe, **{"budget": 20, "scorer": OPTIONS} | changes)


def read(model, cache, ids, **inputs):
    return model(ids, past_key_values=cache, **inputs).logits


def counted(model, monkeypatch):
    """The numbers of tokens that the model's first layer has read, forward by forward."""
    found = []
    model.model.layers[0].register_forward_pre_hook(lambda _, args: found.append(args[0].shape[1]))
    return found


def test_each_token_is_read_once_more_with_the_words_before_its_chunk(monkeypatch):
    model = tiny_model("llama")
    found = counted(model, monkeypatch)
    with policy_of().cache(model) as cache:
        read(model, cache, tokens(0, 60))
    assert found == [60, 2 + 2 + 25, 1 + 3 + 2 + 25, 1 + 3 + 2 + 10]


def test_a_prompt_that_fits_and_a_decoded_token_are_read_once(monkeypatch):
    model = tiny_model("llama")
    found = counted(model, monkeypatch)
    with policy_of(budget=70).cache(model) as cache:
        read(model, cache, tokens(0, 60))
        read(model, cache, tokens(1, 1))
    assert found == [60, 1]


@RECIPES
@ALLOCATORS
def test_rows_that_stay_are_those_of_the_first_pass_bit_for_bit(recipe, allocator):
    model, ids = tiny_model("llama"), tokens(0, 60)
    plain = kvpolicy.recipe("snapkv", budget=100).cache(model)
    expected = read(model, plain, ids)
    with policy_of(recipe, allocator=allocator).cache(model) as cache:
        assert torch.equal(read(model, cache, ids), expected)
        assert cache.get_seq_length() == 60
    for layer, whole in zip(cache.policy_layers, plain.policy_layers, strict=True):
        places = layer.positions[..., None].expand(-1, -1, -1, whole.keys.shape[-1])
        for name in ("keys", "values"):
            held, all_rows = getattr(layer, name), getattr(whole, name)
            rows = all_rows.gather(2, places.clamp(min=0)).masked_fill(places < 0, 0)
            assert torch.equal(held, rows)


class Stop(Exception):  # noqa: N818 - it stops a test on its way
    """Raised in the midst of a second pass."""


def stopping(monkeypatch, after):
    own, left = RepetitionScorer.repeated, [after]

    def repeated(scorer, shown):
        left[0] -= 1
        if not left[0]:
            raise Stop
        return own(scorer, shown)

    monkeypatch.setattr(RepetitionScorer, "repeated", repeated)
    return lambda: monkeypatch.setattr(RepetitionScorer, "repeated", own)


@pytest.mark.parametrize("storage", [None, "quantized", "offloaded"])
@pytest.mark.parametrize("earlier", [(), (60,), (60, 1, 1), (9,)])
@pytest.mark.parametrize("after", [1, 4])
@ALLOCATORS
@pytest.mark.sampled(3, "storage", "earlier", "after", "allocator")
def test_a_second_pass_that_stops_leaves_the_cache_as_it_was(
    monkeypatch, allocator, after, earlier, storage
):
    model, policy = tiny_model("llama"), policy_of(allocator=allocator)
    cache, other = (policy.cache(model, storage=storage) for _ in range(2))
    for each in (cache, other):
        for seed, length in enumerate(earlier):
            read(model, each, tokens(seed, length))
    before, nbytes = contents_of(cache), cache.nbytes
    undone = stopping(monkeypatch, after)
    with pytest.raises(kvpolicy.errors.ComponentFailedError, match="Stop"):
        read(model, cache, tokens(7, 55))
    undone()
    check_equal(before, contents_of(cache))
    assert cache.nbytes == nbytes
    for seed, length in ((7, 55), (8, 1), (9, 30)):
        found, expected = (read(model, each, tokens(seed, length)) for each in (cache, other))
        assert torch.equal(found, expected)
    check_equal(contents_of(other), contents_of(cache))


def test_a_part_that_fails_behind_the_second_pass_leaves_a_cache_that_refuses(monkeypatch):
    def fails(scorer, shown, reduce):
        raise Stop

    model, ids = tiny_model("llama"), tokens(0, 60)
    cache = policy_of().cache(model)
    with monkeypatch.context() as patch:
        patch.setattr(RepetitionScorer, "score", fails)
        with pytest.raises(kvpolicy.errors.ComponentFailedError):
            read(model, cache, ids)
    with pytest.raises(CacheStateError, match=r"cache\.reset"):
        read(model, cache, ids)
    cache.reset()
    assert torch.equal(read(model, cache, ids), read(model, policy_of().cache(model), ids))


REFUSED = {
    "embeddings": lambda model, ids: {"inputs_embeds": model.get_input_embeddings()(ids)},
    "positions of images": lambda model, ids: {
        "input_ids": ids,
        "position_ids": torch.arange(ids.shape[1]).expand(3, 1, -1),
    },
}


@pytest.mark.parametrize(
    ("inputs", "message"),
    [("embeddings", "not told the ids"), ("positions of images", "position_ids of 3 dimensions")],
)
@pytest.mark.parametrize("earlier", [0, 60])
def test_tokens_that_cannot_be_repeated_are_refused_before_any_work(inputs, message, earlier):
    model, cache = (model := tiny_model("llama")), policy_of().cache(model)
    if earlier:
        read(model, cache, tokens(0, earlier))
    before = contents_of(cache)
    with pytest.raises(UnsupportedModelError, match=message):
        model(**REFUSED[inputs](model, tokens(1, 50)), past_key_values=cache)
    check_equal(before, contents_of(cache))
    read(model, cache, tokens(1, 50))


def test_layers_that_are_called_without_their_decoder_are_refused():
    """Then nobody says which tokens are read. The first layer takes them back."""
    model = tiny_model("llama")
    cache = policy_of().cache(model)
    layer, hidden = model.model.layers[0], torch.randn(1, 50, 32)
    tables = model.model.rotary_emb(hidden, torch.arange(50)[None])
    with pytest.raises(UnsupportedModelError, match="not told the ids"):
        layer(hidden, position_embeddings=tables, past_key_values=cache)
    assert cache.get_seq_length() == 0
    read(model, cache, tokens(1, 50))


@pytest.mark.deep
def test_a_compiled_model_is_refused_and_the_conversation_goes_on():
    torch._dynamo.reset()
    model = tiny_model("llama")
    cache, other = policy_of().cache(model), policy_of().cache(model)
    compiled = torch.compile(model, backend="eager")
    with pytest.raises(UnsupportedModelError, match=r"without torch\.compile"):
        read(compiled, cache, tokens(0, 60))
    assert torch.equal(read(model, cache, tokens(0, 60)), read(model, other, tokens(0, 60)))


@RECIPES
@ALLOCATORS
def test_rows_of_unequal_length_keep_what_each_would_alone(recipe, allocator):
    """In float64, where no rounding changes a ranking. One row fits at first, and pays later."""
    model, policy = tiny_model("llama").double(), policy_of(recipe, allocator=allocator)
    lengths, turns = (60, 41, 12), (tokens(0, 60, 3), tokens(1, 1, 3), tokens(2, 33, 3))
    mask = (torch.arange(60) >= 60 - torch.tensor(lengths)[:, None]).long()
    batch = policy.cache(model)
    for at, ids in enumerate(turns):
        mask = mask if not at else torch.cat([mask, torch.ones_like(ids)], 1)
        places = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        read(model, batch, ids, attention_mask=mask, position_ids=places)
        if not at:
            assert (batch.policy_layers[0].schedule.ids >= 0).sum(1).tolist() == [0, 0, 12]
    assert batch.policy_layers[0].schedule.ids is None
    for row, length in enumerate(lengths):
        alone = policy.cache(model)
        for at, ids in enumerate(turns):
            read(model, alone, ids[row : row + 1, -length:] if not at else ids[row : row + 1])
        for together, own in zip(batch.positions, alone.positions, strict=True):
            for all_held, held in zip(together[row].tolist(), own[0].tolist(), strict=True):
                assert [at for at in all_held if at >= 0] == [at for at in held if at >= 0]


def test_positions_that_begin_elsewhere_go_on_where_the_prompt_ends():
    """Rotary attention sees distances alone: an offset changes nothing but rounding."""
    model, ids = tiny_model("llama").double(), tokens(0, 60)
    plain, moved = policy_of().cache(model), policy_of().cache(model)
    read(model, plain, ids)
    read(model, moved, ids, position_ids=torch.arange(100, 160)[None])
    for expected, found in zip(plain.positions, moved.positions, strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("how", ["clone", "file", "reorder", "crop"])
def test_ids_that_wait_to_be_repeated_follow_the_conversation(how, tmp_path):
    model, policy = tiny_model("llama"), policy_of(budget=30)
    first, last = tokens(0, 25), tokens(2, 40)
    expected = policy.cache(model)
    read(model, expected, first)
    read(model, expected, last)
    cache = policy.cache(model)
    read(model, cache, first)
    if how == "clone":
        cache = cache.clone()
    elif how == "file":
        cache.save(tmp_path / "cache.safetensors")
        cache = kvpolicy.load(tmp_path / "cache.safetensors", model)
    elif how == "reorder":
        cache.batch_repeat_interleave(2)
        cache.reorder_cache(torch.tensor([1, 0]))
        cache.batch_select_indices(torch.tensor([1]))
    else:
        read(model, cache, tokens(3, 2))
        cache.crop(-2)
    read(model, cache, last)
    check_equal(contents_of(expected), contents_of(cache))


def test_queries_of_the_whole_prompt_do_not_wait():
    """Layers wait for the second pass. What they hold meanwhile is keys, values and few queries."""
    model, found = tiny_model("llama"), []
    own = RepetitionScorer.repeated

    def repeated(scorer, shown):
        second_pass = cache.session.second_pass
        for ready in second_pass.waiting:
            _, due = ready.finish.args
            found.append(due.queries.untyped_storage().nbytes())
        return own(scorer, shown)

    with pytest.MonkeyPatch.context() as patch, policy_of().cache(model) as cache:
        patch.setattr(RepetitionScorer, "repeated", repeated)
        read(model, cache, tokens(0, 60))
    assert set(found) == {4 * 8 * 4}


def test_a_layer_that_has_evicted_is_let_go_before_the_next(monkeypatch):
    model, held = tiny_model("llama"), []
    own = PolicyLayer.mean_held.fget

    cache = policy_of(allocator="uniform").cache(model)
    score = RepetitionScorer.score

    def scored(scorer, shown, reduce):
        held.append([own(layer) for layer in cache.policy_layers])
        return score(scorer, shown, reduce)

    monkeypatch.setattr(RepetitionScorer, "score", scored)
    read(model, cache, tokens(0, 60))
    assert held == [[60, 60], [20, 60]]
