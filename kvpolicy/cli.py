"""The command line `kvpolicy`, with the commands of kvpolicy.commands."""

from __future__ import annotations

from importlib import import_module
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from typer.core import TyperCommand, TyperGroup

from kvpolicy.commands.interrupts import ends_at_once
from kvpolicy.errors import KvpolicyError

COMMANDS = {
    "list": "List the parts and recipes that are installed.",
    "demo": "Compare recipes with the full cache, and show which tokens each one keeps.",
    "generate": "Continue a prompt with a cache that a recipe keeps within a budget.",
    "eval": "Compare recipes with the full cache, on your own data or on tasks.",
    "lm-eval": "Run lm-evaluation-harness, in which --model kvpolicy evicts.",
    "report": "Write pages, figures and tables of results.",
    "inspect": "Show which tokens of a prompt survive, and say why a wrong answer is wrong.",
    "calibrate": "Find the smallest budget that keeps a promise on your own prompts.",
    "memory": "Compute the memory of a cache from a model's config. No weights are loaded.",
    "new-plugin": "Write the project of a new plugin: a part, a recipe, a contract test, a README.",
    "doctor": "Say what is installed here, and what is broken: for a report of a problem.",
    "tune": "Search the best policy for your own prompts at given bytes.",
    "exactness": "Compare evicted caches with full caches that mask the evicted entries.",
}
"""Each command and what it does. Its module in kvpolicy.commands has a Typer `app` with it alone.

A module is imported when its command is run, so that `kvpolicy --help` imports no PyTorch.
"""
INTERRUPTED = 130
"""The status of a command that ctrl-C ended: 128 and the number of the signal."""


class Command(TyperCommand):
    """A command that is listed by its name and its help, and imported when it is run."""

    def make_context(self, info_name: Any, args: Any, parent: Any = None, **extra: Any) -> Any:
        """Return a context of the command itself."""
        with ends_at_once():
            module = import_module(f"kvpolicy.commands.{str(self.name).replace('-', '_')}")
        command = typer.main.get_command(module.app)
        command.name = self.name
        return command.make_context(info_name, args, parent=parent, **extra)


class Commands(TyperGroup):
    """The commands by name. A KvpolicyError of a command is printed, and ends it with status 2."""

    def __init__(self, **options: Any) -> None:
        """Offer the commands of `COMMANDS`, in their order."""
        super().__init__(**options)
        self.commands = {
            name: Command(name=name, help=summary) for name, summary in COMMANDS.items()
        }

    def invoke(self, ctx: Any) -> Any:
        """Run the command. Print a KvpolicyError as a message, and of ctrl-C no traceback."""
        try:
            return super().invoke(ctx)
        except KvpolicyError as error:
            _explain(error)
            raise typer.Exit(2) from error
        except KeyboardInterrupt as error:
            _console().print("\n[dim]interrupted[/dim]")
            raise typer.Exit(INTERRUPTED) from error


app = typer.Typer(
    cls=Commands,
    name="kvpolicy",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(asked: bool) -> None:
    if asked:
        from kvpolicy import __version__

        typer.echo(f"kvpolicy {__version__}")
        raise typer.Exit


@app.callback()
def describe(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Run and compare KV-cache eviction policies that are composed from plugins."""


def main() -> None:
    """Run the command that the arguments name."""
    app()


def _console() -> Console:
    return Console(stderr=True, soft_wrap=True, highlight=False)


def _explain(error: KvpolicyError) -> None:
    console = _console()
    console.print(f"[red]{escape(str(error))}[/red]")
    for note in getattr(error, "__notes__", ()):
        console.print(f"[dim]{escape(note)}[/dim]")
