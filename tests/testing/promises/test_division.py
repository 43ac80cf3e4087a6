"""Each promise of a divider catches one that breaks it."""

import sys
from pathlib import Path

from kvpolicy.stages.division import FairDivider

sys.path.insert(0, str(Path(__file__).parent))
from faulty_parts import promises_catch, promises_hold


class LeavingDivider(FairDivider):
    def divide(self, lengths):
        return {name: length for name, length in lengths.items() if length}


class WritingDivider(FairDivider):
    def divide(self, lengths):
        lengths["more"] = 1
        return {name: 1.0 for name in lengths if name != "more"}


class ForgetfulDivider(FairDivider):
    """Divides otherwise where it is asked by a layer than where it is asked again."""

    asked = 0

    def divide(self, lengths):
        ForgetfulDivider.asked += 1
        return {name: float(at == ForgetfulDivider.asked % 3) for at, name in enumerate(lengths)}


test_a_promise_catches_a_part_that_breaks_it = promises_catch(
    "divider",
    {
        "gives_each_span_a_part": LeavingDivider(),
        "divides_the_same_twice": WritingDivider(),
        "keeps_each_span_within_one_position_of_its_part": ForgetfulDivider(),
    },
)
test_a_blameless_part_keeps_every_promise = promises_hold("divider", FairDivider())
