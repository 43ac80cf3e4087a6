"""Every installed part keeps every promise of its kind."""

import pytest
from hypothesis import settings

from kvpolicy.discovery.registry import installed
from kvpolicy.evaluation.recording import Future
from kvpolicy.testing import PROMISES

# Drawn layers have one, two or three key/value heads. In this table all layers weigh the same.
TABLE = [[1, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1], [0, 0, 21, 0, 0, 0], [3.5] * 6]


class Repeats:
    """A future for any layer: its newest token, once more."""

    def future_of(self, layer):
        newest = (slice(None), slice(None), slice(-1, None))
        return Future(
            queries=layer.queries[newest], keys=layer.keys[newest], values=layer.values[newest]
        )


NEEDED = {"headkv": {"importance": TABLE}, "oracle": {"future": Repeats()}}
# `make test` has the contracts of the plugins. Here it only shows that this test runs.
IS_DEEP = settings.get_current_profile_name() == "deep"
PARTS = [part for part in installed() if IS_DEEP or part.plugin == "core"]


@pytest.mark.parametrize(
    ("part", "promise"),
    [
        pytest.param(part, promise, id=f"{part.kind}-{part.name}-{promise.name}")
        for part in PARTS
        for promise in PROMISES[part.kind]
    ],
)
def test_every_part_keeps_its_promises(part, promise, profile, count):
    component = part.build(**NEEDED.get(part.name, {}))
    ran = promise.tried(component, profile)
    count(f"promise, by {len(PARTS)} parts:", f"{part.kind} {promise.name}", number=ran)
