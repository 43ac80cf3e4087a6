"""The command line, and a checkpoint on disk."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from kvpolicy import cli
from kvpolicy.evaluation import needle
from kvpolicy.testing.models import tiny_model


@pytest.fixture
def run(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    # No network: the variable HF_HUB_OFFLINE would be read too early to be set here.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return lambda *arguments, **options: CliRunner().invoke(cli.app, arguments, **options)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """Save a random Qwen3 that never stops, with the words of the needle task."""
    folder = tmp_path_factory.mktemp("checkpoint")
    _, tokenizer = needle.load()
    tiny_model("qwen3", vocab_size=len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
