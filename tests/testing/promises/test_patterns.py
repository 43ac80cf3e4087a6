"""Each promise of a prefill pattern catches one that breaks it."""

import sys
from pathlib import Path

from kvpolicy.prefill import AShape

sys.path.insert(0, str(Path(__file__).parent))
from faulty_parts import promises_catch, promises_hold


class FloatPattern(AShape):
    def choose(self, queries, keys, **how):
        return super().choose(queries, keys, **how).float()


class ChangingPattern(AShape):
    def choose(self, queries, keys, **how):
        keys.add_(1)
        return super().choose(queries, keys, **how)


class MinglingPattern(AShape):
    def choose(self, queries, keys, **how):
        chosen = super().choose(queries, keys, **how).expand(len(keys), -1, -1, -1)
        return chosen & (keys.mean() > keys.mean((1, 2, 3), keepdim=True))


class HastyPattern(AShape):
    dense_up_to = 10_000


test_a_promise_catches_a_part_that_breaks_it = promises_catch(
    "prefill_pattern",
    {
        "chooses_blocks_for_every_head": FloatPattern(sinks=4, local=8, block=4),
        "chooses_the_same_twice": ChangingPattern(sinks=4, local=8, block=4),
        "chooses_for_each_row_as_if_alone": MinglingPattern(sinks=4, local=8, block=4),
        "leaves_nothing_out_of_a_short_prompt": HastyPattern(sinks=4, local=8, block=64),
    },
)
test_a_blameless_part_keeps_every_promise = promises_hold(
    "prefill_pattern", AShape(sinks=4, local=8, block=4)
)
