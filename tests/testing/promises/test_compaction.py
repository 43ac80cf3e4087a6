"""Each promise of a compactor catches one that breaks it."""

import sys
from pathlib import Path

import torch

from kvpolicy.stages.compaction import GatherCompactor

sys.path.insert(0, str(Path(__file__).parent))
from faulty_parts import promises_catch, promises_hold


class NewestCompactor(GatherCompactor):
    def compact(self, keys, values, selection, observation):
        return tuple(each.flip(2) for each in super().compact(keys, values, selection, observation))


class DoubleCompactor(GatherCompactor):
    def compact(self, keys, values, selection, observation):
        return tuple(
            each.double() for each in super().compact(keys, values, selection, observation)
        )


class AddingCompactor(GatherCompactor):
    def compact(self, keys, values, selection, observation):
        return super().compact(keys + 1, values, selection, observation)


class MixingCompactor(GatherCompactor):
    def compact(self, keys, values, selection, observation):
        return super().compact(keys, values - values.mean(1, True), selection, observation)


class ScalingCompactor(GatherCompactor):
    def compact(self, keys, values, selection, observation):
        return super().compact(keys, values.mul_(2), selection, observation)


class SummingCompactor(GatherCompactor):
    def remainder(self, keys, values, selection, observation):
        return keys.float().sum(2), values.float().sum(2)


class MeanCompactor(GatherCompactor):
    def remainder(self, keys, values, selection, observation):
        kept = torch.zeros(*keys.shape[:2], keys.shape[2] + 1).scatter(2, selection.indices, 1)
        gone = 1 - kept[..., None, :-1]
        count = gone.sum(-1).clamp(min=1)
        return tuple((gone @ each.float())[:, :, 0] / count for each in (keys, values))


BUFFERS = (torch.zeros(100_000), torch.zeros(100_000))


class ReusingCompactor(GatherCompactor):
    def compact(self, keys, values, selection, observation):
        kept = super().compact(keys, values, selection, observation)
        pairs = zip(BUFFERS, kept, strict=True)
        return tuple(buffer[: each.numel()].view(each.shape).copy_(each) for buffer, each in pairs)


test_a_promise_catches_a_part_that_breaks_it = promises_catch(
    "compactor",
    {
        "changes_nothing_in_a_full_selection": AddingCompactor(),
        "writes_a_row_for_each_that_is_kept": DoubleCompactor(),
        "builds_each_row_on_the_one_that_is_kept": NewestCompactor(),
        "compacts_heads_of_several_processes": MixingCompactor(),
        "keeps_a_remainder_of_what_is_evicted": SummingCompactor(),
        "gives_away_what_it_returns": ReusingCompactor(),
        "leaves_its_inputs_alone": ScalingCompactor(),
    },
)
test_a_blameless_part_keeps_every_promise = promises_hold("compactor", GatherCompactor())
test_a_blameless_part_with_a_remainder_does_too = promises_hold("compactor", MeanCompactor())
