"""Importing kvpolicy is light and changes nothing in the world."""

import subprocess
import sys

import pytest

import kvpolicy

HEAVY = ("transformers", "triton", "hypothesis", "pytest", "matplotlib", "typer", "rich")


def loaded_by(code):
    """Return the top-level modules that a new Python has loaded after running `code`."""
    command = [sys.executable, "-c", f"{code}\nimport sys; print(*sys.modules)"]
    run = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    return {module.split(".")[0] for module in run.stdout.splitlines()[-1].split()}


def test_importing_loads_nothing_heavy_and_no_plugin():
    loaded = loaded_by("import kvpolicy")
    assert not loaded & {*HEAVY, "kvpolicy_restkv", "kvpolicy_snapkv"}


def test_composing_loads_nothing_heavy():
    loaded = loaded_by("import kvpolicy; kvpolicy.recipe('restkv', budget=64)")
    assert "kvpolicy_restkv" in loaded
    assert not loaded & set(HEAVY)


def test_importing_loads_no_pytorch_until_a_name_is_used():
    assert "torch" not in loaded_by("import kvpolicy; dir(kvpolicy), kvpolicy.__version__")
    assert "torch" in loaded_by("import kvpolicy; kvpolicy.recipe")


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_and_version_load_no_pytorch(option):
    assert "torch" not in loaded_by(
        f"import sys; sys.argv[1:] = [{option!r}]\n"
        "from kvpolicy.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass"
    )


def test_dir_has_the_public_names_only():
    for name in dir(kvpolicy):
        assert getattr(kvpolicy, name) is not None
    assert sorted(dir(kvpolicy)) == sorted(kvpolicy.__all__)
    with pytest.raises(AttributeError, match="no attribute 'recipes'"):
        _ = kvpolicy.recipes


@pytest.mark.parametrize("arguments", [["--help"], ["list"]], ids=" ".join)
def test_the_command_line_loads_no_transformers_to_help_or_list(arguments):
    loaded = loaded_by(
        f"import sys; sys.argv[1:] = {arguments!r}\n"
        "from kvpolicy.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass"
    )
    assert not loaded & {"transformers", "triton", "hypothesis", "matplotlib"}


def test_importing_patches_nothing_in_torch():
    code = (
        "import torch, torch.nn.functional as F\n"
        "before = {n: id(v) for m in (torch, F, torch.Tensor) for n, v in vars(m).items()}\n"
        "import kvpolicy\n"
        "after = {n: id(v) for m in (torch, F, torch.Tensor) for n, v in vars(m).items()}\n"
        "assert all(after[n] == v for n, v in before.items())"
    )
    loaded_by(code)
