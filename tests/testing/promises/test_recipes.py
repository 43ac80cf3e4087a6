"""Each promise of a recipe, also in a model, catches one that breaks it."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from faulty_parts import Counts, GenerousAllocator, Scorer, promises_catch, promises_hold

test_a_promise_catches_a_part_that_breaks_it = promises_catch(
    "recipe",
    {
        "survives_a_trip_through_json": {"scorer": Scorer()},
        "generates_within_the_budget": {"scorer": "snapkv", "allocator": GenerousAllocator()},
        "keeps_two_conversations_apart": {"scorer": Counts()},
        "reads_a_padded_row_as_if_alone": {"scorer": Counts()},
    },
)
test_a_blameless_part_keeps_every_promise = promises_hold("recipe", {"scorer": "snapkv"})
