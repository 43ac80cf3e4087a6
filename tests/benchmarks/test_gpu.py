"""The GPU benchmark at toy size on a CPU: it runs through, and its rows say what they must."""

import re
import sys
import textwrap
import time

import attrs
import pytest
import torch
from rich.console import Console
from transformers import DynamicCache

from benchmarks import rows
from benchmarks.gpu import __main__ as program
from benchmarks.gpu import plan, supervisor, worker
from benchmarks.gpu.bench import Bench, Cell
from benchmarks.gpu.caches import fixed_cache, growing_cache
from benchmarks.gpu.models import MODELS, config_of, prompt, random_model
from benchmarks.gpu.operations import OPERATIONS, difference
from benchmarks.gpu.scale import REAL, TOY
from benchmarks.gpu.tables import show
from benchmarks.gpu.targets import TARGETS, verdicts
from benchmarks.gpu.timing import extra_bytes, interleaved, ratio

CPU = torch.device("cpu")
EXPECTED_FAILURES = {"the CPU's allocator does not count"}


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tmp_path_factory.mktemp("gpu") / "rows.jsonl"


@pytest.fixture(scope="module")
def measured(file):
    program.main(["--toy", "--output", str(file)])
    return rows.read(file)


@pytest.fixture
def bench(tmp_path):
    return Bench(device=CPU, scale=TOY, path=tmp_path / "rows.jsonl")


def named(measured, benchmark):
    return {row.name for row in measured if row.benchmark == benchmark}


def test_everything_is_measured_or_says_why_not(measured):
    assert {row.failure for row in measured if row.failure} <= EXPECTED_FAILURES
    assert all((row.value is None) == (row.failure is not None) for row in measured)


def test_every_section_has_its_rows(measured):
    operations = {operation.name for operation in OPERATIONS}
    assert named(measured, "gpu.ceilings") == {"copy_", "matrix product", "launch"}
    assert operations | {"compact_in_place", "evict_restkv", "evict_snapkv"} == named(
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
    assert list(verdicts(measured)) == []
    show(measured, Console(width=200))
    assert "Targets" not in capsys.readouterr().out


def on_a_gpu(name, value, **fields):
    return rows.Row(
        benchmark="gpu.x", name=name, value=value, unit="ratio", device="H100", **fields
    )


def test_targets_are_met_missed_or_not_measured():
    found = [
        on_a_gpu("evict", 0.02, variant="restkv", shape={"L": 4096}),
        on_a_gpu("evict", 0.02, variant="restkv", shape={"L": 131_072}),
        on_a_gpu("evict", None, variant="restkv", shape={"L": 32_768}, failure="red: select"),
        on_a_gpu("speed-up", 19.0, variant="restkv", shape={"L": 4096}),
    ]
    said = {verdict.target.text: verdict for verdict in verdicts(found)}
    first = "evicting a layer with ReST-KV, of its prefill"

    assert set(said) == {target.text for target in TARGETS}
    assert said[f"{first}, 4,096 tokens"].met is True
    assert said[f"{first}, 131,072 tokens"].met is False
    assert said["scoring faster than the authors' algorithm, 4,096 tokens"].met is False
    assert (said[f"{first}, 32,768 tokens"].met, said[f"{first}, 32,768 tokens"].reason) == (
        None,
        "red: select",
    )
    assert said["compaction at 1,024 kept, microseconds"].reason == "not measured"


def test_every_target_asks_for_a_row_that_the_plan_would_give(measured):
    """The toy rows, with the sizes that they stand for."""
    lengths = {row.shape.get("L") for row in measured}
    for target in TARGETS:
        sizes = [int(size.replace(",", "")) for size in re.findall(r"\d+,\d+", target.text)]
        stand_ins = [
            attrs.evolve(row, shape=dict(row.shape) | shape)
            for row in measured
            for length in lengths & {row.shape.get("L")}
            for shape in (
                {"L": sizes[-1] if sizes else length, "B": 8 if " 8 x" in target.text else 1},
                {"K": sizes[-1] if sizes else 0},
            )
        ]
        assert any(target.picks(row) for row in stand_ins), target.text


def test_speed_is_not_told_of_an_operation_whose_check_failed_or_is_missing(bench):
    gpu = attrs.evolve(bench, device=torch.device("cuda"))
    check = on_a_gpu("select", 1.0)
    gpu.known = [
        attrs.evolve(check, benchmark="gpu.checks"),
        attrs.evolve(check, benchmark="gpu.checks", name="gather_kv", value=0.0),
    ]

    assert gpu.red("select") is None
    assert gpu.red("select", "gather_kv") == "red: gather_kv failed its check"
    assert gpu.red("pool_scores") == "red: pool_scores was not checked"


def test_a_red_row_has_a_reason_and_no_number(bench):
    bench.note("kernels", "select", 3.0, "s", failure="red: select failed its check")
    assert bench.known[0].value is None
    assert rows.read(bench.path) == bench.known


def raising(error):
    def measure(bench):
        raise error

    return measure


def test_a_cell_that_fails_costs_one_row(bench):
    cells = [
        Cell(key="kernels/select/1", measure=raising(torch.OutOfMemoryError("no 3 GiB. More"))),
        Cell(key="kernels/select/2", measure=raising(TypeError("wrong"))),
        Cell(key="kernels/select/3", measure=lambda bench: bench.note("kernels", "x", 1.0, "s")),
    ]
    assert worker.run(bench, cells, bench.path.with_suffix(".progress"), time.time() + 60) == 0

    failures = [row.failure for row in bench.known if row.name in ("select", "x")]
    assert failures == ["out of memory: no 3 GiB", "failed: TypeError: wrong", None]


def test_no_cell_is_begun_without_time_for_it(bench):
    cell = Cell(key="kernels/select/1", measure=raising(AssertionError), seconds=100)
    worker.run(bench, [cell], bench.path.with_suffix(".progress"), time.time() + 50)

    assert [row.failure for row in bench.known] == ["no time left"]


WORKER = """
    import os, pathlib, signal, sys, time
    progress = pathlib.Path(sys.argv[sys.argv.index("--worker") + 1])
    begun = progress.read_text().split() if progress.exists() else []
    for key in {keys}:
        if key not in begun:
            progress.open("a").write(key + chr(10))
            if "crash" in key:
                os.kill(os.getpid(), signal.SIGKILL)
            if "hang" in key:
                time.sleep(600)
"""


def test_a_worker_that_dies_or_hangs_costs_one_cell(bench, tmp_path, monkeypatch):
    monkeypatch.setattr(supervisor, "GRACE", 1.5)
    keys = ["a/fine", "a/crash", "b/hang", "c/crash/4096", "d/fine"]
    script = tmp_path / "worker.py"
    script.write_text(textwrap.dedent(WORKER.format(keys=keys)))
    cells = [Cell(key=key, measure=raising(AssertionError), seconds=0.0) for key in keys]

    supervisor.run(bench, cells, [sys.executable, str(script)], time.time() + 60)

    failures = {(row.benchmark, row.name): row.failure for row in bench.known}
    assert failures[("gpu.a", "crash")] == failures[("gpu.c", "crash")] == "crashed: signal 9"
    assert failures[("gpu.b", "hang")].startswith("hung: stopped after")
    assert len(failures) == 3


def test_a_worker_that_never_starts_ends_the_benchmark(bench):
    cells = [Cell(key="a/fine", measure=raising(AssertionError))]
    with pytest.raises(SystemExit, match="the worker does not start"):
        supervisor.run(bench, cells, [sys.executable, "-c", "1"], time.time() + 60)


def test_workers_measure_what_the_program_was_asked_for(file):
    options = program.parsed(["--only", "ceilings", "checks/select", "--layers", "3"])
    command = program.worker_command(options, Bench(device=CPU, scale=REAL, path=file))
    again = program.parsed([*command[3:], "--worker", "progress", "--deadline", "1.5"])

    assert (again.only, again.layers, again.output) == (options.only, 3, file)
    assert again.deadline == 1.5


def test_a_worker_of_its_own_measures_and_notes(bench):
    options = program.parsed(["--toy", "--only", "ceilings"])
    cells = [cell for cell in plan.cells(TOY) if cell.key.startswith("ceilings")]
    rows.write(bench.path, [])

    command = program.worker_command(options, bench)
    supervisor.run(bench, cells, command, time.time() + 120)

    noted = rows.read(bench.path)
    assert {row.name for row in noted} >= {"copy_", "matrix product", "launch"}
    assert not any(row.failure for row in noted)


def test_without_a_gpu_only_the_toy_runs(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="there is no GPU here; --toy"):
        program.main([])


def test_the_plan_names_every_cell_once_and_the_worthiest_fit_the_limit():
    cells = plan.cells(REAL)
    keys = [cell.key for cell in cells]
    assert len(keys) == len(set(keys))

    limit = program.parsed([]).time_limit
    after = {
        cell.key: sum(each.seconds for each in cells[: at + 1]) for at, cell in enumerate(cells)
    }
    for key in ("eviction/time/131072", "decode/step/Llama-3.1-8B/1x131072"):
        assert after[key] < limit / 2
    assert after["prefill/time/Llama-3.1-8B/1x131072"] < limit


def test_the_models_have_the_published_sizes():
    with torch.device("meta"):
        from transformers import AutoModelForCausalLM

        for name, billions in zip(MODELS, (8.03, 7.25), strict=True):
            model = AutoModelForCausalLM.from_config(config_of(name, REAL, REAL.layers))
            assert round(model.num_parameters() / 1e9, 2) == billions


def test_a_fixed_cache_decodes_as_a_growing_one_and_again_and_again():
    model = random_model(MODELS[0], TOY, TOY.layers, CPU)
    token = prompt(model, 1)
    fixed = fixed_cache(TOY, 20, 1, TOY.layers, CPU)
    growing = growing_cache(fixed, model.config)
    assert isinstance(growing, DynamicCache)

    with torch.no_grad():
        steps = [model(token, past_key_values=fixed).logits for _ in range(2)]
        expected = model(token, past_key_values=growing).logits

    torch.testing.assert_close(steps[0], expected)
    assert torch.equal(steps[0], steps[1])
    assert growing.get_seq_length() == 21


def test_difference_is_that_of_the_worst_tensor():
    one = torch.tensor([1.0, -4.0])
    assert difference(one, one) == 0
    assert difference((one, one + 1), (one, one)) == 0.25
    assert difference(one, one.double()) == float("inf")
    assert difference(one * torch.nan, one) == float("inf")


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


def test_memory_is_not_made_up_on_a_cpu():
    assert extra_bytes(lambda: None, CPU) == "the CPU's allocator does not count"
