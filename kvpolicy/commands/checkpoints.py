"""Loads a model and its tokenizer, or says in one sentence why it cannot."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any

import attrs
import torch
from safetensors import SafetensorError

from kvpolicy.commands.hub import check_on_hub, looks_like_a_path
from kvpolicy.commands.interrupts import ends_at_once
from kvpolicy.errors import InvalidValueError, shown, suggest
from kvpolicy.evaluation import needle, smollm2

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

CHOICES = (
    "Give a folder with config.json, a tokenizer and *.safetensors, a file *.gguf, the id of a "
    "model on the Hugging Face Hub, such as organisation/name, or needle, the small model that "
    "ships."
)


@attrs.frozen(kw_only=True)
class Checkpoint:
    """Where a model is and how to load it. Weights are read from safetensors or GGUF only.

    The name of a GGUF file loads it with dequantized weights, if the package gguf is installed.

    With `attention` None transformers chooses the attention. `trust_remote_code` allows Python code
    of the checkpoint to run.
    """

    name: str
    dtype: str = "auto"
    device: str = "auto"
    attention: str | None = None
    trust_remote_code: bool = False

    @property
    def folder(self) -> Path | None:
        """The folder of that name; None if the name is an id on the Hub.

        Raises InvalidValueError if the name is neither a folder with a checkpoint nor an id.
        """
        try:
            folder = Path(self.name).expanduser()
            found = folder.exists()
        except (OSError, RuntimeError, ValueError) as error:
            raise InvalidValueError(
                f"{shown(self.name)} cannot be a folder: {error}. {CHOICES}"
            ) from error
        if found:
            if not (folder / "config.json").is_file():
                raise InvalidValueError(
                    f"the folder {shown(self.name)} has no config.json. {CHOICES}"
                )
            return folder
        if self.name == needle.NAME:
            return needle.MODEL
        if looks_like_a_path(self.name):
            raise InvalidValueError(
                f"there is no folder {shown(self.name)}.{_near(folder)} {CHOICES}"
            )
        return None

    @property
    def address(self) -> str:
        """What transformers loads: a folder, or an id on the Hub.

        Raises InvalidValueError as `folder` does, and if the Hub has no such model.
        """
        folder = self.folder
        if folder is None:
            check_on_hub(self.name)
        return str(folder or self.name)

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Load the tokenizer.

        Raises InvalidValueError, with the message of transformers, if that fails.
        """
        with ends_at_once():
            from transformers import AutoTokenizer

        address, options = self._source
        with ends_at_once(), self._explained():
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                address, trust_remote_code=self.trust_remote_code, **options
            )
            return tokenizer

    def model(self) -> PreTrainedModel:
        """Load the model onto its device, in evaluation mode.

        Raises InvalidValueError, with the message of transformers, if that fails, and if the device
        does not exist.
        """
        with ends_at_once():
            from transformers import AutoModelForCausalLM

        (address, options), device = self._source, self._found_device()
        with ends_at_once(), self._explained():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                address,
                dtype=self.dtype,
                use_safetensors=True,
                attn_implementation=self.attention,
                trust_remote_code=self.trust_remote_code,
                **options,
            )
            model: PreTrainedModel = loaded.to(device).eval()
            if options or self.name == needle.NAME:  # otherwise it has the name of a folder
                model.name_or_path = self.name
            return model

    @property
    def _source(self) -> tuple[str, dict[str, str]]:
        """What transformers loads, and the name of a GGUF file in that folder."""
        file = self._gguf_file
        if file is None:
            return self.address, {}
        return str(file.parent), {"gguf_file": file.name}

    @property
    def _gguf_file(self) -> Path | None:
        """The GGUF file of that name, which may be that of an installed model."""
        if self.name == smollm2.NAME and not Path(self.name).exists():
            return smollm2.gguf_file()
        try:
            file = Path(self.name).expanduser()
            return file if file.suffix == ".gguf" and file.is_file() else None
        except (OSError, RuntimeError, ValueError):
            return None  # `folder` says what is wrong

    def _found_device(self) -> str:
        cuda = torch.cuda.is_available()
        if self.device == "auto":
            return "cuda" if cuda else "cpu"
        if self.device == "cuda" and not cuda:
            raise InvalidValueError("PyTorch finds no CUDA device here. Use --device cpu or auto.")
        return self.device

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn an error of transformers into one sentence, and add what to do."""
        try:
            yield
        except (OSError, ValueError, ImportError, RuntimeError, SafetensorError) as error:
            # Some messages list every architecture of transformers.
            said = shorten(str(error), 320, placeholder=" …").rstrip(".")
            raise InvalidValueError(
                f"could not load {shown(self.name)}: {said}.{self._help(str(error))}"
            ) from error

    def _help(self, said: str) -> str:
        if "trust_remote_code" in said:
            return " Read that code, then give --trust-remote-code to run it."
        if self.folder is None:
            return f" {CHOICES}"
        return " Weights are read from *.safetensors only." if "safetensors" in said else ""


def _near(folder: Path) -> str:
    """Suggest a folder of a similar name; nothing if there is none."""
    try:
        names = [str(each) for each in folder.parent.iterdir() if each.is_dir()]
    except OSError:
        return ""
    return suggest(str(folder), names)
