"""What is in a file, and what is refused before it is understood."""

import gc
import json
import re
import struct
from itertools import pairwise

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import kvpolicy
from kvpolicy.errors import CacheFileError
from kvpolicy.exactness.usages import small_policy
from kvpolicy.exactness.usages.inputs import read
from kvpolicy.huggingface.file import container
from kvpolicy.testing.models import tiny_model


def raw(path, header, data=b""):
    """Write a file of the form of safetensors."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def with_text(path, text):
    raw(path, {"__metadata__": {"kvpolicy": text}})


TEXTS = {
    "brackets": "[" * 10**6 + "]" * 10**6,
    "open brackets": "[" * 10**6,
    "braces": '{"a":' * 10**5 + "1" + "}" * 10**5,
    "nested format": '{"format": ' + "[" * 500 + "]" * 500 + "}",
    "nested layers": f'{{"format": "{container.FORMAT}", "layers": ' + "[" * 900 + "]" * 900 + "}",
    "deeply nested layers": f'{{"format": "{container.FORMAT}", "layers": '
    + "[" * 10**5
    + "]" * 10**5
    + "}",
    "list as format": '{"format": [1]}',
    "long format": json.dumps({"format": "x" * 10**5}),
    "digits": "1" * 10**5,
    "digits in layers": f'{{"format": "{container.FORMAT}", "layers": {"1" * 10**5}}}',
    "not a number": '{"format": NaN}',
    "lone surrogate": '"\\udcff"',
    "no digest": f'{{"format": "{container.FORMAT}"}}',
    "digest of another type": f'{{"format": "{container.FORMAT}", "digest": [1]}}',
    "nothing": "",
    "zero byte": "\0",
}


@pytest.fixture
def no_collection():
    """Garbage of other tests must not be collected where the stack is full: its finalizers fail."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collection")
@pytest.mark.parametrize("text", TEXTS)
def test_any_text_is_refused_with_a_short_sentence(text, path):
    with_text(path, TEXTS[text])
    with pytest.raises(CacheFileError) as raised:
        kvpolicy.load(path, tiny_model())
    message = str(raised.value).replace(str(path), "")
    assert message.endswith(".")
    assert "\n" not in message
    assert len(message) < 700


TENSOR = {"shape": [2], "data_offsets": [0, 8]}
HEADERS = {
    "nested": b"[" * 10**6,
    "nested tensor": b'{"a":' + b"[" * 10**5 + b"]" * 10**5 + b"}",
    "no object": b"[]",
    "not UTF-8": b'{"\xff": 1}',
    "unknown dtype": {"a": TENSOR | {"dtype": "F3"}},
    "negative shape": {"a": TENSOR | {"dtype": "F32", "shape": [-2]}},
    "huge shape": {"a": TENSOR | {"dtype": "F32", "shape": [2**62, 2**62]}},
    "another length": {"a": TENSOR | {"dtype": "F32", "shape": [3]}},
    "offsets beyond the end": {"a": TENSOR | {"dtype": "F32", "data_offsets": [8, 16]}},
    "offsets backwards": {"a": TENSOR | {"dtype": "F32", "data_offsets": [8, 0]}},
    "overlap": {"a": TENSOR | {"dtype": "F32"}, "b": TENSOR | {"dtype": "F32"}},
    "metadata of numbers": {"__metadata__": {"kvpolicy": 3}},
    "metadata as list": {"__metadata__": []},
}


@pytest.mark.parametrize("header", HEADERS)
def test_any_header_is_refused_with_a_short_sentence(header, path):
    raw(path, HEADERS[header], b"\0" * 8)
    with pytest.raises(CacheFileError) as raised:
        kvpolicy.load(path, tiny_model())
    message = str(raised.value).replace(str(path), "")
    assert "\n" not in message
    assert len(message) < 700


@pytest.mark.parametrize("dtype", ["F4", "F6_E2M3", "F6_E3M2", "F8_E8M0", "C64", "BOOL", "U64"])
def test_kinds_of_numbers_that_nobody_saves_are_refused(dtype, path):
    bits = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "F8_E8M0": 8, "BOOL": 8}.get(dtype, 64)
    size = 8 * bits // 8
    raw(path, {"a": {"dtype": dtype, "shape": [8], "data_offsets": [0, size]}}, b"\0" * size)
    with pytest.raises(CacheFileError):
        kvpolicy.load(path, tiny_model())


@pytest.mark.parametrize("size", [2**63, 2**64 - 1, 10**8 + 1, 17])
def test_a_header_of_another_size_is_refused(size, path):
    path.write_bytes(struct.pack("<Q", size) + b"{}")
    with pytest.raises(CacheFileError, match="is not a complete cache file"):
        kvpolicy.load(path, tiny_model())


@pytest.mark.parametrize("version", [1, 2])
def test_a_file_of_an_older_version_is_refused_by_name(version, path):
    with_text(path, json.dumps({"format": f"kvpolicy-cache-{version}"}))
    with pytest.raises(
        CacheFileError, match=f"older version of kvpolicy .kvpolicy-cache-{version}"
    ):
        kvpolicy.load(path, tiny_model())


def test_a_file_is_refused_at_every_length_but_its_own(path, saved):
    model, _ = saved(path)
    whole = path.read_bytes()
    ends = sorted({*range(0, len(whole), len(whole) // 40), 7, 8, 9, len(whole) - 1})
    for end in ends:
        path.write_bytes(whole[:end])
        with pytest.raises(CacheFileError):
            kvpolicy.load(path, model)
    path.write_bytes(whole + b"\0")
    with pytest.raises(CacheFileError):
        kvpolicy.load(path, model)


def test_an_option_that_is_no_plain_data_is_refused(path, saved, monkeypatch):
    model, cache = saved(path)
    whole = path.read_bytes()
    for odd in (object(), 10**5000, {1j: 2}):
        monkeypatch.setattr(type(cache.session.policy), "to_dict", lambda self, odd=odd: {"a": odd})
        with pytest.raises(CacheFileError, match="no plain data"):
            cache.save(path)
    assert path.read_bytes() == whole
    assert model is not None


def _strings(data):
    """Yield every key and every string of JSON data, with whether it is a key."""
    if isinstance(data, dict):
        for key, value in data.items():
            yield key, True
            yield from _strings(value)
    elif isinstance(data, list):
        for each in data:
            yield from _strings(each)
    elif isinstance(data, str):
        yield data, False


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
@pytest.mark.parametrize("storage", [None, "offloaded", {"name": "quantized", "residual": 9}])
@pytest.mark.parametrize("recipe", ["restkv", "h2o", "adakv"])
def test_a_file_names_no_private_attribute_and_no_class_path(recipe, storage, family, path):
    model = tiny_model(family)
    cache = small_policy(recipe, every=4).cache(model, storage=storage)
    read(model, cache, (60, 1, 1))
    cache.save(path)
    with safe_open(path, framework="pt") as file:
        assert set(file.metadata()) == {"kvpolicy"}
        text = json.loads(file.metadata()["kvpolicy"])
        names = list(file.keys())
    tables = text["model"].pop("tables")  # the names of the model's own modules
    assert all(name.startswith("model.") for name in tables)
    found = [*_strings(text), *((name, False) for name in names)]
    assert len(found) > 50
    for each, is_key in found:
        assert not (is_key and each.startswith("_"))
        assert "._" not in each
        # A path of Python: a package, a point, and a name.
        assert not re.search(r"\b(kvpolicy\w*|torch|transformers|builtins|__main__)[.:]\w", each)
    assert all(a != b for a, b in pairwise(sorted(names)))


def test_a_file_of_zeros_of_any_other_program_is_refused(path):
    save_file({"keys": torch.zeros(2, 2)}, path, {"format": "pt"})
    with pytest.raises(CacheFileError, match="no cache file of this version"):
        kvpolicy.load(path, tiny_model())
