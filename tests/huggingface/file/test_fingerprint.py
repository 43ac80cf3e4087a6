"""A model is known by all its numbers and settings, and by nothing else."""

import copy
import json

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import kvpolicy
from kvpolicy.errors import CacheFileError
from kvpolicy.exactness.usages import small_policy
from kvpolicy.exactness.usages.inputs import read
from kvpolicy.huggingface.file.fingerprint import differences, fingerprint
from kvpolicy.testing.models import tiny_model


def known(model):
    """The fingerprint as it comes out of a file."""
    return json.loads(json.dumps(fingerprint(model)))


def attention(model):
    return model.model.layers[0].self_attn


@pytest.fixture(scope="module")
def plain():
    model = tiny_model()
    return model, known(model)


@settings(
    max_examples=max(1, settings().max_examples // 5),  # each reads the whole model twice
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    deadline=None,
)
@given(data=st.data())
def test_every_number_of_every_tensor_counts(data, plain):
    model, before = plain
    owned = dict(model.named_parameters()) | dict(model.named_buffers())
    tensor = owned[data.draw(st.sampled_from(sorted(owned)))].data.view(-1)
    at = data.draw(st.integers(0, tensor.numel() - 1))
    kept = tensor[at].clone()
    tensor[at] += 1e-3
    try:
        assert differences(before, model) == ["weights"]
    finally:
        tensor[at] = kept
    assert differences(before, model) == []


def _row(model):
    model.model.layers[1].mlp.down_proj.weight.data[5] += 1


def _swap_layers(model):
    layers = model.model.layers
    layers[0], layers[1] = layers[1], layers[0]


def _share(model):
    model.model.layers[1].mlp = model.model.layers[0].mlp


def _scale_of_a_tensor(model):
    attention(model).v_proj.weight.scale = torch.tensor(2.0)


CHANGES = {
    "row": _row,
    "last number": lambda model: model.lm_head.weight.data.view(-1)[-1:].add_(1e-6),
    "numpy": lambda model: model.lm_head.weight.detach().numpy().__setitem__((0, 0), 7.0),
    "frequencies": lambda model: model.model.rotary_emb.inv_freq.mul_(0.5),
    "one frequency": lambda model: model.model.rotary_emb.inv_freq[-1:].mul_(1.0001),
    "buffer": lambda model: model.register_buffer("more", torch.ones(2)),
    "bias": lambda model: setattr(
        model.lm_head, "bias", torch.nn.Parameter(torch.zeros(model.config.vocab_size))
    ),
    "layers swapped": _swap_layers,
    "module shared": _share,
    "epsilon": lambda model: setattr(model.model.norm, "variance_epsilon", 1e-3),
    "attention's scaling": lambda model: setattr(attention(model), "scaling", 1.0),
    "activation": lambda model: setattr(model.model.layers[0].mlp, "act_fn", torch.nn.ReLU()),
    "scale of a tensor": _scale_of_a_tensor,
    "precision": lambda model: model.bfloat16(),
    "precision of a layer": lambda model: model.model.layers[1].double(),
    "training adapters": lambda model: attention(model).q_proj.register_parameter(
        "lora", torch.nn.Parameter(torch.zeros(2))
    ),
    "config": lambda model: setattr(model.config, "rms_norm_eps", 1e-3),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_model_is_another_one(change, plain):
    model, before = copy.deepcopy(plain[0]), plain[1]
    with torch.no_grad():
        CHANGES[change](model)
    assert differences(before, model)


def _read_more(model):
    cache = small_policy("snapkv").cache(model)
    read(model, cache, (300, 1))
    return cache


def _clean(model):
    model.requires_grad_(requires_grad=False)
    for module in model.modules():
        if hasattr(module, "gradient_checkpointing"):
            module.gradient_checkpointing = True


SAME = {
    "copied": lambda model: None,
    "with an open cache": _read_more,
    "with a closed cache": lambda model: _read_more(model).close(),
    "without gradients": _clean,
    "with other strides": lambda model: setattr(
        attention(model).v_proj.weight, "data", attention(model).v_proj.weight.data.T.clone().T
    ),
    "with equal weights that are not tied": lambda model: setattr(
        model.lm_head, "weight", torch.nn.Parameter(model.lm_head.weight.detach().clone())
    ),
    "with frequencies of another device": lambda model: model.model.rotary_emb.inv_freq.mul_(
        1 + 2e-7
    ),
}


@pytest.mark.parametrize("change", SAME)
@pytest.mark.parametrize("rope", ["default", "dynamic"])
def test_an_equal_model_is_the_same_one(change, rope):
    kinds = {"default": {}, "dynamic": {"factor": 2.0}}
    parameters = {"rope_type": rope, "rope_theta": 1e4, **kinds[rope]}
    model = tiny_model(
        rope_parameters=parameters, max_position_embeddings=128, tie_word_embeddings=True
    )
    before = known(model)
    other = copy.deepcopy(model)
    with torch.no_grad():
        kept = SAME[change](other)
    # transformers before 5.13 never goes back to the frequencies of short texts, so after a long
    # one the model truly is another.
    stays_grown = hasattr(other.model.rotary_emb, "None_max_seq_len_cached")
    assert differences(before, other) == (["weights"] if stays_grown else [])
    del kept


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_a_model_from_disk_is_the_same_one(family, tmp_path):
    model = tiny_model(family)
    model.save_pretrained(tmp_path)
    assert differences(known(model), type(model).from_pretrained(tmp_path)) == []


def test_another_attention_implementation_is_no_other_model():
    assert differences(known(tiny_model()), tiny_model(attn_implementation="eager")) == []


def test_a_model_in_chunks_is_the_same_one():
    model = tiny_model()
    before = known(model)
    with kvpolicy.chunked_mlp(model, tokens=16):
        assert differences(before, model) == []


@pytest.mark.parametrize("name", ["weight", "buffer"])
def test_a_tensor_without_numbers_is_refused_in_one_sentence(name, path, saved):
    model, _ = saved(path)
    if name == "weight":
        model.lm_head.to("meta")
    else:
        model.register_buffer("more", torch.ones(2, device="meta"))
    whole = path.read_bytes()
    with pytest.raises(CacheFileError, match="is on the meta device"):
        kvpolicy.load(path, model)
    cache = small_policy("snapkv").cache(model)
    with pytest.raises(CacheFileError, match="is on the meta device"):
        cache.save(path)
    assert path.read_bytes() == whole
    assert list(path.parent.iterdir()) == [path]


def test_numbers_are_read_only_if_the_configuration_is_the_same(plain, monkeypatch):
    monkeypatch.setattr(
        "kvpolicy.huggingface.file.fingerprint.fingerprint", lambda model: pytest.fail("read")
    )
    assert differences(plain[1], tiny_model("mistral")) == ["class", "config"]


JUNK = [None, 3, "x", [], {}, {"model.rotary": None}, [1.0], {"model.model.rotary_emb.inv_freq": 3}]


@pytest.mark.parametrize("junk", JUNK, ids=repr)
@pytest.mark.parametrize("part", ["weights", "settings", "tables"])
def test_junk_is_another_model(part, junk, plain):
    assert differences({**plain[1], part: junk}, plain[0])
