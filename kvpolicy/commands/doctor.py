"""`kvpolicy doctor`: says what an issue report needs, and what is broken here."""

from __future__ import annotations

import json
import os
import platform
import sys
import tempfile
import warnings
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated

import attrs
import typer
from rich.console import Console
from rich.markup import escape

from kvpolicy.commands.stdout import plugins_print_to_stderr
from kvpolicy.errors import BrokenPluginWarning, told

PACKAGES = (
    *("kvpolicy", "torch", "transformers", "tokenizers", "safetensors", "numpy", "triton"),
    *("accelerate", "peft", "optimum-quanto", "lm_eval", "ray", "vllm", "gguf", "typer", "rich"),
)
"""Packages whose versions matter; those that are not installed are optional."""

app = typer.Typer(add_completion=False)


@attrs.frozen
class Finding:
    """One line: what was looked at, what was found, and whether it is as it should be."""

    section: str
    name: str
    found: str
    is_well: bool = True


@app.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of lines.")] = False,
) -> None:
    """Say what is installed here, and what is broken: for a report of a problem.

    The status is 1 if something is broken.
    """
    with plugins_print_to_stderr():
        findings = list(examined())
    if as_json:
        typer.echo(json.dumps([attrs.asdict(each) for each in findings], indent=2))
    else:
        _print(findings)
    if not all(each.is_well for each in findings):
        raise typer.Exit(1)


def examined() -> Iterator[Finding]:
    """Look at versions, devices, kernels, plugins, folders and settings."""
    yield Finding("system", "python", f"{platform.python_version()} {sys.executable}")
    yield Finding("system", "platform", platform.platform())
    for package in PACKAGES:
        yield Finding("packages", package, _version(package))
    yield from _devices()
    yield from _kernels()
    yield from _plugins()
    yield from _folders()
    for name in sorted(os.environ):
        if name.startswith(("KVPOLICY_", "TRITON_", "HF_HUB_", "CUDA_VISIBLE")):
            yield Finding("environment", name, os.environ[name])


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _devices() -> Iterator[Finding]:
    import torch

    yield Finding("devices", "cpu", f"{os.cpu_count()} cores, {torch.get_num_threads()} threads")
    built = f"PyTorch is built for CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
    if not torch.cuda.is_available():
        yield Finding("devices", "cuda", f"not available ({built})")
        return
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        memory = f"{facts.total_memory / 2**30:.0f} GiB"
        yield Finding(
            "devices", f"cuda:{index}", f"{facts.name}, {memory}, sm_{facts.major}{facts.minor}"
        )


def _kernels() -> Iterator[Finding]:
    """Run the smallest operation by the back end that is chosen here."""
    import torch

    import kvpolicy_kernels

    chosen = os.environ.get("KVPOLICY_KERNELS", "auto")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        rows = torch.ones((1, 1, 4, 16), dtype=torch.float32, device=device)
        kept = torch.zeros((1, 1, 2), dtype=torch.long, device=device)
        kvpolicy_kernels.gather_kv(rows, rows, kept)
    except Exception as error:  # noqa: BLE001 - whatever is wrong is what is asked for
        yield Finding("kernels", f"{chosen} on {device}", told(error), is_well=False)
    else:
        yield Finding("kernels", f"{chosen} on {device}", "work")


def _plugins() -> Iterator[Finding]:
    from kvpolicy.discovery.registry import broken, installed

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BrokenPluginWarning)
        offered, faulty = installed(), broken()
    releases = {each.plugin: f"{each.distribution} {each.version}" for each in offered}
    ours = [plugin for plugin, release in releases.items() if release.startswith("kvpolicy ")]
    yield Finding("plugins", "of kvpolicy", f"{len(ours)}")
    for plugin, release in sorted(releases.items()):
        if plugin not in ours:
            parts = ", ".join(
                f"{each.kind} {each.name}" for each in offered if each.plugin == plugin
            )
            yield Finding("plugins", plugin, f"{release}: {parts}")
    for each in faulty:
        yield Finding("plugins", each.name, f"broken: {each}", is_well=False)


def _folders() -> Iterator[Finding]:
    from huggingface_hub import constants

    for name, folder in (
        ("models", Path(constants.HF_HUB_CACHE)),
        ("temporary files", Path(tempfile.gettempdir())),
        ("here", Path.cwd()),
    ):
        yield Finding("folders", name, f"{folder} ({_access(folder)})")


def _access(folder: Path) -> str:
    there = next((each for each in (folder, *folder.parents) if each.exists()), folder)
    if not os.access(there, os.W_OK):
        return "not writable"
    return "writable" if there == folder else "not there yet, can be made"


def _print(findings: list[Finding]) -> None:
    console = Console(highlight=False, soft_wrap=True)
    width, section = max(len(each.name) for each in findings), ""
    for each in findings:
        if each.section != section:
            section = each.section
            console.print(f"[bold]{section}[/bold]")
        style = "default" if each.is_well else "red"
        console.print(
            f"  {escape(each.name.ljust(width))}  [{style}]{escape(each.found)}[/{style}]"
        )
