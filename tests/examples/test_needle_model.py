"""The training of the needle model runs, and writes a model that can be loaded."""

import json
import sys
from pathlib import Path
from random import Random

import pytest
import torch

from kvpolicy.evaluation import needle

EXAMPLE = Path(__file__).parents[2] / "examples" / "needle-model"
MODULES = ("batches", "model", "tokenizer", "train")


@pytest.fixture
def train(monkeypatch):
    """Return the script as a module."""
    monkeypatch.syspath_prepend(EXAMPLE)
    import train

    yield train
    for name in MODULES:
        sys.modules.pop(name, None)


def test_two_steps_write_a_model_its_tokenizer_and_a_log(train, monkeypatch, tmp_path):
    stages = (
        train.Stage("copy", 1, lambda rng: train.repeated_words(rng, tokens=16, count=2)),
        train.Stage(
            "64", 1, lambda rng: train.documents(rng, tokens=64, count=2, farthest=train.LONGEST)
        ),
    )
    monkeypatch.setattr(train, "STAGES", stages)
    monkeypatch.setattr(train, "STEPS", 2)
    log = tmp_path / "log.jsonl"
    monkeypatch.setattr(sys, "argv", ["train.py", "--output", str(tmp_path), "--log", str(log)])
    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        train.main()
    torch.set_num_threads(threads)

    (line,) = map(json.loads, log.read_text().splitlines())
    assert (line["step"], line["stage"]) == (2, "64")
    model, tokenizer = needle.load(tmp_path)
    shipped, shipped_tokenizer = needle.load()
    assert tokenizer.get_vocab() == shipped_tokenizer.get_vocab()
    assert {name: each.shape for name, each in model.named_parameters()} == {
        name: each.shape for name, each in shipped.named_parameters()
    }


def test_a_document_has_its_questions_answered_and_may_jump_ahead(train):
    batch = train.documents(Random(0), tokens=128, count=8, farthest=train.LONGEST)
    assert batch.ids.shape == batch.positions.shape == batch.recalled.shape == (8, 128)
    assert batch.recalled.any(1).all()
    assert (batch.positions.diff(dim=1) >= 1).all()
    far = batch.positions[:, -1] > 128
    assert far.any()
    assert not far.all()
