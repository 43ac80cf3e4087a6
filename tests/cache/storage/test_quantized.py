"""A cache that keeps what it holds in few bits: as exact as those bits."""

import attrs
import pytest
import torch
from safetensors import safe_open

import kvpolicy
from kvpolicy.cache.storage.quantized import Quantized
from kvpolicy.errors import CacheFileError, InvalidComponentError
from kvpolicy.exactness.usages import PROMPT, small_policy, tokens
from kvpolicy.exactness.usages.inputs import padded, read
from kvpolicy.quantization import RowFormat
from kvpolicy.testing.models import tiny_model

RECIPES = ["restkv", "adakv", "h2o", "streamingllm"]
RESIDUAL = 4
BITS = [8, 4]


def quantized(bits=8, residual=RESIDUAL):
    return {"name": "quantized", "bits": bits, "residual": residual}


def both(recipe="restkv", *, bits=8, residual=RESIDUAL, model=None, turns=(PROMPT,), **policy):
    """Read the same with and without quantised storage."""
    model = model or tiny_model()
    policy = small_policy(recipe, **policy)
    caches = policy.cache(model), policy.cache(model, storage=quantized(bits, residual))
    for cache in caches:
        read(model, cache, turns)
    return model, *caches


def half_steps(rows, bits):
    """Return half the step of each row; a head of these models is one group."""
    return (rows.amax(-1, keepdim=True) - rows.amin(-1, keepdim=True)) / (2**bits - 1) / 2


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("recipe", [*RECIPES, "pyramidkv", "lookm", "cam"])
def test_what_is_kept_is_off_by_half_a_step_and_the_most_recent_not_at_all(recipe, bits):
    _, plain, cache = both(recipe, bits=bits)
    for exact, layer in zip(plain.policy_layers, cache.policy_layers, strict=True):
        assert torch.equal(exact.positions, layer.positions)
        for name in ("keys", "values"):
            rows, found = getattr(exact, name), getattr(layer, name)
            error = (found - rows).abs()
            assert (error <= half_steps(rows, bits) + 1e-6).all()
            assert error[:, :, :-RESIDUAL].amax() > 0
            assert torch.equal(found[:, :, -RESIDUAL:], rows[:, :, -RESIDUAL:])


@pytest.mark.parametrize("bits", BITS)
def test_attention_errs_no_more_than_the_steps_allow(bits):
    """Bound the output by the errors of its logits and of its values.

    Keys that are off by at most k in each channel move a logit by e = scaling * |q|_1 * k, so each
    probability changes by a factor within exp(-2e) and exp(2e), and all of them together by no more
    than exp(2e) - 1. Values that are off by at most v add v.
    """
    _, plain, cache = both(bits=bits)
    queries = torch.randn(1, 4, 3, 8, generator=torch.Generator().manual_seed(0))
    scaling = 8**-0.5
    for exact, layer in zip(plain.policy_layers, cache.policy_layers, strict=True):
        k, v = (half_steps(rows, bits).amax() for rows in (exact.keys, exact.values))
        e = scaling * queries.abs().sum(-1, keepdim=True) * k
        bound = v + ((2 * e).exp() - 1) * exact.values.abs().amax()
        outputs = [
            torch.nn.functional.scaled_dot_product_attention(
                queries, each.keys, each.values, scale=scaling, enable_gqa=True
            )
            for each in (exact, layer)
        ]
        error = (outputs[1] - outputs[0]).abs()
        assert error.amax() > 0
        assert (error <= bound + 1e-6).all()


def test_logits_err_with_the_step():
    """Four bits have steps 17 times those of eight; errors grow about as much."""
    errors = {}
    for bits in BITS:
        model, plain, cache = both(bits=bits)
        logits = [read(model, each, (1, 1, 1), first_seed=7) for each in (plain, cache)]
        errors[bits] = float((torch.stack(logits[0]) - torch.stack(logits[1])).abs().mean())
    assert 0 < errors[8] < errors[4] / 8
    # The tiny model's logits are about 1 to 10; random keys have no structure to be robust by.
    assert errors[8] < 0.05


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("residual", [0, 4, 100])
def test_bytes_are_codes_steps_and_the_recent_rows(bits, residual):
    model, plain, cache = both(bits=bits, residual=residual)
    config = model.config
    heads, dim, held = config.num_key_value_heads, config.head_dim, 24
    code = dim * bits // 8 + 8
    recent = min(residual, held) * dim * 4
    positions = plain.policy_layers[0].memory.contents.slots.nbytes
    for layer, full in zip(cache.report().layers, plain.report().layers, strict=True):
        assert layer.nbytes == 2 * heads * (held * code + recent) + positions
        assert layer.full_nbytes == full.full_nbytes
        assert (layer.held, layer.seen) == (full.held, full.seen)
    assert cache.nbytes == cache.report().nbytes


def test_a_head_of_usual_size_takes_a_third_of_its_bytes():
    """128 channels in bfloat16 take 256 bytes; in 4 bits 64, and 16 for two groups."""
    model = tiny_model(head_dim=128).to(torch.bfloat16)
    _, plain, cache = both(bits=4, residual=0, model=model)
    assert cache.nbytes < plain.nbytes * 80 / 256 + sum(
        layer.memory.layout.slots.nbytes for layer in cache.policy_layers
    )


@pytest.mark.sampled(2, "recipe", "dtype", "bits")
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("recipe", ["streamingllm", "adakv"])
def test_nothing_drifts_over_fifty_evictions(recipe, dtype, bits):
    """A row that stays is the same bytes after every eviction, and so the same numbers."""
    model = tiny_model().to(dtype)
    policy = small_policy(recipe, sinks=4, every=1)
    cache = policy.cache(model, storage=quantized(bits))
    read(model, cache, (PROMPT,))
    sinks = [row_of(layer, 2) for layer in cache.policy_layers]
    for turn in range(50):
        read(model, cache, (1,), first_seed=turn)

    assert cache.get_seq_length() == PROMPT + 50
    assert all(layer.held < PROMPT for layer in cache.policy_layers)
    for layer, (keys, values) in zip(cache.policy_layers, sinks, strict=True):
        now = row_of(layer, 2)
        assert torch.equal(now[0], keys)
        assert torch.equal(now[1], values)


def row_of(layer, position):
    """Return keys and values of one position in all heads."""
    place = (layer.positions == position).nonzero()
    assert len(place) == layer.positions.shape[0] * layer.positions.shape[1]
    return tuple(rows[place.unbind(1)] for rows in (layer.keys, layer.values))


def test_rows_become_bytes_once(monkeypatch):
    encoded, counted = RowFormat.encoded, []

    def counting(form, rows):
        counted.append(rows.numel() // rows.shape[-1])
        return encoded(form, rows)

    monkeypatch.setattr(RowFormat, "encoded", counting)
    model = tiny_model()
    cache = small_policy("h2o").cache(model, storage=quantized())
    read(model, cache, (PROMPT,))
    counted.clear()
    read(model, cache, (1,))
    of_a_token = 2 * model.config.num_key_value_heads * model.config.num_hidden_layers
    assert sum(counted) == of_a_token


def test_the_last_positions_are_in_full_after_a_crop_too():
    model, plain, cache = both(turns=(PROMPT, 1, 1, 1))
    for each in (plain, cache):
        each.crop(-2)
    # The keys of later layers follow from what the first one attended to.
    exact, layer, kept = plain.policy_layers[0], cache.policy_layers[0], RESIDUAL - 2
    assert torch.equal(layer.keys[:, :, -kept:], exact.keys[:, :, -kept:])
    assert not torch.equal(layer.keys[:, :, -RESIDUAL:], exact.keys[:, :, -RESIDUAL:])
    read(model, cache, (1, 9))


def test_rows_of_a_padded_batch_are_quantised_as_if_alone():
    model, policy = tiny_model(), small_policy("restkv")
    ids, mask = padded([PROMPT, 30, 9])
    together = policy.cache(model, storage=quantized())
    places = (mask.cumsum(1) - 1).clamp(min=0)
    model(input_ids=ids, attention_mask=mask, position_ids=places, past_key_values=together)
    for row, length in enumerate((PROMPT, 30, 9)):
        alone = policy.cache(model, storage=quantized())
        model(input_ids=ids[row : row + 1, -length:], past_key_values=alone)
        for both_ways in zip(together.policy_layers, alone.policy_layers, strict=True):
            ours, theirs = (layer.keys[min(row, len(layer.keys) - 1)] for layer in both_ways)
            torch.testing.assert_close(ours[:, -theirs.shape[1] :], theirs)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_file_has_the_bytes_and_says_how_they_are_read(recipe, tmp_path):
    model, plain, cache = both(recipe, turns=(PROMPT, 1, 9))
    path = tmp_path / "cache.safetensors"
    cache.save(path)
    loaded = kvpolicy.load(path, model)

    assert loaded.storage == cache.storage == Quantized(bits=8, residual=RESIDUAL)
    assert loaded.report() == cache.report()
    with safe_open(path, framework="pt") as file:
        kinds = {file.get_tensor(name).dtype for name in file.keys()}  # noqa: SIM118
    assert torch.uint8 in kinds
    assert plain.nbytes > cache.nbytes


def test_a_file_of_a_storage_of_ones_own_is_refused(tmp_path):
    @attrs.frozen
    class Mine(Quantized):
        pass

    model = tiny_model()
    cache = small_policy("restkv").cache(model, storage=Mine())
    read(model, cache, (PROMPT,))
    with pytest.raises(InvalidComponentError, match="cannot be described"):
        cache.save(tmp_path / "cache.safetensors")


def test_a_file_that_asks_for_what_is_not_installed_is_refused(tmp_path, monkeypatch):
    model, _, cache = both()
    monkeypatch.setattr(type(cache.storage), "__attrs_post_init__", lambda self: None)
    hqq = Quantized(bits=8, backend="hqq", residual=RESIDUAL)
    object.__setattr__(cache.session, "storage", hqq)
    path = tmp_path / "cache.safetensors"
    cache.save(path)
    monkeypatch.undo()
    monkeypatch.setattr("kvpolicy.quantization.backends.find_spec", lambda name: None)
    with pytest.raises(CacheFileError, match=r"cannot be made here.*pip install hqq"):
        kvpolicy.load(path, model)


@pytest.mark.parametrize("backend", ["quanto", "hqq"])
def test_a_back_end_of_another_package_serves(backend):
    pytest.importorskip({"quanto": "optimum.quanto", "hqq": "hqq"}[backend])
    model, policy = tiny_model(), small_policy("restkv")
    caches = [
        policy.cache(model, storage=quantized(4) | {"backend": each})
        for each in ("minmax", backend)
    ]
    found = [torch.cat(read(model, each, (PROMPT, 1, 9, 1)), 1) for each in caches]
    plain = torch.cat(read(model, policy.cache(model), (PROMPT, 1, 9, 1)), 1)
    errors = [float((each - plain).abs().mean()) for each in found]
    assert 0 < errors[1] < 1.5 * errors[0]
    assert caches[0].nbytes == caches[1].nbytes


def test_batches_may_be_repeated_and_chosen_from():
    model, _, cache = both()
    cache.batch_repeat_interleave(2)
    cache.batch_select_indices(torch.tensor([1]))
    again = both(model=model)[2]
    for ours, theirs in zip(cache.policy_layers, again.policy_layers, strict=True):
        assert torch.equal(ours.keys, theirs.keys)
    model(input_ids=tokens(3, 2), past_key_values=cache)
