"""What is no whole cache file of this model is refused, with a sentence."""

import json

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import kvpolicy
from kvpolicy.errors import CacheFileError, UnsupportedModelError
from kvpolicy.huggingface.file import container, loading
from kvpolicy.testing.models import tiny_model


@pytest.mark.parametrize(
    ("family", "options", "named"),
    [
        ("llama", {"seed": 1}, "weights differ"),
        ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, "config diff"),
        ("mistral", {}, "a LlamaForCausalLM whose class and config"),
    ],
)
def test_a_file_of_another_model_is_refused(family, options, named, path, saved):
    saved(path)
    with pytest.raises(CacheFileError, match=named):
        kvpolicy.load(path, tiny_model(family, **options))


def test_a_model_of_another_precision_is_another_model(path, saved):
    saved(path)
    with pytest.raises(CacheFileError, match="weights differ"):
        kvpolicy.load(path, tiny_model().to(torch.bfloat16))


def test_another_version_of_a_plugin_is_refused(path, saved, edit):
    model, _ = saved(path)
    edit(path, lambda text, tensors: text["parts"].update(scorer="restkv, kvpolicy 9.9.9"))
    with pytest.raises(CacheFileError, match=r"scorer restkv, kvpolicy 9\.9\.9; installed is rest"):
        kvpolicy.load(path, model)


def test_a_policy_that_is_not_installed_is_refused(path, saved, edit):
    model, _ = saved(path)
    edit(path, lambda text, tensors: text["policy"]["scorer"].update(name="retskv"))
    with pytest.raises(CacheFileError, match=r"cannot be made here.*Did you mean 'restkv'"):
        kvpolicy.load(path, model)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.9, 0.999])
def test_a_truncated_file_is_refused(share, path, saved):
    model, _ = saved(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(CacheFileError, match="is not a complete cache file"):
        kvpolicy.load(path, model)


def test_a_file_that_was_changed_is_refused(path, saved):
    model, _ = saved(path)
    whole = bytearray(path.read_bytes())
    whole[-5] ^= 1
    path.write_bytes(whole)
    with pytest.raises(CacheFileError, match="is damaged"):
        kvpolicy.load(path, model)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.update(layers=[]),
        lambda text: text.update(layers=text["layers"][:1]),
        lambda text: text.update(kinds=["StaticLayer"] * 2),
        lambda text: text["layers"][0].update(update=3),
        lambda text: text["layers"].__setitem__(0, {"os.system": []}),
        lambda text: text["layers"][0]["contents"].pop("keys"),
        lambda text: text["layers"][0]["contents"].update(keys={"tensor": "nowhere"}),
        lambda text: text["layers"][0]["contents"]["slots"].update(lengths=[True]),
        lambda text: text["layers"][0]["schedule"].update(every=7),
        lambda text: text["layers"].__setitem__(0, 7),
        lambda text: text.update(policy=None),
        lambda text: text.pop("model"),
        lambda text: text.update(model=3),
        lambda text: text.update(parts=3),
    ],
)
def test_what_no_version_wrote_is_refused(change, path, saved, edit):
    model, _ = saved(path)
    edit(path, lambda text, tensors: change(text))
    with pytest.raises(CacheFileError):
        kvpolicy.load(path, model)


@pytest.mark.parametrize("content", [b"", b"{}", b"\x08" + b"\0" * 7 + b"{}      ", b"PK\x03\x04"])
def test_other_files_are_refused(content, path):
    path.write_bytes(content)
    with pytest.raises(CacheFileError):
        kvpolicy.load(path, tiny_model())


def test_a_safetensors_file_of_another_kind_is_refused(path):
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(CacheFileError, match=r"no cache file of this version.*kvpolicy\.save"):
        kvpolicy.load(path, tiny_model())


def test_a_file_that_is_not_there_is_named(path):
    with pytest.raises(CacheFileError, match="there is no file"):
        kvpolicy.load(path, tiny_model())


@pytest.mark.parametrize("model", [None, "gpt2", torch.nn.Linear(2, 2)], ids=repr)
def test_what_is_no_model_of_transformers_is_named(model, path, saved):
    saved(path)
    with pytest.raises(UnsupportedModelError, match="needs a transformers PreTrainedModel"):
        kvpolicy.load(path, model)


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, saved):
    """A model, and what is in a file of it."""
    path = tmp_path_factory.mktemp("whole") / "cache.safetensors"
    model, _ = saved(path)
    text, tensors = container.read(path)
    return model, tensors, text


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(junk=JUNK, key=st.sampled_from(["policy", "parts", "model", "kinds", "layers"]))
def test_junk_in_a_file_is_refused_with_a_sentence(junk, key, whole, monkeypatch):
    model, tensors, text = whole
    text = {**text, key: junk}
    monkeypatch.setattr(loading, "read", lambda path: (text, tensors))
    with pytest.raises(CacheFileError, match=r"\."):
        kvpolicy.load("junk", model)


def _inner(fields):
    """The mappings within a mapping, all the way down."""
    for each in fields.values():
        if isinstance(each, dict) and set(each) != {"tensor"}:
            yield each
            yield from _inner(each)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_junk_in_a_layer_is_refused_with_a_sentence(data, whole, monkeypatch):
    model, tensors, text = whole
    layers = json.loads(json.dumps(text["layers"]))
    fields = data.draw(st.sampled_from([layers[0], *_inner(layers[0])]))
    fields[data.draw(st.sampled_from(sorted(fields)))] = data.draw(JUNK)
    text = {**text, "layers": layers}
    monkeypatch.setattr(loading, "read", lambda path: (text, tensors))
    try:
        cache = kvpolicy.load("junk", model)
    except CacheFileError:
        pass
    else:
        assert cache.positions[0].shape[-1] <= cache.get_seq_length()
