"""The figures in the pictures of a pipeline are those that its parts compute."""

import re
from pathlib import Path

import torch

import kvpolicy
from kvpolicy.testing import observation

PAGE = (Path(__file__).parents[2] / "docs" / "how-it-works.md").read_text("utf-8")
LAYER = observation(positions=8, window=2)
NAMES = [f"t{position}" for position in range(8)]
STAGES = ("Prefill", "Observe", "Score", "Smooth", "Protect and allocate")
STAGES += ("Select", "Compact", "Decode")


def row(label):
    """Return the figures of a row, of the last picture that has it."""
    [*_, figures] = re.findall(rf"^    {label} +([\d∞ ]+)$", PAGE, re.MULTILINE)
    return torch.tensor([float(each.replace("∞", "inf")) for each in figures.split()])


def part(kind, name, **options):
    """Build an installed part."""
    [found] = [each for each in kvpolicy.installed(kind) if each.name == name]
    return found.build(**options)


def test_every_stage_has_a_picture():
    sections = dict(re.findall(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))
    assert tuple(sections)[: len(STAGES)] == STAGES
    for stage in STAGES:
        assert re.search(r"^    \S", sections[stage], re.MULTILINE), stage


def test_the_attention_of_a_query_is_all_of_it():
    assert row("t6 asks").sum() == row("t7 asks").sum() == 100
    assert row("t6 asks")[7] == 0


def test_the_smoother_folds_and_pools_as_shown():
    smoother = part("smoother", "pooling", width=3)
    folded = smoother.temporal(torch.stack([row("t6 asks"), row("t7 asks")]))
    assert folded.tolist() == row("folded").tolist()
    pooled = smoother.spatial(folded.expand(1, LAYER.queries.shape[1], 8), LAYER)[0, 0]
    torch.testing.assert_close(pooled, row("pooled"))


def test_protected_positions_have_the_highest_score():
    expected = row("pooled")
    expected[[0, 6, 7]] = torch.inf
    assert row("head 0").tolist() == expected.tolist()


def test_the_allocators_share_out_as_shown():
    scores = torch.stack([row("head 0"), row("head 1")])[None]
    for name, options in (("uniform", {}), ("adakv", {"floor": 0.0})):
        [bars] = re.findall(rf"^    {name} +head 0 +(█+) +head 1 +(█+)$", PAGE, re.MULTILINE)
        counts = part("allocator", name, **options).allocate(scores, LAYER, 5)
        assert counts.tolist() == [[len(bar) for bar in bars]]


def test_the_selector_keeps_what_is_shown():
    selection = part("selector", "topk").select(row("head 0")[None, None], torch.tensor([[5]]))
    kept = [NAMES[position] for position in selection.indices[0, 0].tolist()]
    [shown] = re.findall(r"^    kept +(t.+)$", PAGE, re.MULTILINE)
    assert shown.split() == kept
    assert f"    token    {' '.join([*kept, 't8'])}\n" in PAGE
    assert row("position").tolist() == [*(int(name[1:]) for name in kept), 8]
    assert row("slot").tolist() == [*range(len(kept) + 1)]
