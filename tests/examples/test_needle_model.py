"""The training of the needle model runs, and writes a model that can be loaded."""

import json
import sys
from pathlib import Path
from random import Random

import pytest
import torch

from kvpolicy.evaluation import needle
from kvpolicy.evaluation.needle.variants import VARIANT

EXAMPLE = Path(__file__).parents[2] / "examples" / "needle-model"
MODULES = ("batches", "model", "orthogonal", "tokenizer", "train")


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
    monkeypatch.setattr(train, "PLANS", {"single": stages})
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


@pytest.mark.parametrize("variant", ["redundant", "chained"])
def test_a_model_of_another_kind_is_written_with_its_kind(train, variant, monkeypatch, tmp_path):
    stage = train.Stage("128", 1, train.PLANS[variant][1].write)
    monkeypatch.setattr(train, "PLANS", {variant: [stage]})
    folder = tmp_path / "model"
    given = ["--variant", variant, "--threads", "1", "--output", str(folder)]
    monkeypatch.setattr(sys, "argv", ["train.py", *given])
    with torch.random.fork_rng(devices=[]):
        train.main()
    (line,) = map(json.loads, (folder / train.LOG).read_text().splitlines())
    assert line["stage"] == "128"
    model, _ = needle.load(folder)
    assert getattr(model.config, VARIANT) == variant
    assert model.dtype is torch.float32
    kept, _ = needle.load(EXAMPLE / variant)
    assert {name: each.shape for name, each in model.named_parameters()} == {
        name: each.shape for name, each in kept.named_parameters()
    }


@pytest.mark.parametrize("variant", ["single", "redundant", "chained"])
def test_heads_of_the_first_layer_look_back_as_the_design_says(train, variant):
    """Before training, and for any words: the rest of the weights is random."""
    from model import DESIGNS

    design = DESIGNS[variant]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = train.build_model(variant).eval()
    model.set_attn_implementation("eager")
    ids = torch.randint(4, model.config.vocab_size, (1, 24), generator=torch.manual_seed(1))
    attention = model(ids, output_attentions=True).attentions[0][0]
    size = design.heads // design.key_value_heads
    for group, distances in enumerate(design.looks_back):
        each = distances * size if len(distances) == 1 else distances
        for head, distance in enumerate(each):
            found = attention[group * size + head].diagonal(-distance)
            assert found[design.layers :].mean() > 0.5


def test_muon_in_float32_takes_the_steps_of_pytorchs(train):
    """PyTorch's computes in bfloat16, which has three digits."""
    from orthogonal import OrthogonalMomentum

    generator = torch.Generator().manual_seed(0)
    start, *gradients = torch.randn(4, 12, 20, generator=generator)
    found = []
    for variant, more in (
        (OrthogonalMomentum, {}),
        (torch.optim.Muon, {"adjust_lr_fn": "match_rms_adamw"}),
    ):
        weight = torch.nn.Parameter(start.clone())
        optimizer = variant([weight], lr=0.1, weight_decay=0.01, **more)
        for gradient in gradients:
            weight.grad = gradient.clone()
            optimizer.step()
        found.append((weight - start).detach())
    torch.testing.assert_close(found[0], found[1], rtol=0.05, atol=0.02)


def test_a_document_has_its_questions_answered_and_may_jump_ahead(train):
    batch = train.documents(Random(0), tokens=128, count=8, farthest=train.LONGEST)
    assert batch.ids.shape == batch.positions.shape == batch.recalled.shape == (8, 128)
    assert batch.recalled.any(1).all()
    assert (batch.positions.diff(dim=1) >= 1).all()
    far = batch.positions[:, -1] > 128
    assert far.any()
    assert not far.all()
