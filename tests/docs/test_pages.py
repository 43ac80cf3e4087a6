"""The code that pages show runs as it is written, on the small model that ships."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch

import kvpolicy
from kvpolicy.evaluation import needle

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
ELSEWHERE = {"evaluation.md", "hooks.md"}
"""Pages with a test of their own."""
CLUSTERS = {"vllm.md", "many-machines.md"}
"""Pages whose code needs vLLM or a cluster; `make vllm` and `make ray` run what they show."""

PAGES = [
    file
    for file in (ROOT / "README.md", *DOCS.glob("*.md"), *DOCS.glob("guides/*.md"))
    if "```python" in file.read_text("utf-8") and file.name not in ELSEWHERE | CLUSTERS
]
CONSOLE = [file for file in [*PAGES, DOCS / "choose.md"] if "```console" in file.read_text("utf-8")]
TROUBLES = re.findall(
    r"^## `(.+)`$", (DOCS / "guides/troubleshooting.md").read_text(), re.MULTILINE
)


def blocks(file, language):
    return re.findall(rf"```{language}\n(.*?)```", file.read_text("utf-8"), re.DOTALL)


@pytest.fixture
def names():
    """What the code of a page may use without making it."""
    model, tokenizer = needle.load()
    prompts = [each.text for each in needle.generate_prompts(tokens=96, facts=4, count=2, seed=0)]
    inputs = tokenizer(prompts[0], return_tensors="pt")
    return {
        "model": model,
        "tokenizer": tokenizer,
        "long_prompt": prompts[0],
        "prompts": prompts,
        "inputs": inputs,
        "torch": torch,
    }


def as_tested(code):
    """Return code for the model that ships, and for a machine without a GPU."""
    code = code.replace('"Qwen/Qwen3-8B"', repr(str(needle.MODEL))).replace('.to("cuda")', "")
    # The same graphs without the minute that a compiler of C++ takes.
    code = code.replace("torch.compile(model", 'torch.compile(model, backend="eager"')
    return code.replace("max_new_tokens=200", "max_new_tokens=2")


@pytest.mark.parametrize("file", PAGES, ids=lambda file: str(file.relative_to(ROOT)))
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # of PEFT
@torch.enable_grad()
def test_the_python_code_of_a_page_runs_and_prints_what_is_shown(
    file, names, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    for code in blocks(file, "python"):
        if "testing.contract(" not in code:  # it is a test module of a plugin
            exec(compile(as_tested(code), str(file), "exec"), names)
    kvpolicy.restore(names["model"])
    printed = capsys.readouterr().out
    assert all(shown in printed for shown in blocks(file, "text"))


@pytest.mark.parametrize("file", CONSOLE, ids=lambda file: str(file.relative_to(ROOT)))
def test_the_commands_of_a_page_run(file, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for command in blocks(file, "console"):
        program, *arguments = shlex.split(command)
        result = run(*arguments)
        assert (program, result.exit_code) == ("kvpolicy", 0), result.output


def test_the_policies_beside_those_of_kvpress_can_be_built():
    page = (DOCS / "from-kvpress.md").read_text("utf-8")
    found = re.findall(r"^\|.*\| `(kvpolicy\..+)` \|$", page, re.MULTILINE)
    assert len(found) >= 18
    for code in found:
        assert isinstance(eval(code, {"kvpolicy": kvpolicy}), kvpolicy.Policy), code


@pytest.mark.parametrize("text", TROUBLES)
def test_the_messages_that_are_explained_exist(text):
    """A message may be broken over lines of source."""
    sources = (file.read_text("utf-8") for file in (ROOT / "kvpolicy").rglob("*.py"))
    assert any(text in re.sub(r'"\s*\n\s*f?"', "", source) for source in sources)


def test_every_page_is_reached_from_the_first():
    listed = re.findall(r"^([\w/-]+)$", (DOCS / "index.md").read_text(), re.MULTILINE)
    reached = {each.partition("/")[0] for each in listed}
    top = {file.stem for file in DOCS.glob("*.md")} - {"index"}
    assert top <= reached
    guides = re.findall(r"^([\w-]+)$", (DOCS / "guides/index.md").read_text(), re.MULTILINE)
    assert {file.stem for file in DOCS.glob("guides/*.md")} - {"index"} == set(guides)
