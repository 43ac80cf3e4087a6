"""What the page on many machines shows is taken by what it is given to."""

import json
import re
import shlex
from pathlib import Path

import pytest

from kvpolicy.vllm.asked import asked_in

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "many-machines.md").read_text()
PAGES = [PAGE, (DOCS / "vllm.md").read_text()]


def _block(beginning):
    return next(
        block
        for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
        if block.startswith(f"from {beginning}")
    )


def test_ray_data_takes_its_configuration():
    pytest.importorskip("ray.data.llm", reason="Ray is not installed: it is the extra `ray`")
    found = {}
    exec(_block("ray.data.llm"), found)
    given = found["config"].engine_kwargs["additional_config"]
    assert asked_in(given).policy.budget == 1024


def test_vllm_takes_what_ray_hands_on():
    engine = pytest.importorskip(
        "vllm.engine.arg_utils",
        reason="vLLM is not installed: `make vllm` installs it in .venv-vllm, and tests it",
    )
    for block in (_block("ray.data.llm"), _block("ray.serve.llm")):
        line = re.search(r"engine_kwargs=(\{.*\}),\n", block)[1]
        arguments = engine.AsyncEngineArgs(model="MODEL", **json.loads(line))
        assert asked_in(arguments.additional_config).policy.budget == 1024


def test_the_arguments_of_servers_name_a_policy():
    found = [
        shlex.split(line)[-1]
        for page in PAGES
        for line in re.findall(r"^vllm serve .*$", page, re.MULTILINE)
    ]
    found += re.findall(r"'(\{\"kvpolicy\".*\})'\]", PAGE)
    assert len(found) == 3
    for each in found:
        assert asked_in(json.loads(each)).policy.budget == 1024
