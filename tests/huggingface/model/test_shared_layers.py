"""Which layers attend with the keys of which, by the configuration."""

from types import SimpleNamespace

import pytest

from kvpolicy.errors import UnsupportedModelError
from kvpolicy.huggingface.model.shared_layers import all_readers, readers_of, refuse_shards

KINDS = ["sliding", "full", "sliding", "full", "full"]


def config(**fields):
    return SimpleNamespace(**fields)


def test_a_layer_is_read_by_itself_and_by_later_layers_of_its_kind():
    modes = ["store", "store", "reuse", "reuse", "reuse"]
    readers = readers_of("a model", config(kv_sharing_modes=modes, layer_types=KINDS))
    assert readers == {0: [0, 2], 1: [1, 3, 4]}
    assert all_readers(readers, [1]) == [1, 3, 4]


@pytest.mark.parametrize("fields", [{}, {"num_kv_shared_layers": 0}, {"kv_sharing_modes": [None]}])
def test_nothing_is_shared_where_the_configuration_says_nothing(fields):
    assert readers_of("a model", config(**{"layer_types": ["full"]} | fields)) == {}


def test_a_release_that_does_not_say_who_reads_what_is_refused():
    with pytest.raises(UnsupportedModelError, match="does not say which"):
        readers_of("a model", config(num_kv_shared_layers=3))


@pytest.mark.parametrize("mode", ["reuse_but_indexer", "reuse"])
def test_another_way_of_sharing_is_refused(mode):
    with pytest.raises(UnsupportedModelError, match="layer 0 of a model takes keys"):
        readers_of("a model", config(kv_sharing_modes=[mode], layer_types=["full"]))


def test_several_processes_are_refused():
    with pytest.raises(UnsupportedModelError, match="Use one process"):
        refuse_shards("a model", {1: [1, 3]}, object())
    refuse_shards("a model", {}, object())
