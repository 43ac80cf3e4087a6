"""`kvpolicy lm-eval`: lm-evaluation-harness, with the model `kvpolicy`."""

from __future__ import annotations

import sys

import typer

app = typer.Typer(add_completion=False)


@app.command(
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def lm_eval(context: typer.Context) -> None:
    """Run lm-evaluation-harness, in which --model kvpolicy evicts.

    All arguments are those of its own command, lm_eval.
    """
    from lm_eval.__main__ import cli_evaluate

    import kvpolicy.evaluation.harness  # noqa: F401 - it registers the model

    before = sys.argv
    sys.argv = ["lm_eval", *context.args]  # lm_eval reads its arguments there
    try:
        cli_evaluate()
    finally:
        sys.argv = before
