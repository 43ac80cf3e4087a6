"""A storage is named with its options; what there is not is refused before the model is touched."""

import pytest

from kvpolicy.cache.storage.quantized import Quantized
from kvpolicy.errors import (
    InvalidComponentError,
    InvalidOptionError,
    InvalidValueError,
    KvpolicyError,
    UnknownComponentError,
)
from kvpolicy.exactness.usages import small_policy
from kvpolicy.testing.models import tiny_model


def test_options_are_given_beside_the_name():
    storage = {"name": "quantized", "residual": 9, "bits": 4}
    cache = small_policy("restkv").cache(tiny_model(), storage=storage)
    assert cache.storage == Quantized(bits=4, residual=9)


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        ({"storage": "quantised"}, UnknownComponentError, r"Did you mean 'quantized'\?"),
        ({"storage": ""}, UnknownComponentError, "Installed: offloaded, quantized"),
        ({"storage": 4}, InvalidComponentError, "must be a name, a mapping or a Storage"),
        ({"storage": Quantized}, InvalidComponentError, "must be a name, a mapping or a Storage"),
        ({"storage": {}}, InvalidValueError, "a mapping with a 'name'"),
        ({"storage": {"name": ["x"]}}, InvalidValueError, "a mapping with a 'name'"),
        (
            {"storage": {"name": "offloaded", "bits": 4}},
            InvalidOptionError,
            "'offloaded' has no option 'bits'",
        ),
        ({"storage": {"name": "quantized", "bit": 4}}, InvalidOptionError, "Did you mean 'bits'"),
        (
            {"storage": {"name": "quantized", "bits": 3}},
            InvalidValueError,
            "'bits' must be 4 or 8, not 3",
        ),
        (
            {"storage": {"name": "quantized", "bits": 4.0}},
            InvalidValueError,
            "must be 4 or 8, not 4.0",
        ),
        (
            {"storage": {"name": "quantized", "bits": "4"}},
            InvalidValueError,
            "must be 4 or 8, not '4'",
        ),
        (
            {"storage": {"name": "quantized", "bits": True}},
            InvalidValueError,
            "must be 4 or 8, not True",
        ),
        (
            {"storage": {"name": "quantized", "residual": -1}},
            InvalidValueError,
            "storage 'quantized': 'residual' must be at least 0, not -1",
        ),
        (
            {"storage": {"name": "quantized", "group": 0}},
            InvalidValueError,
            "'group' must be at least 1",
        ),
        (
            {"storage": {"name": "quantized", "backend": "quant"}},
            InvalidValueError,
            "Did you mean 'quanto'",
        ),
        (
            {"storage": {"name": "quantized", "backend": "quanto", "bits": 8}},
            InvalidValueError,
            "codes of 4 bits, not of 8",
        ),
    ],
)
def test_what_cannot_be_is_refused_with_a_sentence(options, error, sentence):
    model = tiny_model()
    before = model.config._attn_implementation
    with pytest.raises(error, match=sentence) as caught:
        small_policy("restkv").cache(model, **options)
    assert isinstance(caught.value, KvpolicyError)
    assert str(caught.value).endswith((".", "?"))
    assert model.config._attn_implementation == before
