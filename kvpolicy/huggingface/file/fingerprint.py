"""The fingerprint of a model. A cache file has that of the model that it was saved with."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

from transformers import PreTrainedModel

from kvpolicy.huggingface.file.model_facts import ModelFacts

_TRANSIENT = frozenset(
    {
        "_attn_implementation",
        "_name_or_path",
        "architectures",
        "dtype",
        "torch_dtype",
        "transformers_version",
    }
)
"""Entries of a configuration that do not change what the model computes."""

_CLOSE = 1e-6
"""How far apart frequencies may be, relatively, that two devices compute from one configuration."""


def fingerprint(model: PreTrainedModel) -> dict[str, Any]:
    r"""Return the model's class, digests of its configuration, weights and settings, and tables.

    The weights are all parameters and buffers, adapters included, and tensors that modules keep in
    other attributes; the settings are the classes of modules and their plain attributes, such as
    which adapters are active. Functions are not among them: a forward hook that changes numbers
    goes unnoticed. Tables are short tensors that no checkpoint has, such as rotary frequencies.

    Every number of the model is read each time. That takes about a second per GB and core; up to
    eight cores work. What it takes here for 1 GiB:

        python -m timeit -s "import torch; from kvpolicy.huggingface.file.digests import digest" \
            -s "weight = torch.zeros(1 << 28)" "digest(weight)"

    Raises CacheFileError for a model with tensors whose numbers cannot be read.
    """
    facts = ModelFacts.of(model)
    return {
        "class": type(model).__name__,
        "config": _config(model),
        "weights": _of_lines(facts.weights),
        "settings": _of_lines(facts.settings),
        "tables": facts.tables,
    }


def differences(saved: Mapping[str, Any], model: PreTrainedModel) -> list[str]:
    """Return in which of its parts a model differs from a fingerprint.

    The numbers of a model are read only if its class and configuration are the same. Raises
    CacheFileError as `fingerprint` does.
    """
    found = {"class": type(model).__name__, "config": _config(model)}
    if all(saved.get(name) == found[name] for name in found):
        found = fingerprint(model)
    differing = (name for name, value in found.items() if not _is_close(saved.get(name), value))
    return list(dict.fromkeys("weights" if name == "tables" else name for name in differing))


def _is_close(saved: Any, found: Any) -> bool:
    """Whether two parts of fingerprints are the same, up to rounding in tables."""
    if isinstance(found, dict):
        same = isinstance(saved, dict) and saved.keys() == found.keys()
        return same and all(_is_close(saved[name], found[name]) for name in found)
    if isinstance(found, list):
        same = isinstance(saved, list) and len(saved) == len(found)
        return same and all(map(_is_close, saved, found))
    if isinstance(found, float) and type(saved) is float:
        both = math.isnan(saved) and math.isnan(found)
        return both or math.isclose(saved, found, rel_tol=_CLOSE)
    return type(saved) is type(found) and bool(saved == found)


def _config(model: PreTrainedModel) -> str:
    text = json.dumps(_lasting(model.config.to_dict()), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _lasting(value: Any) -> Any:
    """Return a configuration without transient entries, those of its parts included."""
    if isinstance(value, dict):
        return {str(key): _lasting(each) for key, each in value.items() if key not in _TRANSIENT}
    return [_lasting(each) for each in value] if isinstance(value, list | tuple) else value


def _of_lines(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()
