"""What a row says of where it comes from: the model, the code, versions and the machine."""

from __future__ import annotations

import hashlib
import json
import platform
import sys
from collections.abc import Iterable
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from kvpolicy.errors import shown

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from kvpolicy.policy import Policy

PACKAGES = ("kvpolicy", "torch", "transformers", "tokenizers", "numpy")


def digest(data: object) -> str:
    """Return 16 hexadecimal digits that are the same for equal plain data.

    >>> digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1}) != digest({"a": 1})
    True
    """
    text = json.dumps(data, sort_keys=True, default=shown)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def model_identity(model: PreTrainedModel) -> dict[str, str]:
    """Return the model's name, class, and a digest of its configuration and weights."""
    from kvpolicy.huggingface.file.fingerprint import fingerprint

    found = fingerprint(model)
    return {
        "name": str(model.name_or_path),
        "class": found["class"],
        "digest": digest(found),
        "dtype": str(model.dtype),
    }


def code_of(policy: Policy | None, *others: object) -> str:
    """Return a digest of the Python code that a run with this policy depends on.

    That is kvpolicy's own, that of the plugins whose parts the policy has, and that of other
    classes or functions.
    """
    parts = [] if policy is None else [type(part) for part in policy.parts.values()]
    modules = {str(getattr(each, "__module__", "")) for each in (*parts, *others)}
    roots = {"kvpolicy", "kvpolicy_kernels", *modules}
    return digest([_code(root) for root in sorted({name.partition(".")[0] for name in roots})])


def machine() -> dict[str, Any]:
    """Return versions of packages, and the hardware."""
    gpus = [torch.cuda.get_device_name(each) for each in range(torch.cuda.device_count())]
    return {
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "processor": platform.machine(),
        "threads": torch.get_num_threads(),
        "gpus": gpus,
    }


@cache
def _code(root: str) -> str:
    """Return a digest of all Python files of a package, or of one module."""
    found = getattr(sys.modules.get(root), "__file__", None)
    if found is None:
        return root
    file = Path(found)
    files: Iterable[Path] = [file]
    if file.name == "__init__.py":
        files = sorted(file.parent.rglob("*.py"))
    contents = hashlib.sha256()
    for each in files:
        contents.update(str(each.relative_to(file.parent)).encode() + each.read_bytes())
    return f"{root} {contents.hexdigest()}"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
