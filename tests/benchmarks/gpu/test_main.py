"""The GPU benchmark at toy size on a CPU: it runs through, and its rows say what they must."""

import attrs
import pytest
import torch
from rich.console import Console

from benchmarks import rows
from benchmarks.gpu import __main__ as program
from benchmarks.gpu import plan, supervisor, worker
from benchmarks.gpu.generation import COMPILED, FULL, STATIC
from benchmarks.gpu.operations import OPERATIONS
from benchmarks.gpu.recipes import RECIPES
from benchmarks.gpu.scale import REAL, TOY
from benchmarks.gpu.tables import show
from benchmarks.gpu.targets import TARGETS

EXPECTED_FAILURES = {"the CPU's allocator does not count"}


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tmp_path_factory.mktemp("gpu") / "rows.jsonl"


@pytest.fixture(scope="module")
def measured(file):
    program.main(["--toy", "--output", str(file)])
    return rows.read(file)


def named(measured, benchmark):
    return {row.name for row in measured if row.benchmark == benchmark}


def test_everything_is_measured_or_says_why_not(measured):
    assert {row.failure for row in measured if row.failure} <= EXPECTED_FAILURES
    assert all((row.value is None) == (row.failure is not None) for row in measured)


def test_every_section_has_its_rows(measured):
    operations = {operation.name for operation in OPERATIONS}
    assert named(measured, "gpu.ceilings") == {"copy_", "matrix product", "launch"}
    assert operations | {"compact_in_place", *(f"evict_{name}" for name in RECIPES)} == named(
        measured, "gpu.checks"
    )
    assert operations | {"compaction", "compaction over copy_"} == named(measured, "gpu.kernels")
    assert {"prefill layer", "evict", "speed-up", "extra memory"} <= named(measured, "gpu.eviction")
    assert {"prefill", "prefill ratio", "peak memory"} <= named(measured, "gpu.prefill")
    assert {
        "step",
        "full over evicted",
        "evicted over dense",
        "uneven over dense",
        "attention ratio",
    } <= named(measured, "gpu.decode")
    assert {"first call", "first token", "token", "reserved memory", "token ratio"} <= named(
        measured, "gpu.generation"
    )


def test_every_recipe_is_evicted_and_generates(measured):
    evicted = {row.variant for row in measured if row.name == "recipe"}
    generated = {row.variant for row in measured if row.name == "token"}
    assert evicted == set(RECIPES)
    assert generated == {FULL, STATIC, *RECIPES, *(f"{name}, static" for name in COMPILED)}
    assert {row.settings["padded"] for row in measured if row.name == "token"} == {False, True}


def test_rows_of_evictions_say_what_each_door_ran(measured):
    ran = {row.variant: row.settings["ran"] for row in measured if row.name in ("evict", "recipe")}
    assert ran["snapkv"]["select"] == ran["h2o"]["column_attention"] == "reference"
    assert set(ran["restkv"]) > {"reconstruction_error", "row_statistics", "gather_kv"}


def test_the_same_call_is_timed_twice(measured):
    rows = [row for row in measured if row.name == "same call twice"]
    assert {row.shape["L"] for row in rows} == set(TOY.lengths)
    assert all(row.spread_seconds is not None for row in rows)


def test_rows_of_another_device_are_not_gone_on_with(measured, tmp_path):
    earlier, later = tmp_path / "earlier.jsonl", tmp_path / "later.jsonl"
    rows.write(earlier, [attrs.evolve(measured[0], device="H200")])
    with pytest.raises(SystemExit, match=r"rows of this device, cpu, but .* has those of H200"):
        program.main(["--toy", "--resume", str(earlier), "--output", str(later)])
    assert not later.exists()


def test_a_second_call_goes_on_with_the_rows_of_the_first(file, measured, tmp_path):
    earlier, later = tmp_path / "earlier.jsonl", tmp_path / "later.jsonl"
    copied = [row for row in measured if "ceilings" in row.benchmark or row.name.startswith("ceil")]
    stopped = attrs.evolve(copied[0], name="launch", value=None, failure=worker.NO_TIME)
    rows.write(earlier, [*(row for row in copied if row.name != "ceilings/launch"), stopped])
    program.main(["--toy", "--only", "ceilings", "--resume", str(earlier), "--output", str(later)])
    found = rows.read(later)
    assert worker.NO_TIME not in {row.failure for row in found}
    assert [row.name for row in found if row.benchmark == "gpu.cell"] == [
        "ceilings/copy",
        "ceilings/matrix_product",
        "ceilings/launch",
    ]
    assert len([row for row in found if row.name == "copy_"]) == 2


def test_a_row_says_all_that_its_number_depends_on(measured):
    for row in measured:
        assert row.device == "cpu"
        assert row.machine
        assert row.dtype in ("float32", "bfloat16", "uint8")
        assert TOY.shape.items() <= row.shape.items()
        assert row.versions == rows.versions()
        assert row.unit in ("s", "GB/s", "TFLOP/s", "MiB", "ratio", "share", "bool")
        assert row.against or row.unit not in ("ratio", "share", "bool") or row.failure
        if row.min_seconds is not None:
            assert 0 < row.min_seconds <= row.median_seconds
            assert row.repeats >= 1


def test_uneven_heads_are_uneven(measured):
    notes = [row.note for row in measured if row.name == "step" and row.variant == "uneven"]
    assert notes
    assert all(note.startswith(f"layers with uneven heads: {TOY.layers}") for note in notes)


def test_a_cpu_does_not_pretend_to_have_graphs(measured):
    steps = [row for row in measured if row.name == "step"]
    assert {row.settings["form"] for row in steps} == {"eager", "CUDA graph"}
    assert all(
        row.note.endswith("a CPU has no graphs") == (row.settings["form"] == "CUDA graph")
        for row in steps
    )


def test_a_cpu_is_held_against_no_target(measured, capsys):
    show(measured, Console(width=200))
    assert "GPU targets" not in capsys.readouterr().out


def test_rows_of_a_gpu_are_held_against_all_targets(measured, capsys):
    show([attrs.evolve(row, device="H200") for row in measured], Console(width=200))
    assert "GPU targets" in capsys.readouterr().out


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.text)
def test_every_target_asks_for_a_row_that_is_measured(measured, target):
    # Toy rows have other sizes.
    anywhere = attrs.evolve(target, shape={})
    found = [row for row in measured if anywhere.picks(row)]
    assert any(target.shape.keys() <= row.shape.keys() for row in found)
    assert {target.shape.get("L", REAL.lengths[0])} <= set(REAL.lengths) | {4 * REAL.budget}


def test_workers_measure_what_the_program_was_asked_for(bench):
    options = program.parsed(["--only", "ceilings", "checks/select", "--layers", "3"])
    command = program.worker_command(options, attrs.evolve(bench, scale=REAL))
    again = program.parsed([*command[3:], "--worker", "progress", "--deadline", "1.5"])

    assert (again.only, again.layers, again.output) == (options.only, 3, bench.path)
    assert again.deadline == 1.5


def test_a_worker_of_its_own_measures_and_notes(bench):
    options = program.parsed(["--toy", "--only", "ceilings/copy"])
    cells = [cell for cell in plan.cells(TOY) if cell.key == "ceilings/copy"]
    rows.write(bench.path, [])

    command = program.worker_command(options, bench)
    supervisor.run(bench, cells, command, supervisor.time.time() + 120)

    noted = rows.read(bench.path)
    assert {row.name for row in noted} >= {"copy_"}
    assert not any(row.failure for row in noted)


def test_without_a_gpu_only_the_toy_runs(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="there is no GPU here; --toy"):
        program.main([])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "nothing"], "no cell begins with nothing; --list"),
        (["--resume", "{}/missing"], "missing has others"),
        (["--resume", "{}/cut"], "cut has others: Unterminated string"),
        (
            ["--resume", "{}/foreign"],
            "foreign has others: .* unexpected keyword argument 'name of'",
        ),
    ],
)
def test_wrong_arguments_are_refused_before_rows_are_overwritten(arguments, message, tmp_path):
    (tmp_path / "cut").write_text('{"benchmark": "gp')
    (tmp_path / "foreign").write_text('{"name of": 1}')
    kept = tmp_path / "rows"
    kept.write_text("measured before")
    given = [each.format(tmp_path) for each in arguments]
    with pytest.raises(SystemExit, match=message):
        program.main(["--toy", "--output", str(kept), *given])
    assert kept.read_text() == "measured before"
