"""Calls are timed in turns; those that fail have a reason in place of a timing."""

import time

import torch

from benchmarks.timing import Timing, interleaved, ratio, timed

CPU = torch.device("cpu")


def test_calls_are_timed_in_turns_and_those_that_fail_are_left_out():
    called = []

    def too_large():
        called.append("c")
        raise torch.OutOfMemoryError("no 3 GiB")

    def wrong():
        called.append("d")
        raise TypeError("wrong\nand more")

    calls = {"a": lambda: called.append("a"), "b": lambda: called.append("b")}
    timings = interleaved(calls | {"c": too_large, "d": wrong}, CPU, repeats=3, warmup=1)

    assert "".join(called) == "abcd" + "ab" * 3
    assert timings["c"] == ratio(timings["a"], timings["c"]) == "out of memory: no 3 GiB"
    assert timings["d"] == "failed: TypeError: wrong"
    assert len(timings["a"].seconds) == 3
    assert ratio(timings["a"], timings["a"]) == 1


def test_without_time_each_call_is_still_timed_once():
    timings = interleaved({"a": int, "b": int}, CPU, repeats=5, limit=0.0)
    assert [len(timing.seconds) for timing in timings.values()] == [1, 1]


def test_a_ratio_is_of_medians_or_of_what_it_is_told():
    slow, fast = Timing((4.0, 6.0, 8.0), (1.0,)), Timing((1.0, 2.0, 3.0), (1.0,))
    assert ratio(slow, fast) == 3
    assert ratio(slow, fast, lambda timing: timing.minimum) == 4


def test_calls_that_were_timed_together_share_their_time():
    assert Timing((4.0, 8.0), (2.0, 2.0)).each_of(4) == Timing((1.0, 2.0), (0.5, 0.5))


def test_a_clock_of_the_process_does_not_count_what_it_sleeps():
    seconds, _ = timed(lambda: time.sleep(0.05), CPU, clock=time.process_time)
    assert seconds < 0.04
