"""Every promise of `kvpolicy.testing`, made by every part that is installed."""

import pytest
from hypothesis import settings

from kvpolicy.discovery.registry import installed
from kvpolicy.evaluation.recording import Future
from kvpolicy.testing import PROMISES

# Drawn layers have one, two or three key/value heads; in this table all layers matter as much.
TABLE = [[1, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1], [0, 0, 21, 0, 0, 0], [3.5] * 6]


class Repeats:
    """A future that fits every layer: its newest token comes once more."""

    def future_of(self, layer):
        newest = (slice(None), slice(None), slice(-1, None))
        return Future(
            queries=layer.queries[newest], keys=layer.keys[newest], values=layer.values[newest]
        )


NEEDED = {"headkv": {"importance": TABLE}, "oracle": {"future": Repeats()}}
# The plugins' own contracts are in `make test`; here, that this runs.
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
