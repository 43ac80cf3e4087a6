"""An option that is accepted works, however extreme: no overflow, no NaN, no flood of memory.

`make test` draws a few examples, always the same; `make deep` draws others each time.
"""

from __future__ import annotations

import attrs
from hypothesis import example, given, reject, settings
from hypothesis import strategies as st

import kvpolicy
from kvpolicy.cache.eviction.one_layer import evicted
from kvpolicy.discovery.registry import installed
from kvpolicy.errors import ComponentFailedError, InvalidComponentError, KvpolicyError
from kvpolicy.kinds import PARTS
from kvpolicy.options import WIDEST
from kvpolicy.testing import observation, observations

TABLE = [[1.0, 2.0], [3.0, 4.0]]
IS_DEEP = settings.get_current_profile_name() == "deep"
EXAMPLES = settings().max_examples if IS_DEEP else 25


def sampled(*values):
    """Draw one of the values."""
    return st.sampled_from(values)


INTS = sampled(0, 1, 2, 3, 5, 7, WIDEST, WIDEST + 2, 2**31 - 1, 2**32 - 1, 2**53 - 1, 2**53)
FLOATS = sampled(0.0, 5e-324, 1e-45, 1e-38, 1e-8, 0.5, 1.0, 1e8, 3.4e38, 1e39, 1.7e308)
LAYERS_OF_HEADS = sampled(
    TABLE * 2, [[0.0, 5e-324]] * 4, [[1.7e308, 1.7e308]] * 4, [[0.0, 1.0]] * 4
)
NEEDED = {"importance": LAYERS_OF_HEADS, "layers": sampled([0], [3], [0, 2**53])}


@st.composite
def extreme(draw):
    """Draw parts that go together at random, with options at the ends of what they may be."""
    parts = {}
    for kind in PARTS:
        # The oracle needs the future, which a drawn layer has not.
        component = draw(
            st.sampled_from([each for each in installed(kind) if "oracle" not in each.name])
        )
        options = {
            name: draw(NEEDED[name] if name in NEEDED else _ends(default))
            for name, default in component.options.items()
            if name == "importance" or draw(sampled(True, False, False))
        }
        parts[kind] = {"name": component.name} | options
    budget = draw(st.one_of(st.integers(1, 40), FLOATS, INTS))
    recent = draw(sampled(None, 0, 1, 0.5, 0.99999999))
    group = draw(sampled("mean", "max", "sum"))
    order = draw(sampled(None, "before", "after"))
    return parts | {"budget": budget, "recent": recent, "group": group, "group_order": order}


def _ends(default):
    if isinstance(default, float):
        return FLOATS
    return INTS if type(default) is int else st.just(default)


@settings(max_examples=EXAMPLES, deadline=None, derandomize=not IS_DEEP)
@given(extreme(), st.data())
@example({"scorer": {"name": "rkv", "width": WIDEST}, "budget": 12}, None)
@example({"scorer": {"name": "forward", "rounds": 2**53}, "budget": 12}, None)
@example({"scorer": {"name": "replay", "hops": 32}, "budget": 12}, None)
@example({"scorer": "snapkv", "smoother": {"name": "pooling", "width": WIDEST}}, None)
def test_an_option_that_is_accepted_works_however_extreme_it_is(arguments, data):
    """Options may not fit a layer, which a part says; it never fails or gives what it must not."""
    try:
        policy = kvpolicy.compose(**arguments)
    except KvpolicyError:
        reject()
    layer = _layer(policy, data)
    try:
        evicted(policy, attrs.evolve(layer, state=policy.accumulate(layer)))
    except (ComponentFailedError, InvalidComponentError):
        raise
    except KvpolicyError:
        reject()


def _layer(policy, data):
    window = policy.scorer.window
    drawn = observations(window=None if window is None else min(window, 32))
    if data is None:
        return observation(positions=40)
    layer = data.draw(drawn)
    return attrs.evolve(layer, budget=policy.positions(layer.seen))
