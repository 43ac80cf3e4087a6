"""Caches are exact in any order of turns, crops, reorders, repeats, clones, files and resets."""

from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from kvpolicy.exactness.machine import CacheMachine


def test_caches_are_exact_whatever_is_done_to_them(profile, count):
    class Counted(CacheMachine):
        def teardown(self):
            super().teardown()
            count("machine:", "runs", number=bool(self.talks))
            for step, number in self.done.items():
                count("in them:", step, "within", number)

    runs = settings(profile, max_examples=max(10, profile.max_examples), stateful_step_count=20)
    run_state_machine_as_test(Counted, settings=runs)
