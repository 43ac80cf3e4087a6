"""Files of the hub come from its cache, or the error tells what is missing and how to give it."""

from __future__ import annotations

import pytest

from kvpolicy.errors import DataError
from kvpolicy.evaluation.tasks.hub import HubFile

FILE = HubFile(repository="some/data", name="part/rows.jsonl", size="3 MB")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The hub's cache, empty, without the network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    return tmp_path


def test_a_file_in_the_cache_needs_no_network(cache):
    root = cache / "datasets--some--data"
    file = root / "snapshots" / ("0" * 40) / "part" / "rows.jsonl"
    file.parent.mkdir(parents=True)
    file.write_text("{}")
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text("0" * 40)
    assert FILE.fetched() == file


def test_offline_one_error_names_file_folder_origin_and_size(cache):
    with pytest.raises(DataError) as raised:
        FILE.fetched()
    assert str(raised.value) == (
        f"cannot read rows.jsonl in '{cache}', the hub's cache, nor download it: HF_HUB_OFFLINE "
        "switches the hub off. It is part/rows.jsonl (3 MB) of the data set some/data on the "
        "Hugging Face Hub. Give the folder that holds it as option folder=..."
    )


def test_a_failed_download_is_told(cache, monkeypatch):
    def fails(*arguments, **options):
        assert arguments == ("some/data", "part/rows.jsonl")
        assert options == {"repo_type": "dataset"}
        raise ConnectionError("no route")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", fails)
    with pytest.raises(DataError, match=r"nor download it: ConnectionError: no route\. It is part"):
        FILE.fetched()
