"""An option that a part refuses raises a KvpolicyError, also where the part is built directly."""

import attrs
import pytest

import kvpolicy
from kvpolicy.cache.storage.offloaded import Offloaded
from kvpolicy.cache.storage.quantized import Quantized
from kvpolicy.errors import KvpolicyError
from kvpolicy.prefill import AShape, VerticalSlash

HUGE = 10**400
ODD = [None, True, -1, 0, 1.5, 2, HUGE, float("inf"), "x", b"x", [], {}, [[1.0], [2.0, 3.0]], len]
"""Values of which an option takes some and refuses the others."""
WRONG = [object(), -2, -HUGE, float("nan"), float("-inf"), -0.5, {1: 2}, [object()]]
"""Values that no option of ours takes."""


class Future:
    def future_of(self, observation):
        raise NotImplementedError


NEEDED = {
    "importance": [[1.0]],
    "future": Future(),
    "folder": "data",
}
"""Options without a default, in the plainest form."""

OFFERS = [part.offer for part in kvpolicy.installed() if part.kind != "recipe"]
CHOSEN = {offer.func: offer.keywords for offer in OFFERS if hasattr(offer, "func")}
"""Several tasks are one class with other options: those of one of them."""


def classes():
    assert len(OFFERS) > 20
    found = [getattr(offer, "func", offer) for offer in OFFERS]
    return list(dict.fromkeys([*found, AShape, VerticalSlash, Quantized, Offloaded]))


OPTIONS = [
    pytest.param(each, field.name, id=f"{each.__name__}.{field.name}")
    for each in classes()
    for field in attrs.fields(each)
]


def build(part, **options):
    chosen = CHOSEN.get(part, {})
    required = {
        each.name: NEEDED[each.name]
        for each in attrs.fields(part)
        if each.default is attrs.NOTHING and each.name not in chosen
    }
    return part(**required | chosen | options)


def test_every_installed_part_is_an_attrs_class():
    assert all(attrs.has(each) for each in classes())


def refusal(part, **options):
    """What a part says of options that it refuses; None for those that it takes."""
    try:
        build(part, **options)
    except KvpolicyError as error:
        return str(error)
    return None


@pytest.mark.parametrize(("part", "option"), OPTIONS)
def test_a_refused_option_is_a_kvpolicy_error(part, option):
    messages = [refusal(part, **{option: value}) for value in ODD]
    assert all(message is None or option in message for message in messages), messages


@pytest.mark.parametrize(("part", "option"), OPTIONS)
def test_what_no_option_takes_is_refused_by_name(part, option):
    for value in WRONG:
        with pytest.raises(KvpolicyError, match=repr(option)):
            build(part, **{option: value})
