"""Model types stand in groups that are served or refused alike."""

from kvpolicy.exactness.cells import Line
from kvpolicy.exactness.families import families

REFUSED = "CacheStateError: cannot crop."


def line(subject, note="sdpa", **cells):
    return Line(table="architectures", subject=subject, note=note, cells=cells)


def test_types_that_are_served_alike_share_a_row_with_their_limits():
    rows = list(
        families(
            [
                line("zeta", crop=0.0, sampling=0.0),
                line("alpha", crop=0.0, sampling=0.0),
                line("window", crop=REFUSED, sampling=0.0),
                line("old", "eager", crop=0.0, sampling=0.0),
                line("older", "eager, value space", crop=0.0, sampling=0.0),
            ]
        )
    )
    assert rows[2:] == [
        "| served in all usages | 2 | alpha, zeta |",
        "| served in all usages but crop | 1 | window |",
        "| served with eager attention in all usages | 1 | old |",
        "| served with eager attention, errors in value space in all usages | 1 | older |",
    ]


def test_a_reason_is_given_once_without_the_names_of_one_type():
    def refused(subject, name, layer):
        why = f"UnsupportedModelError: layer {layer} of {name} keeps its state elsewhere."
        return Line(table="architectures", subject=subject, refused=why)

    tiny = Line(
        table="architectures", subject="big", refused="transformers cannot build it tiny: X: no"
    )
    rows = list(families([refused("a", "AForCausalLM", 0), refused("b", "BLMHeadModel", 3), tiny]))
    assert rows[2:] == [
        "| refused: a layer of the model keeps its state elsewhere | 2 | a, b |",
        "| not measured: transformers cannot build it tiny | 1 | big |",
    ]


def test_what_is_wrong_is_never_called_served_alone():
    assert "wrong in crop" in list(families([line("bad", crop=1.0)]))[2]


def test_other_tables_are_left_out():
    assert len(list(families([Line(table="recipes", subject="h2o", cells={"crop": 0.0})]))) == 2
