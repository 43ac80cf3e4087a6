"""Compacting copies the kept rows, and leaves the full cache as it was."""

import torch

from kvpolicy.stages.compaction import GatherCompactor, merged
from kvpolicy.stages.selection import Selection
from kvpolicy.testing import observation

LAYER = observation(positions=5, dim=4)


def test_the_kept_rows_are_copied_in_order():
    selection = Selection(indices=torch.tensor([[[0, 3], [1, 4]]]), lengths=torch.full((1, 2), 2))
    keys, values = GatherCompactor().compact(LAYER.keys, LAYER.values, selection, LAYER)
    assert torch.equal(keys[0, 0], LAYER.keys[0, 0, [0, 3]])
    assert torch.equal(values[0, 1], LAYER.values[0, 1, [1, 4]])


def test_rows_beyond_the_length_of_a_head_are_finite():
    selection = Selection(indices=torch.tensor([[[0, 5], [1, 4]]]), lengths=torch.tensor([[1, 2]]))
    keys, values = GatherCompactor().compact(LAYER.keys, LAYER.values, selection, LAYER)
    assert keys.isfinite().all()
    assert values.isfinite().all()


def test_the_smaller_cache_holds_no_memory_of_the_larger():
    keys, values = GatherCompactor().compact(
        LAYER.keys, LAYER.values, Selection.everything(LAYER), LAYER
    )
    assert keys.data_ptr() != LAYER.keys.data_ptr()
    assert values.untyped_storage().nbytes() == values.nbytes


def test_keys_and_values_may_have_different_sizes():
    values = torch.ones(1, 2, 5, 3)
    kept = GatherCompactor().compact(LAYER.keys, values, Selection.everything(LAYER), LAYER)
    assert [each.shape[-1] for each in kept] == [4, 3]


def test_merging_is_shown_what_is_kept_and_what_is_evicted_in_blocks(monkeypatch):
    monkeypatch.setattr("kvpolicy.stages.compaction.rows_per_block", lambda floats, device: 3)
    selection = Selection(indices=torch.tensor([[[0, 3], [4, 5]]]), lengths=torch.tensor([[2, 1]]))

    def merge(keys, values, evicted):
        assert torch.equal(keys[0, 0], LAYER.keys[0, 0, [0, 3]])
        assert evicted.rows.tolist() == [[[1, 2, 4, 5], [0, 1, 2, 3]]]
        assert evicted.is_row.tolist() == [[[True, True, True, False], [True] * 4]]
        blocks = list(evicted.blocks_of(LAYER.keys))
        assert [block for block, _ in blocks] == [slice(0, 3), slice(3, 4)]
        evicted_keys = torch.cat([rows for _, rows in blocks], 2)
        evicted_values = torch.cat([rows for _, rows in evicted.blocks_of(LAYER.values)], 2)
        assert torch.equal(evicted_keys[0, 0], LAYER.keys[0, 0, [1, 2, 4, 0]])
        assert torch.equal(evicted_values[0, 1], LAYER.values[0, 1, :4])
        return keys + 1, values * 2

    keys, values = merged(LAYER.keys, LAYER.values, selection, merge)

    assert torch.equal(keys[0, 0], LAYER.keys[0, 0, [0, 3]] + 1)
    assert torch.equal(values[0, 0], LAYER.values[0, 0, [0, 3]] * 2)


def test_without_rows_to_merge_or_rows_to_merge_into_the_kept_rows_stay_as_they_are():
    def merge(keys, values, evicted):
        raise AssertionError("there is nothing to merge")

    none = torch.zeros(1, 2, dtype=torch.long)
    nothing = Selection(indices=torch.empty(1, 2, 0, dtype=torch.long), lengths=none)
    for selection, kept in ((Selection.everything(LAYER), 5), (nothing, 0)):
        keys, values = merged(LAYER.keys, LAYER.values, selection, merge)
        assert torch.equal(keys, LAYER.keys[:, :, :kept])
        assert torch.equal(values, LAYER.values[:, :, :kept])
