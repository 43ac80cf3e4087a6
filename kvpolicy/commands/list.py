"""`kvpolicy list`: lists what the installed plugins offer, and which plugins are broken."""

from __future__ import annotations

import json
import warnings
from typing import Annotated, Any

import attrs
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from kvpolicy.discovery.component import Component, Unset
from kvpolicy.discovery.registry import BrokenPlugin, broken, installed
from kvpolicy.errors import BrokenPluginWarning, shown
from kvpolicy.kinds import KINDS

app = typer.Typer(add_completion=False)


@app.command()
def show(
    kind: Annotated[str | None, typer.Argument(help=f"Only this kind: {', '.join(KINDS)}.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """List the parts and recipes that are installed."""
    with warnings.catch_warnings():
        # The list itself names broken plugins, so their warnings are not needed.
        warnings.simplefilter("ignore", BrokenPluginWarning)
        components, faulty = installed(kind), broken()
    if as_json:
        typer.echo(json.dumps(_as_data(components, faulty), indent=2, default=_plain))
    else:
        _print_table(components, faulty)


def _as_data(components: tuple[Component, ...], faulty: tuple[BrokenPlugin, ...]) -> dict[str, Any]:
    listed = [
        {
            "kind": component.kind,
            "name": component.name,
            "plugin": component.plugin,
            "distribution": component.distribution,
            "version": component.version,
            "options": component.options,
        }
        for component in components
    ]
    return {"components": listed, "broken": [attrs.asdict(plugin) for plugin in faulty]}


def _print_table(components: tuple[Component, ...], faulty: tuple[BrokenPlugin, ...]) -> None:
    console = Console(highlight=False)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("kind", "name", "from", "options"):
        table.add_column(heading, no_wrap=heading != "options", overflow="fold")
    for component in components:
        table.add_row(
            component.kind,
            escape(component.name),
            escape(f"{component.distribution} {component.version}"),
            escape(_described(component.options)),
        )
    console.print(table)
    for plugin in faulty:
        console.print(f"[red]broken[/red] {escape(str(plugin))}", soft_wrap=True)


def _plain(value: object) -> object:
    return value.value if isinstance(value, Unset) else shown(value)


def _described(options: dict[str, Any]) -> str:
    return ", ".join(
        f"{name} ({value.value})" if isinstance(value, Unset) else f"{name}={shown(value)}"
        for name, value in options.items()
    )
