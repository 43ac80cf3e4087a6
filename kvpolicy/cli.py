"""The command line `kvpolicy`, with the commands of kvpolicy.commands."""

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
    "lm-eval": "kvpolicy.commands.lm_eval",
    "report": "kvpolicy.commands.report",
    "inspect": "kvpolicy.commands.inspect",
    "exactness": "kvpolicy.commands.exactness",
}
"""Each command and its module. The module's `app` is a Typer with that one command.

A module is imported when its command is run or listed. It imports heavy libraries inside its
function, so that `kvpolicy --help` is fast.
"""


class Commands(TyperGroup):
    """The commands by name. A KvpolicyError of a command is printed, and ends it with status 2."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names of the commands, in the order of the help page."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Import and return a command; None if there is none of that name."""
        if cmd_name not in COMMANDS:
            return None
        command = typer.main.get_command(import_module(COMMANDS[cmd_name]).app)
        command.name = cmd_name
        return command

    def invoke(self, ctx: Any) -> Any:
        """Run the command, and print a KvpolicyError as a message."""
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
    """Run and compare KV-cache eviction policies that are composed from plugins."""


def main() -> None:
    """Run the command that the arguments name."""
    app()


def _explain(error: KvpolicyError) -> None:
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    console.print(f"[red]{escape(str(error))}[/red]")
    for note in getattr(error, "__notes__", ()):
        console.print(f"[dim]{escape(note)}[/dim]")
