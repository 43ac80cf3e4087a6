"""A cache file on disk: safetensors with tensors, and one JSON text beside them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from kvpolicy.errors import LONGEST, CacheFileError, shown, told
from kvpolicy.huggingface.file.paths import reason
from kvpolicy.huggingface.file.replacement import replacement

FORMAT = "kvpolicy-cache-6"
_OLDER = ("kvpolicy-cache-1", "kvpolicy-cache-2", "kvpolicy-cache-3", "kvpolicy-cache-4")
_TEXT = "kvpolicy"


def write(text: dict[str, Any], tensors: dict[str, Tensor], path: Path) -> None:
    """Write a plain file; a file that is there is replaced whole, or left as it is.

    Raises CacheFileError if it cannot be written.
    """
    tensors = {name: tensor.cpu().contiguous().clone() for name, tensor in tensors.items()}
    text = {"format": FORMAT} | text
    try:
        text["digest"] = _digest(text, tensors)
        data = json.dumps(text)
    except (RecursionError, TypeError, ValueError) as error:
        raise CacheFileError(
            f"cannot write {path}: an option of the policy is no plain data ({told(error)})."
        ) from error
    try:
        with replacement(path) as whole:
            save_file(tensors, whole, {_TEXT: data})
    except OSError as error:
        raise CacheFileError(f"cannot write {path}: {reason(error)}.") from error
    except SafetensorError as error:
        raise CacheFileError(f"cannot write {path}: {one_line(error)}.") from error


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
    except (
        Exception
    ) as error:  # a header may name a dtype that PyTorch lacks, or a size that no memory has
        raise CacheFileError(f"{path} is not a complete cache file: {one_line(error)}.") from error
    text = _text(metadata.get(_TEXT, "null"), path)
    digest = text.pop("digest", None)
    try:
        found = _digest(text, tensors)
    except (RecursionError, RuntimeError, TypeError, ValueError) as error:
        raise CacheFileError(
            f"{path} is no cache file: it has data that nobody saves ({one_line(error)})."
        ) from error
    if digest != found:
        raise CacheFileError(f"{path} is damaged: its contents are not what was written.")
    return text, tensors


def _text(data: str, path: Path) -> dict[str, Any]:
    try:
        text = json.loads(data)
    except (RecursionError, ValueError):
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
        f"{path} is no cache file of this version ({FORMAT}, not {shown(found)}). "
        "kvpolicy.save(cache, path) writes one."
    )


def one_line(error: BaseException) -> str:
    """Return what was raised in one line that is not long."""
    line = " ".join(told(error).split())
    return line if len(line) <= LONGEST else f"{line[:LONGEST]}…"


def _digest(text: dict[str, Any], tensors: dict[str, Tensor]) -> str:
    found = hashlib.sha256(json.dumps(text, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()
