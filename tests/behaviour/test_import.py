"""Importing kvpolicy is light and changes nothing in the world."""

import subprocess
import sys

import pytest

import kvpolicy

HEAVY = ("transformers", "triton", "hypothesis", "pytest", "matplotlib", "typer", "rich")
NOT_TO_LIST = {"transformers", "triton", "hypothesis", "matplotlib"}


def loaded_by(code):
    """Return the top-level modules that a new Python has loaded after running `code`."""
    command = [sys.executable, "-c", f"{code}\nimport sys; print(*sys.modules)"]
    run = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    return {module.split(".")[0] for module in run.stdout.splitlines()[-1].split()}


def loaded_by_command(argument):
    """Return the modules that the command line has loaded when it ends."""
    return loaded_by(
        f"import sys; sys.argv[1:] = [{argument!r}]\n"
        "from kvpolicy.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass"
    )


def test_importing_loads_nothing_heavy_and_no_plugin():
    loaded = loaded_by("import kvpolicy")
    assert not loaded & {*HEAVY, "kvpolicy_restkv", "kvpolicy_snapkv"}


def test_a_name_that_is_used_loads_pytorch_and_composing_nothing_heavier():
    loaded = loaded_by(
        "import sys, kvpolicy; dir(kvpolicy), kvpolicy.__version__\n"
        "assert 'torch' not in sys.modules\n"
        "kvpolicy.recipe\n"
        "assert 'torch' in sys.modules\n"
        "kvpolicy.recipe('restkv', budget=64)"
    )
    assert "kvpolicy_restkv" in loaded
    assert not loaded & set(HEAVY)


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_and_version_load_no_pytorch(option):
    assert not loaded_by_command(option) & {"torch", *NOT_TO_LIST}


def test_dir_has_the_public_names_only():
    for name in dir(kvpolicy):
        assert getattr(kvpolicy, name) is not None
    assert sorted(dir(kvpolicy)) == sorted(kvpolicy.__all__)
    with pytest.raises(AttributeError, match="no attribute 'recipes'"):
        _ = kvpolicy.recipes


def test_the_command_line_loads_no_transformers_to_list():
    assert not loaded_by_command("list") & NOT_TO_LIST


def test_importing_patches_nothing_in_torch():
    code = (
        "import torch, torch.nn.functional as F\n"
        "before = {n: id(v) for m in (torch, F, torch.Tensor) for n, v in vars(m).items()}\n"
        "import kvpolicy\n"
        "after = {n: id(v) for m in (torch, F, torch.Tensor) for n, v in vars(m).items()}\n"
        "assert all(after[n] == v for n, v in before.items())"
    )
    loaded_by(code)
