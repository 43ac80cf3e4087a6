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

from kvpolicy.commands.stdout import plugins_print_to_stderr
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
    with plugins_print_to_stderr(), warnings.catch_warnings():
        # The list itself names broken plugins, so their warnings are not needed.
        warnings.simplefilter("ignore", BrokenPluginWarning)
        components, faulty = installed(kind), broken()
        # Reading the options of a part runs code of its plugin.
        listed = _as_json(components, faulty) if as_json else _as_table(components)
    if isinstance(listed, str):
        typer.echo(listed)
    else:
        _print(listed, faulty)


def _as_json(components: tuple[Component, ...], faulty: tuple[BrokenPlugin, ...]) -> str:
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
    data = {"components": listed, "broken": [attrs.asdict(plugin) for plugin in faulty]}
    return json.dumps(data, indent=2, default=_plain)


def _as_table(components: tuple[Component, ...]) -> Table:
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
    return table


def _print(table: Table, faulty: tuple[BrokenPlugin, ...]) -> None:
    console = Console(highlight=False)
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
