"""`kvpolicy list`: lists what the installed plugins offer, and which plugins are broken."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from textwrap import wrap
from typing import Annotated, Any

import attrs
import typer
from rich.console import Console
from rich.markup import escape
from rich.text import Text

from kvpolicy.commands.stdout import plugins_print_to_stderr
from kvpolicy.discovery.component import Component, Unset
from kvpolicy.discovery.registry import BrokenPlugin, broken, installed
from kvpolicy.errors import BrokenPluginWarning, shown
from kvpolicy.kinds import KINDS

HEADINGS = ("kind", "name", "from", "options")
NARROWEST = 40
"""Characters that the last column needs, to stand beside the others."""
INDENT = " " * 4

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
        listed = _as_json(components, faulty) if as_json else _as_rows(components)
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


def _as_rows(components: tuple[Component, ...]) -> list[tuple[str, ...]]:
    return [
        (each.kind, each.name, f"{each.distribution} {each.version}", _described(each.options))
        for each in components
    ]


def _print(rows: list[tuple[str, ...]], faulty: tuple[BrokenPlugin, ...]) -> None:
    console = Console(highlight=False)
    head, *lines = table_lines([HEADINGS, *rows], console.width if console.is_terminal else None)
    console.print(Text(head, style="bold"), soft_wrap=True)
    for line in lines:
        console.print(Text(line), soft_wrap=True)
    for plugin in faulty:
        console.print(f"[red]broken[/red] {escape(str(plugin))}", soft_wrap=True)


def table_lines(rows: Sequence[tuple[str, ...]], width: int | None) -> list[str]:
    """Return lines of at most `width` characters. The last column is wrapped, and may stand below.

    With `width` None, every row is one line, as `grep` needs it.

    >>> table_lines([("a", "b c")], None), table_lines([("a", "b c")], 60)
    (['a  b c'], ['a  b c'])
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)][:-1]
    lines = []
    for *names, last in rows:
        left = "  ".join(
            [*(name.ljust(size) for name, size in zip(names, widths, strict=True)), ""]
        )
        if width is None:
            lines.append((left + last).rstrip())
        elif width - len(left) >= NARROWEST:
            lines += wrap(last, width, initial_indent=left, subsequent_indent=" " * len(left)) or [
                left.rstrip()
            ]
        else:
            lines.append(left.rstrip())
            lines += wrap(last, width, initial_indent=INDENT, subsequent_indent=INDENT)
    return lines


def _plain(value: object) -> object:
    return value.value if isinstance(value, Unset) else shown(value)


def _described(options: dict[str, Any]) -> str:
    return ", ".join(
        f"{name} ({value.value})" if isinstance(value, Unset) else f"{name}={shown(value)}"
        for name, value in options.items()
    )
