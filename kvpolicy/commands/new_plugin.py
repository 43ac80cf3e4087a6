"""`kvpolicy new-plugin`: writes the project of a plugin, to go on from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kvpolicy.errors import InvalidValueError, shown

app = typer.Typer(add_completion=False)


@app.command()
def new_plugin(
    name: Annotated[
        str, typer.Argument(help="The name of the plugin and its part, such as mymethod.")
    ],
    kind: Annotated[
        str,
        typer.Option(help="scorer, smoother, allocator, selector, compactor, storage or task."),
    ] = "scorer",
    folder: Annotated[Path, typer.Option(help="Where to make the folder of the project.")] = Path(),
) -> None:
    """Write the project of a new plugin: a part, a recipe, a contract test, a README.

    Its contract passes as it is. Replace the code of the part by your own.
    """
    from kvpolicy.scaffold import new_plugin as write

    try:
        files = write(name, kind, folder)
    except OSError as error:
        raise InvalidValueError(
            f"cannot write into {shown(str(folder))}: {error.strerror}. Give a --folder that you "
            "may write to."
        ) from error
    for file in files:
        typer.echo(str(file))
    project = files[0].parent
    typer.echo(
        f"\nNow:  cd {project} && pip install -e '.[testing]' && KVPOLICY_CONTRACT=quick pytest",
        err=True,
    )
