"""Each kind of operation on the pretended GPU is counted as what it makes the host do."""

import pytest
import torch

from benchmarks.waits.counts import Counts
from benchmarks.waits.pretended import GPU, Pretended, pretending

READS = {
    "bool": lambda table: bool((table > 0).all()),
    "float": lambda table: float(table.sum()),
    "tolist": lambda table: table.tolist(),
    "equal": lambda table: torch.equal(table, table),
    "to the host": lambda table: table.cpu(),
    "nonzero": lambda table: table.nonzero(),
    "index by mask": lambda table: table[table > 0],
}
COPIES = {
    "to": lambda table: torch.ones(2).to(GPU),
    "tensor": lambda table: torch.tensor([1, 2], device=GPU),
    "index on the host": lambda table: table[torch.tensor([0, 1])],
    "write": lambda table: table.__setitem__(0, torch.ones(3)),
}
FREE = {
    "view": lambda table: table.view(-1)[2:].reshape(2, 2),
    "empty": lambda table: table.new_empty(3),
    "shape": lambda table: table.shape[0] * table.numel(),
    "on the host": lambda table: torch.ones(3).sum().item(),
}


@pytest.fixture
def counted(monkeypatch):
    """Counts one call; all lines are taken for lines of kvpolicy."""
    monkeypatch.setattr("benchmarks.waits.counts._line_of_ours", lambda: "a line")

    def count(call):
        counts = Counts()
        table = Pretended(torch.arange(6.0).view(2, 3))
        with pretending(counts.operation):
            call(table)
        return {kind: counts.total(kind) for kind in counts.of}

    return count


@pytest.mark.parametrize("name", READS)
def test_a_read_of_the_gpu_is_one_wait(name, counted):
    found = counted(READS[name])
    assert (found["waits"], found["copies"]) == (1, 0)


@pytest.mark.parametrize("name", COPIES)
def test_pageable_memory_that_goes_to_the_gpu_is_one_copy(name, counted):
    found = counted(COPIES[name])
    assert (found["waits"], found["copies"]) == (0, 1)


@pytest.mark.parametrize("name", FREE)
def test_what_runs_nothing_on_the_gpu_costs_nothing(name, counted):
    assert set(counted(FREE[name]).values()) == {0}


def test_an_operation_is_one_launch_and_computes(counted):
    found = []
    assert counted(lambda table: found.append(table.add_(1) * 2))["launches"] == 2
    assert found[0].numbers.tolist() == [[2.0, 4.0, 6.0], [8.0, 10.0, 12.0]]
    assert found[0].device == GPU


def test_a_copy_that_does_not_block_is_a_launch(counted):
    found = counted(lambda table: torch.ones(2).to(GPU, non_blocking=True))
    assert found == {"launches": 1, "waits": 0, "copies": 0}
