"""Each promise of a storage catches one that breaks it."""

import copy
import sys
from pathlib import Path

import attrs

from kvpolicy.cache.storage.offloaded import Offloaded

sys.path.insert(0, str(Path(__file__).parent))
from faulty_parts import promises_catch, promises_hold


class ForgetfulStorage(Offloaded):
    def load(self, stored):
        contents = super().load(stored)
        contents.slots.known = contents.slots.positions.int() - 1
        return contents


class WearingStorage(Offloaded):
    def store(self, contents, before):
        contents.keys.buffer.mul_(0.5)
        return super().store(contents, before)


class StaleStorage(Offloaded):
    def extend(self, stored, contents):
        pass


@attrs.define
class UnmovedContents:
    layout: object
    row_nbytes = 1
    nbytes = 1

    def select_rows(self, batch):
        pass

    def forget_last(self, count):
        pass


class UnmovedStorage(Offloaded):
    form = UnmovedContents

    def store(self, contents, before):
        return UnmovedContents(contents)

    def load(self, stored):
        return copy.deepcopy(stored.layout)


test_a_promise_catches_a_part_that_breaks_it = promises_catch(
    "storage",
    {
        "loads_the_tokens_that_were_stored": ForgetfulStorage(),
        "loses_nothing_more_when_it_stores_again": WearingStorage(),
        "adds_new_rows_and_leaves_the_others": StaleStorage(),
        "moves_kept_rows_as_they_are": WearingStorage(),
        "follows_the_rows_of_the_batch": UnmovedStorage(),
        "forgets_the_last_tokens": UnmovedStorage(),
        "says_what_goes_into_a_file": UnmovedStorage(),
    },
)
test_a_blameless_part_keeps_every_promise = promises_hold("storage", Offloaded())
