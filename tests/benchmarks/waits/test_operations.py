from benchmarks.waits.forwards import BATCHES, costs
from benchmarks.waits.operations import HEADER, operations


def test_the_operations_of_a_layer_are_all_that_it_costs():
    lines = [dict(zip(HEADER, line, strict=True)) for line in operations("tova", BATCHES[0])]
    for phase, of_phase in costs("tova", BATCHES[0]).items():
        for kind, cost in of_phase.items():
            mine = [line for line in lines if (line["forward"], line["kind"]) == (phase, kind)]
            assert sum(float(line["layer"]) for line in mine) == cost.layer
            assert sum(float(line["beside"]) for line in mine) == cost.forward
    assert {line["operation"] for line in lines} >= {"_select_kernel", "gather"}
