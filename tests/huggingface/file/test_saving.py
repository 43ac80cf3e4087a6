"""A cache goes into a file and comes out as it was, for the same model and policy only."""

import json
import subprocess
import sys
from pathlib import Path

import attrs
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

import kvpolicy
from kvpolicy.errors import (
    CacheFileError,
    CacheStateError,
    InvalidComponentError,
    UnsupportedModelError,
)
from kvpolicy.exactness.usages import small_policy, tokens
from kvpolicy.exactness.usages.inputs import read
from kvpolicy.huggingface.file import container, loading
from kvpolicy.testing.models import tiny_model


@pytest.fixture
def path(tmp_path):
    return tmp_path / "cache.safetensors"


def saved(path, model=None, **policy):
    model = model or tiny_model()
    cache = small_policy(**{"recipe": "restkv"} | policy).cache(model)
    read(model, cache, (60, 1, 5))
    cache.save(path)
    return model, cache


def rewritten(path, change):
    """Change the JSON text of a file, and leave its tensors and digest."""
    with safe_open(path, framework="pt") as file:
        text = json.loads(file.metadata()["kvpolicy"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    change(text)
    save_file(tensors, path, {"kvpolicy": json.dumps(text)})


OTHERS = ("restkv", "h2o", "streamingllm")


def with_digest(path, change):
    """Change the text, and make the digest fit: what another program might write."""
    with safe_open(path, framework="pt") as file:
        text = json.loads(file.metadata()["kvpolicy"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    change(text)
    del text["digest"]
    text["digest"] = container._digest(text, tensors)
    save_file(tensors, path, {"kvpolicy": json.dumps(text)})


@pytest.mark.parametrize(
    "recipe", ["adakv", *(pytest.param(each, marks=pytest.mark.deep) for each in OTHERS)]
)
def test_another_process_goes_on_where_this_one_stood(recipe, path):
    model, cache = saved(path, recipe=recipe)
    script = (
        "import sys, torch, kvpolicy\n"
        "from kvpolicy.testing.models import tiny_model\n"
        "from kvpolicy.exactness.usages.inputs import read\n"
        "torch.set_num_threads(1)\n"
        "model = tiny_model()\n"
        "cache = kvpolicy.load(sys.argv[1], model)\n"
        "with torch.no_grad():\n"
        "    torch.save(read(model, cache, (1, 9, 1), first_seed=7), sys.argv[2])\n"
    )
    answer = path.with_name("answer.pt")
    environment = {"PYTHONPATH": ":".join(filter(None, sys.path))}
    subprocess.run([sys.executable, "-c", script, path, answer], env=environment, check=True)

    for found, expected in zip(
        torch.load(answer), read(model, cache, (1, 9, 1), first_seed=7), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_positions_policy_and_report_come_along(path):
    model, cache = saved(path)
    loaded = kvpolicy.load(path, model)

    assert loaded.policy == cache.policy
    for ours, theirs in zip(loaded.report().layers, cache.report().layers, strict=True):
        # A file has no room for the tokens to come.
        assert ours.nbytes <= theirs.nbytes
        assert attrs.evolve(ours, nbytes=0) == attrs.evolve(theirs, nbytes=0)
    for ours, theirs in zip(loaded.positions, cache.positions, strict=True):
        assert torch.equal(ours, theirs)


def test_the_cache_that_was_saved_goes_on(path):
    model, cache = saved(path)
    twin = cache.clone()
    for a, b in zip(read(model, cache, (1, 9)), read(model, twin, (1, 9)), strict=True):
        assert torch.equal(a, b)


def test_a_padded_batch_and_remembered_queries_come_along(path):
    model = tiny_model()
    cache = small_policy("snapkv", every=4).cache(model)
    mask = torch.ones(2, 60).long()
    mask[1, :45] = 0
    model(input_ids=tokens(0, 60, 2) * mask, attention_mask=mask, past_key_values=cache)
    turns = []
    for turn in range(2):
        mask = torch.cat([mask, torch.ones(2, 1).long()], 1)
        turns.append({"input_ids": tokens(1 + turn, 1, 2), "attention_mask": mask})
    model(**turns[0], past_key_values=cache)
    cache.save(path)
    loaded = kvpolicy.load(path, model)

    for each in (cache, loaded):
        each.logits = model(**turns[1], past_key_values=each).logits
    assert torch.equal(loaded.logits, cache.logits)


@pytest.mark.parametrize(
    ("family", "options", "named"),
    [
        ("llama", {"seed": 1}, "weights differ"),
        ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, "config diff"),
        ("mistral", {}, "a LlamaForCausalLM whose class and config"),
    ],
)
def test_a_file_of_another_model_is_refused(family, options, named, path):
    saved(path)
    with pytest.raises(CacheFileError, match=named):
        kvpolicy.load(path, tiny_model(family, **options))


def test_a_model_of_another_precision_is_another_model(path):
    saved(path)
    with pytest.raises(CacheFileError, match="weights differ"):
        kvpolicy.load(path, tiny_model().to(torch.bfloat16))


def test_another_version_of_a_plugin_is_refused(path):
    model, _ = saved(path)
    with_digest(path, lambda text: text["parts"].update(scorer="restkv, kvpolicy 9.9.9"))
    with pytest.raises(CacheFileError, match=r"scorer restkv, kvpolicy 9\.9\.9; installed is rest"):
        kvpolicy.load(path, model)


def test_a_policy_that_is_not_installed_is_refused(path):
    model, _ = saved(path)
    with_digest(path, lambda text: text["policy"]["scorer"].update(name="retskv"))
    with pytest.raises(CacheFileError, match=r"cannot be made here.*Did you mean 'restkv'"):
        kvpolicy.load(path, model)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.9, 0.999])
def test_a_truncated_file_is_refused(share, path):
    model, _ = saved(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(CacheFileError, match="is not a complete cache file"):
        kvpolicy.load(path, model)


def test_a_file_that_was_changed_is_refused(path):
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
def test_what_no_version_wrote_is_refused(change, path):
    model, _ = saved(path)
    with_digest(path, change)
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
def test_what_is_no_model_of_transformers_is_named(model, path):
    saved(path)
    with pytest.raises(UnsupportedModelError, match="needs a transformers PreTrainedModel"):
        kvpolicy.load(path, model)


def test_modes_of_pytorch_change_nothing(path):
    model, _ = saved(path)
    with torch.inference_mode():
        kvpolicy.load(path, model).save(path)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            loaded = kvpolicy.load(path, model)
    finally:
        torch.set_default_dtype(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        loaded.save(path)
    assert kvpolicy.load(path, model).get_seq_length() == 66


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(CacheFileError, match="there is no folder"):
        saved(tmp_path / "no" / "where.safetensors")


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
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


def test_a_failed_write_leaves_the_old_file(path, monkeypatch):
    _, cache = saved(path)
    whole = path.read_bytes()

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(container, "save_file", full)
    with pytest.raises(CacheFileError, match="No space left"):
        cache.save(path)
    assert path.read_bytes() == whole
    assert list(path.parent.iterdir()) == [path]


def test_a_policy_with_parts_of_ones_own_is_refused_before_anything_is_written(path):
    @attrs.frozen
    class Mine:
        def select(self, scores, budgets):
            return small_policy("restkv").selector.select(scores, budgets)

    model = tiny_model()
    cache = attrs.evolve(small_policy("restkv"), selector=Mine()).cache(model)
    read(model, cache, (60,))
    with pytest.raises(InvalidComponentError):
        cache.save(path)
    assert not Path(path).exists()


def test_a_failed_cache_is_not_saved(path):
    model = tiny_model()
    cache = small_policy("restkv").cache(model)
    cache.session.guard.failure = "on purpose"
    with pytest.raises(CacheStateError, match="on purpose"):
        cache.save(path)
    assert model is not None


def test_a_cache_whose_model_is_gone_says_so(path):
    cache = small_policy("restkv").cache(tiny_model())
    with pytest.raises(CacheStateError, match="no longer exists"):
        cache.save(path)
