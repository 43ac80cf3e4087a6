"""A cache file on disk: safetensors with tensors, and one JSON text beside them."""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from kvpolicy.errors import CacheFileError

FORMAT = "kvpolicy-cache-2"
_OLDER = {"kvpolicy-cache-1"}
_TEXT = "kvpolicy"


def write(text: dict[str, Any], tensors: dict[str, Tensor], path: Path) -> None:
    """Write a file; a file that is there is replaced whole, or left as it is.

    Raises CacheFileError if it cannot be written.
    """
    tensors = {name: tensor.cpu().contiguous().clone() for name, tensor in tensors.items()}
    text = {"format": FORMAT} | text
    text["digest"] = _digest(text, tensors)
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
            whole = Path(folder, path.name)
            save_file(tensors, whole, {_TEXT: json.dumps(text)})
            whole.replace(path)
    except OSError as error:
        raise CacheFileError(f"cannot write {path}: {error.strerror}.") from error


def read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the text and the tensors of a file.

    Raises CacheFileError if it is no such file, of another version, or damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise CacheFileError(f"there is no file {path}.") from None
    except (OSError, SafetensorError) as error:
        raise CacheFileError(f"{path} is not a complete cache file: {error}.") from error
    text = _text(metadata.get(_TEXT, "null"), path)
    if text.pop("digest", None) != _digest(text, tensors):
        raise CacheFileError(f"{path} is damaged: its contents are not what was written.")
    return text, tensors


def _text(data: str, path: Path) -> dict[str, Any]:
    try:
        text = json.loads(data)
    except ValueError:
        text = None
    found = text.get("format") if isinstance(text, dict) else None
    if isinstance(text, dict) and found == FORMAT:
        return text
    if found in _OLDER:
        raise CacheFileError(
            f"{path} was written by an older version of kvpolicy ({found}); this version reads "
            f"{FORMAT} only. Read the prompt anew and save the cache again."
        )
    raise CacheFileError(
        f"{path} is no cache file of this version ({FORMAT}, not {found!r}). "
        "kvpolicy.save(cache, path) writes one."
    )


def _digest(text: dict[str, Any], tensors: dict[str, Tensor]) -> str:
    found = hashlib.sha256(json.dumps(text, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()
