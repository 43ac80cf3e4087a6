"""A checkpoint is a folder, a GGUF file, a model that is installed, or an id on the Hub."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import transformers

from kvpolicy.commands import checkpoints
from kvpolicy.commands.checkpoints import Checkpoint
from kvpolicy.errors import InvalidValueError, MissingPackageError
from kvpolicy.evaluation import smollm2


@pytest.fixture
def asked(monkeypatch):
    """Record what transformers is asked for, and load nothing."""
    calls = []

    def model(address, **options):
        calls.append((address, options.get("gguf_file")))
        loaded = SimpleNamespace(name_or_path=address, eval=lambda: loaded)
        loaded.to = lambda device: loaded
        return loaded

    def tokenizer(address, **options):
        calls.append((address, options.get("gguf_file")))

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", model)
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", tokenizer)
    return calls


def test_a_gguf_file_is_read_from_its_folder(asked, tmp_path):
    file = tmp_path / "small.gguf"
    file.touch()
    checkpoint = Checkpoint(name=str(file))
    model = checkpoint.model()
    checkpoint.tokenizer()
    assert asked == [(str(tmp_path), "small.gguf")] * 2
    assert model.name_or_path == str(file)


def test_the_installed_model_is_named_as_it_was_asked_for(asked, monkeypatch):
    monkeypatch.setattr(smollm2, "gguf_file", lambda: Path("/installed/model.gguf"))
    model = Checkpoint(name="smollm2").model()
    assert asked == [("/installed", "model.gguf")]
    assert model.name_or_path == "smollm2"


def test_the_model_that_ships_has_no_path_for_a_name(asked):
    assert Checkpoint(name="needle").model().name_or_path == "needle"
    assert len(asked) == 1


def test_a_folder_of_that_name_comes_first(asked, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path("smollm2").mkdir()
    Path("smollm2", "config.json").touch()
    Checkpoint(name="smollm2").model()
    assert asked == [("smollm2", None)]


def test_a_model_that_is_not_installed_is_said_to_be_so(monkeypatch):
    def missing():
        raise MissingPackageError("install it")

    monkeypatch.setattr(checkpoints.smollm2, "gguf_file", missing)
    with pytest.raises(MissingPackageError, match="install it"):
        Checkpoint(name="smollm2").model()


def test_a_gguf_file_that_is_not_there_is_no_folder(asked):
    with pytest.raises(InvalidValueError, match=r"there is no folder '\./none\.gguf'"):
        Checkpoint(name="./none.gguf").model()
    assert not asked
