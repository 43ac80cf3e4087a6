"""A cache as a file: what is held and where it stands in the text, for one model and policy.

The file is safetensors: tensors, and one JSON text beside them. It can name no code to run.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from kvpolicy.cache.storage import described
from kvpolicy.errors import CacheFileError, CacheStateError, KvpolicyError
from kvpolicy.huggingface.attention.call import decoder_config
from kvpolicy.huggingface.file.packing import packed, unpacked
from kvpolicy.huggingface.layer import PolicyLayer
from kvpolicy.huggingface.model.devices import layer_devices, weights_present
from kvpolicy.huggingface.model.ranks import ranks_of

if TYPE_CHECKING:
    from kvpolicy.huggingface.cache import PolicyCache
    from kvpolicy.policy import Policy

FORMAT = "kvpolicy-cache-1"
_TEXT = "kvpolicy"
_LEFT_OUT = {"state", "_turned", "density"}
"""What a layer shares with the others, and what belongs to one forward."""
_SET_LATER = {"dtype", "device"}
"""What transformers' layers have from their first update on."""
_SAMPLES = 8
_SPREAD = (
    "the model is spread over processes by tensor parallelism, and each holds its own heads of the "
    "cache: files are for models in one process. Read the prompt anew."
)
_TRANSIENT = ("transformers_version", "_name_or_path", "_attn_implementation", "dtype")


def save(cache: PolicyCache, model: PreTrainedModel, path: str | os.PathLike[str]) -> None:
    """Write a cache that no forward is in the middle of; a file that is there is replaced whole.

    Raises CacheStateError for a cache that failed, CacheFileError for one that no file can hold,
    InvalidComponentError for a policy with parts that no installed plugin offers.
    """
    cache.state.check()
    if cache.state.ranks is not None:
        raise CacheFileError(_SPREAD)
    if any(layer.is_unobserved for layer in cache.policy_layers):
        raise CacheStateError("an earlier forward stopped on its way: there is nothing to save.")
    tensors: dict[str, Tensor] = {}
    layers = [
        packed(_fields(layer), tensors, f"layers.{at}")
        for at, layer in enumerate[Any](cache.layers)
    ]
    text = {
        "format": FORMAT,
        "policy": cache.policy.to_dict(),
        "parts": parts_of(cache.policy),
        "storage": described(cache.storage),
        "model": fingerprint(model),
        "kinds": [type(layer).__name__ for layer in cache.layers],
        "layers": layers,
    }
    tensors = {name: tensor.cpu().contiguous().clone() for name, tensor in tensors.items()}
    text["digest"] = _digest(text, tensors)
    _write(tensors, {_TEXT: json.dumps(text)}, Path(path))


def load(path: str | os.PathLike[str], model: PreTrainedModel) -> PolicyCache:
    """Read a cache that `save` wrote, to go on with the same model exactly where it stood.

    Raises CacheFileError if the file is no such file, damaged, of another model, or of another
    version of the plugins that its policy is made of.
    """
    tensors, text = _read(Path(path))
    if text.pop("digest", None) != _digest(text, tensors):
        raise CacheFileError(f"{path} is damaged: its contents are not what was written.")
    try:
        return _rebuilt(tensors, text, model, path)
    except KvpolicyError:
        raise
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise CacheFileError(
            f"{path} holds what this version does not write ({type(error).__name__}: {error})."
        ) from error


def _rebuilt(
    tensors: dict[str, Tensor], text: dict[str, Any], model: PreTrainedModel, path: Any
) -> PolicyCache:
    from kvpolicy.compose import from_dict

    if ranks_of(model, decoder_config(model)) is not None:
        raise CacheFileError(_SPREAD)
    _check_model(text["model"], model, path)
    try:
        policy = from_dict(text["policy"])
    except KvpolicyError as error:
        raise CacheFileError(f"the policy of {path} cannot be built here: {error}") from error
    _check_parts(text["parts"], parts_of(policy), path)
    try:
        cache = policy.cache(model, storage=text["storage"])
    except KvpolicyError as error:
        raise CacheFileError(f"the cache of {path} cannot be made here: {error}") from error
    if text["kinds"] != [type(layer).__name__ for layer in cache.layers]:
        raise CacheFileError(f"{path} holds layers of other kinds than this model's cache has.")
    devices = layer_devices(model, len(cache.layers))
    for layer, data, device in zip(cache.layers, text["layers"], devices, strict=True):
        _restore(layer, data, tensors, device)
    if not all(layer.is_consistent for layer in cache.policy_layers):
        raise ValueError("its tensors do not fit one another")
    return cache


def _fields(layer: Any) -> dict[str, Any]:
    return {name: value for name, value in vars(layer).items() if name not in _LEFT_OUT}


def _restore(layer: Any, data: Any, tensors: dict[str, Tensor], device: torch.device) -> None:
    fields, fresh = unpacked(data, tensors, device), _fields(layer)
    if not isinstance(fields, dict) or set(fields) - _SET_LATER != set(fresh) - _SET_LATER:
        raise CacheFileError(
            f"a {type(layer).__name__} was saved with {', '.join(map(str, fields or ()))}, and has "
            f"{', '.join(fresh)}: another version of transformers or kvpolicy wrote the file."
        )
    for name, value in fields.items():
        # What is None in a new layer is set by its first tokens.
        if fresh.get(name) is not None and type(value) is not type(fresh[name]):
            raise TypeError(f"{name} of a layer is a {type(value).__name__}")
    if isinstance(layer, PolicyLayer) and fields["index"] != layer.index:
        raise ValueError(f"layer {layer.index} is saved as layer {fields['index']}")
    vars(layer).update(fields)


def parts_of(policy: Policy) -> dict[str, str]:
    """Return the plugin and version that each part of a policy comes from."""
    from kvpolicy.discovery.registry import find

    found = {}
    for kind, part in policy.to_dict().items():
        if isinstance(part, dict) and "name" in part:
            component = find(kind, part["name"])
            found[kind] = f"{component.name}, {component.distribution} {component.version}"
    return found


def fingerprint(model: PreTrainedModel) -> dict[str, str]:
    """Return the model's class, and digests of its configuration and of samples of its weights."""
    config = {
        name: value for name, value in model.config.to_dict().items() if name not in _TRANSIENT
    }
    weights = hashlib.sha256()
    for name, weight in model.named_parameters():
        weights.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        module, _, own_name = name.rpartition(".")
        weights.update(_samples(model.get_submodule(module), own_name))
    text = json.dumps(config, sort_keys=True, default=str)
    return {
        "class": type(model).__name__,
        "config": hashlib.sha256(text.encode()).hexdigest(),
        "weights": weights.hexdigest(),
    }


def _samples(module: nn.Module, name: str) -> bytes:
    """Return a few numbers of a weight; it is read for it where it waits on the host or on disk."""
    with weights_present(module):
        weight = getattr(module, name).detach()
        if weight.device.type == "meta" or not weight.numel():
            return b""
        places = torch.linspace(0, weight.numel() - 1, _SAMPLES, device=weight.device).long()
        numbers: bytes = weight.reshape(-1)[places].float().cpu().numpy().tobytes()
        return numbers


def _check_model(saved: dict[str, str], model: PreTrainedModel, path: Any) -> None:
    found = fingerprint(model)
    differing = [name for name in found if saved.get(name) != found[name]]
    if differing:
        raise CacheFileError(
            f"{path} belongs to another model: a {saved.get('class')} whose "
            f"{' and '.join(differing)} differ from this {found['class']}. Load it with the model "
            "(weights and dtype) that it was saved with."
        )


def _check_parts(saved: dict[str, str], found: dict[str, str], path: Any) -> None:
    for kind, version in found.items():
        if saved.get(kind) != version:
            raise CacheFileError(
                f"{path} was evicted by {kind} {saved.get(kind)}; installed is {version}. Install "
                "that version, or read the prompt anew."
            )


def _digest(text: dict[str, Any], tensors: dict[str, Tensor]) -> str:
    found = hashlib.sha256(json.dumps(text, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def _write(tensors: dict[str, Tensor], metadata: dict[str, str], path: Path) -> None:
    """Write beside the file first, so that a crash leaves the old one as it was."""
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
            whole = Path(folder, path.name)
            save_file(tensors, whole, metadata)
            whole.replace(path)
    except OSError as error:
        raise CacheFileError(f"cannot write {path}: {error.strerror}.") from error


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise CacheFileError(f"there is no file {path}.") from None
    except (OSError, SafetensorError) as error:
        raise CacheFileError(f"{path} is no cache file, or a part of one: {error}.") from error
    try:
        text = json.loads(metadata.get(_TEXT, "null"))
    except ValueError:
        text = None
    if not isinstance(text, dict) or text.get("format") != FORMAT:
        found = text.get("format") if isinstance(text, dict) else None
        raise CacheFileError(
            f"{path} is no cache file of this version ({FORMAT}, not {found!r}). "
            "cache.save(path) writes one."
        )
    return tensors, text
