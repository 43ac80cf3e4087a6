"""A model that is neither here nor on the Hub is said to be so at once."""

import time

import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import RepositoryNotFoundError

from kvpolicy.commands.hub import check_on_hub
from kvpolicy.errors import InvalidValueError


@pytest.fixture
def hub(monkeypatch):
    """Let the Hub answer by raising an error, and count how often it is asked."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    asked = []

    def answer(error):
        def model_info(self, name, timeout):
            asked.append(name)
            if error is not None:
                raise error

        monkeypatch.setattr(HfApi, "model_info", model_info)
        return asked

    return answer


def test_a_hub_that_cannot_be_reached_is_asked_once(hub):
    asked, began = hub(OSError("Name or service not known")), time.monotonic()
    with pytest.raises(InvalidValueError, match="cannot be reached: Name or service not known"):
        check_on_hub("no/such")
    assert asked == ["no/such"]
    assert time.monotonic() - began < 5


def test_a_model_that_the_hub_does_not_have_is_named(hub):
    error = RepositoryNotFoundError.__new__(RepositoryNotFoundError)
    hub(error)
    with pytest.raises(InvalidValueError, match="'no/such' here, and no model of that name"):
        check_on_hub("no/such")


def test_a_model_that_the_hub_has_passes(hub):
    assert hub(None) == []
    check_on_hub("some/model")


def test_a_name_that_no_model_can_have_is_refused_without_asking(hub):
    asked = hub(None)
    with pytest.raises(InvalidValueError, match="no model on the Hub can have that name"):
        check_on_hub("no such model!")
    assert asked == []
