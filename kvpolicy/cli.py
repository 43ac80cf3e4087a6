"""The command line: `kvpolicy list` and what else is in kvpolicy.commands."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape
from typer.core import TyperGroup

from kvpolicy.errors import KvpolicyError

COMMANDS = {
    "list": "kvpolicy.commands.list",
    "demo": "kvpolicy.commands.demo",
    "generate": "kvpolicy.commands.generate",
    "eval": "kvpolicy.commands.eval",
    "exactness": "kvpolicy.commands.exactness",
}
"""Each command and its module, whose `app` is a Typer with that one command.

A module is imported when its command is run or described, so it imports heavy libraries inside
its function.
"""


class Commands(TyperGroup):
    """The commands by name; an error of kvpolicy ends one with a sentence and status 2."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names of the commands, in the order in which they are described."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Import and return a command, or None if there is no such."""
        if cmd_name not in COMMANDS:
            return None
        command = typer.main.get_command(import_module(COMMANDS[cmd_name]).app)
        command.name = cmd_name
        return command

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was asked for."""
        try:
            return super().invoke(ctx)
        except KvpolicyError as error:
            _explain(error)
            raise typer.Exit(2) from error


app = typer.Typer(
    cls=Commands,
    name="kvpolicy",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def describe() -> None:
    """Evict what a model's KV cache does not need, by policies composed from plugins."""


def main() -> None:
    """Run the command that the arguments name."""
    app()


def _explain(error: KvpolicyError) -> None:
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    console.print(f"[red]{escape(str(error))}[/red]")
    for note in getattr(error, "__notes__", ()):
        console.print(f"[dim]{escape(note)}[/dim]")
