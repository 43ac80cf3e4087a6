"""A Ray cluster gives the rows that one process gives, also if its workers die. `make ray`."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import types
from importlib.util import find_spec
from pathlib import Path

import attrs
import pytest

import kvpolicy
from kvpolicy.errors import InvalidValueError, ResultsError
from kvpolicy.evaluation import needle
from kvpolicy.evaluation.measures.catalogue import METRICS
from kvpolicy.evaluation.runs.cluster import RayEngine
from kvpolicy.evaluation.runs.engine import InProcess
from kvpolicy.evaluation.runs.entrant import entrants
from kvpolicy.evaluation.runs.grid import Grid, Named
from kvpolicy.evaluation.runs.prompt import PromptFormat
from kvpolicy.evaluation.runs.results import Results
from kvpolicy.task import Metric, Sample

pytestmark = [
    pytest.mark.ray,
    pytest.mark.skipif(find_spec("ray") is None, reason="no Ray: pip install kvpolicy[ray]"),
]
PAGE = (Path(__file__).parents[3] / "docs" / "evaluation.md").read_text()
LOCK = threading.Lock()
TIMES = ("first_seconds", "token_seconds")


@pytest.fixture(scope="module")
def cluster():
    """Start a cluster on this machine with room for four workers."""
    import ray

    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(
            num_cpus=4,
            num_gpus=0,
            include_dashboard=False,
            log_to_driver=False,
            object_store_memory=2**27,
        )
        yield ray
        ray.shutdown()


@pytest.fixture(scope="module")
def engine(cluster):
    with RayEngine(load=needle.load, workers=2) as engine:
        yield engine


@pytest.fixture(scope="module")
def samples():
    prompts = needle.generate_prompts(tokens=96, facts=6, count=6, seed=1)
    return [
        Sample(name=str(number), context=prompt.text, answers=(prompt.answer,))
        for number, prompt in enumerate(prompts)
    ]


@pytest.fixture(scope="module")
def grid(samples):
    def grid(engine, metric=METRICS["exact_match"], count=6, recipes=("restkv", "streamingllm")):
        return Grid(
            engine=engine,
            format=PromptFormat(tokenizer=engine.tokenizer),
            entrants=entrants(recipes, [8, 40]),
            tasks=[Named(name="needles", samples=samples[:count], metric=metric)],
            max_new_tokens=4,
        )

    return grid


@pytest.fixture(scope="module")
def expected(grid, needle_pair):
    model, tokenizer = needle_pair
    return grid(InProcess(model=model, tokenizer=tokenizer)).run(Results())


def written(rows):
    """Return rows as they are written, but for times."""
    plain = [attrs.asdict(row) for row in rows]
    return [json.dumps({k: v for k, v in row.items() if k not in TIMES}) for row in plain]


def lines(file):
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    return sorted(json.dumps({k: v for k, v in row.items() if k not in TIMES}) for row in rows)


def test_two_workers_give_the_rows_of_one_process(grid, engine, expected, tmp_path):
    rows = grid(engine).run(Results(tmp_path / "rows.jsonl"))
    assert written(rows) == written(expected)
    assert lines(tmp_path / "rows.jsonl") == sorted(written(expected))
    assert len(set(engine.processes)) == 2
    assert os.getpid() not in engine.processes


def test_what_is_there_is_not_computed_again(grid, engine, expected, tmp_path):
    grid(engine, count=2).run(Results(tmp_path / "rows.jsonl"))
    ran = []
    rows = grid(engine).run(Results(tmp_path / "rows.jsonl"), lambda row, new: ran.append(new))
    assert written(rows) == written(expected)
    assert (ran.count(False), ran.count(True)) == (2 * 5, 4 * 5)


def test_a_worker_that_is_killed_is_replaced_and_nothing_is_lost(grid, engine, expected, tmp_path):
    dead, heard = engine.processes[0], []

    def kill(row, ran):
        heard.append(row.key)
        if len(heard) == 3:
            os.kill(dead, signal.SIGKILL)

    rows = grid(engine).run(Results(tmp_path / "rows.jsonl"), kill)
    assert written(rows) == written(expected)
    assert lines(tmp_path / "rows.jsonl") == sorted(written(expected))
    with pytest.raises(ProcessLookupError):
        os.kill(dead, 0)


def test_a_run_that_ends_its_worker_each_time_is_an_error_and_the_others_run(cluster, grid):
    def judge(text, sample):
        if sample.name == "0":
            os._exit(1)
        return 1.0

    cluster.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    metric = Metric(name="deadly", judge=judge)
    with RayEngine(load=needle.load, workers=1, retries=1) as engine:
        rows = grid(engine, metric, count=2, recipes=()).run(Results())
    assert [row.score for row in rows] == [None, 1]
    assert "a worker died in this run, 2 times. It may lack memory" in rows[0].error


def test_what_cannot_be_sent_is_refused(grid, engine):
    metric = Metric(name="own", judge=lambda text, sample, lock=LOCK: 1.0)
    with pytest.raises(InvalidValueError, match="a job of 'own' cannot be sent to Ray"):
        grid(engine, metric).run(Results())


def test_what_a_worker_cannot_import_is_refused(grid, engine, monkeypatch):
    module = types.ModuleType("only_here")
    exec("def judge(text, sample): return 1.0", vars(module))
    monkeypatch.setitem(sys.modules, "only_here", module)
    metric = Metric(name="own", judge=module.judge)
    with pytest.raises(InvalidValueError, match=r"cannot read .* No module named 'only_here'"):
        grid(engine, metric).run(Results())


@pytest.mark.parametrize("what", ["model", "code"])
def test_workers_with_another_model_or_other_code_are_refused(grid, engine, what):
    other = grid(engine)

    def rows(jobs):
        for job in jobs:
            run = dict(job.starts[0].run)
            run[what] = {"digest": "other"} if what == "model" else "other"
            start = attrs.evolve(job.starts[0], run=run)
            yield from engine.rows([attrs.evolve(job, starts=[start])])

    with pytest.raises(ResultsError, match=f"a worker has another {what} .* on every node"):
        list(rows(other._jobs(Results(), [], lambda row, ran: None)))


def test_evaluate_takes_a_cluster(engine):
    data = [{"prompt": "password ada amber . question password ada", "answer": "amber"}]
    found = kvpolicy.evaluate(engine=engine, data=data, recipes=["streamingllm"], budgets=[8])
    assert found.cells[0].entrant == "full"
    assert all(row.error is None for row in found.rows)


def fail():
    raise OSError("the disk is gone")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"load": fail}, "a worker could not load the model: OSError: the disk is gone"),
        ({"workers": 5}, r"4 CPUs and 0 GPUs: no room for 5 workers with 1 CPUs and 0 GPUs each"),
        ({"num_gpus": 0.5}, "no room for 1 workers with 1 CPUs and 0.5 GPUs each"),
        ({"load": LOCK.acquire}, "the function that loads the model cannot be sent"),
    ],
)
def test_a_cluster_that_cannot_serve_says_why(cluster, options, sentence):
    cluster.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    with (
        pytest.raises(InvalidValueError, match=sentence),
        RayEngine(**{"load": needle.load, "num_cpus": 1} | options),
    ):
        pass


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"load": needle.MODEL}, "load must be a function that returns a model"),
        ({"workers": 0}, "'workers' must be"),
        ({"num_gpus": -1}, "'num_gpus' must be a number of at least 0"),
        ({"num_cpus": "all"}, "'num_cpus' must be a number of at least 0"),
        ({"retries": -1}, "'retries' must be"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, sentence):
    with pytest.raises(InvalidValueError, match=sentence):
        RayEngine(**{"load": needle.load} | options)


def test_a_model_is_not_a_loader(needle_pair):
    with pytest.raises(InvalidValueError, match="each calls it; a model is not sent"):
        RayEngine(load=needle_pair[0])


def test_the_documented_command_uses_a_cluster_that_runs(cluster, tmp_path):
    (tmp_path / "mine.jsonl").write_text('{"prompt": "password ada amber", "answer": "amber"}\n')
    [command] = re.findall(r"^kvpolicy (eval .* --engine ray .*)$", PAGE, re.MULTILINE)
    command = command.replace("MODEL", str(needle.MODEL)).replace("--workers 2", "--workers 1")
    address = cluster.get_runtime_context().gcs_address
    ran = subprocess.run(
        [sys.executable, "-m", "kvpolicy", *command.split(), "--address", address, "--json"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    entrants = [(cell["entrant"], cell["budget"]) for cell in json.loads(ran.stdout)["cells"]]
    assert {("full", None), ("restkv", 64), ("snapkv", 128)} <= set(entrants)
    assert (tmp_path / "kvpolicy-eval.jsonl").read_text().count("\n") == len(entrants)


def test_the_documented_code_runs(cluster, capsys):
    [code] = re.findall(r"```python\n((?:(?!```).)*RayEngine.*?)```", PAGE, re.DOTALL)
    exec(compile(code.replace("workers=2", "workers=1"), "evaluation.md", "exec"), {})
    assert "| streamingllm |" in capsys.readouterr().out


def test_the_options_of_a_cluster_need_one(run):
    arguments = ("--model", str(needle.MODEL), "--recipes", "snapkv", "--budgets", "48")
    result = run("eval", *arguments, "--task", "needle", "--workers", "2", "--num-gpus", "1")
    assert result.exit_code == 2
    assert "--workers, --num-gpus is for --engine ray" in result.stderr
