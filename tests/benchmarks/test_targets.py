"""A target is judged by the last row of its name, shape and settings."""

import attrs
import pytest

from benchmarks.cpu.targets import TARGETS as CPU_TARGETS
from benchmarks.gpu.targets import TARGETS as GPU_TARGETS
from benchmarks.rows import Row
from benchmarks.targets import Target, target_table, verdicts

FASTER = Target(
    name="speed", variant="restkv", against="authors", unit="ratio", shape={"S": 4096},
    dtype="float32", least=25,
)  # fmt: skip
ROW = Row(
    benchmark="cpu.layer", name="speed", variant="restkv", against="authors", unit="ratio",
    shape={"S": 4096, "W": 32}, dtype="float32", value=30.0, device="cpu",
)  # fmt: skip


@pytest.mark.parametrize(
    ("value", "judgement"), [(24.9, "missed"), (25.0, "met"), (None, "not measured")]
)
def test_a_target_is_judged_by_the_row_of_its_shape_and_dtype(value, judgement):
    others = [{"shape": {"S": 8192}}, {"dtype": "bfloat16"}, {"against": "kvpress"}, {"unit": "s"}]
    rows = [attrs.evolve(ROW, value=1.0, **each) for each in others]
    (verdict,) = verdicts([FASTER], [*rows, attrs.evolve(ROW, value=value)])
    assert verdict.judgement == judgement
    (verdict,) = verdicts([FASTER], rows)
    assert verdict.judgement == "not measured"


def test_the_last_row_of_a_target_counts():
    (verdict,) = verdicts([FASTER], [attrs.evolve(ROW, value=1.0), ROW])
    assert (verdict.judgement, verdict.measured) == ("met", "30x")


def test_each_model_is_judged_alone():
    rows = [
        attrs.evolve(ROW, value=value, settings={"model": model})
        for model, value in (("Llama", 1.0), ("Mistral", 30.0))
    ]
    assert [each.judgement for each in verdicts([FASTER], rows)] == ["missed", "met"]


def test_a_row_without_a_number_says_why():
    failed = attrs.evolve(ROW, value=None, failure="red: select failed its check")
    (verdict,) = verdicts([FASTER], [failed])
    assert (verdict.value, verdict.judgement) == (None, "red: select failed its check")


def test_a_target_may_bound_another_number_of_a_row():
    share = attrs.evolve(
        FASTER, least=None, most=0.125, value=lambda row: row.settings["share"], value_unit="share"
    )
    (verdict,) = verdicts([share], [attrs.evolve(ROW, settings={"share": 0.1})])
    assert (verdict.judgement, verdict.measured) == ("met", "10 %")
    assert share.bound == "\N{LESS-THAN OR EQUAL TO} 12 %"


@pytest.mark.parametrize("target", [*CPU_TARGETS, *GPU_TARGETS], ids=lambda target: target.title)
def test_every_target_has_one_bound(target):
    assert (target.least is None) != (target.most is None)


def test_the_table_has_a_line_for_each_target():
    assert target_table("Targets", verdicts([FASTER, FASTER], [ROW])).row_count == 2
