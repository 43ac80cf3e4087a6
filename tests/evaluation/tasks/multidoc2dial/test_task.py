"""MultiDoc2Dial's official files become dialogues."""

from __future__ import annotations

import json

import pytest

from kvpolicy.errors import DataError, InvalidValueError
from kvpolicy.evaluation.tasks.multidoc2dial.task import MultiDoc2DialTask


def turn(number, role, utterance, *documents):
    references = [{"id_sp": "1", "label": "precondition", "doc_id": each} for each in documents]
    return {
        "turn_id": number, "role": role, "da": "x", "references": references,
        "utterance": utterance,
    }  # fmt: skip


DIALOGUES = {
    "dmv": [
        {
            "dial_id": "a1",
            "turns": [
                turn(1, "user", "How do I renew?", "Renewal"),
                turn(2, "agent", "By mail.", "Renewal", "Fees"),
                turn(3, "agent", "Have you paid? "),
                turn(4, "user", "Yes."),
            ],
        },
        {"dial_id": "a2", "turns": [turn(1, "user", "Hello?")]},
    ],
    "ssa": [{"dial_id": "b1", "turns": [turn(1, "user", "Hi."), turn(2, "agent", "Hello.")]}],
}
DOCUMENTS = {
    "dmv": {
        "Renewal": {"doc_id": "Renewal", "title": "Renewal", "doc_text": " Renew by mail.\n"},
        "Fees": {"doc_id": "Fees", "title": "Fees", "doc_text": "It costs 9."},
    }
}


@pytest.fixture
def dialogues(tmp_path):
    def write(data, name="dial_validation"):
        (tmp_path / f"multidoc2dial_{name}.json").write_text(json.dumps(data))
        return tmp_path

    write({"dial_data": DIALOGUES})
    write({"doc_data": DOCUMENTS}, "doc")
    return write


def test_a_dialogue_is_a_conversation_with_the_agents_turns_as_the_models(dialogues, tmp_path):
    first, second = MultiDoc2DialTask(folder=str(tmp_path)).samples(None)
    assert (first.name, second.name) == ("a1", "b1")
    assert first.messages == (
        {"role": "user", "content": "How do I renew?"},
        {"role": "assistant", "content": "By mail. Have you paid?"},
        {"role": "user", "content": "Yes."},
    )
    assert first.context == ""


def test_the_documents_may_stand_in_front(dialogues, tmp_path):
    first, second = MultiDoc2DialTask(folder=str(tmp_path), documents=True).samples(None)
    assert first.context == "Renew by mail.\n\nIt costs 9."
    assert second.context == ""


def test_so_many_dialogues_are_read_as_are_wanted(dialogues, tmp_path):
    assert len(list(MultiDoc2DialTask(folder=str(tmp_path), num_samples=1).samples(None))) == 1


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ([], "It must be an object. It is in multidoc2dial.zip"),
        ({"dial": {}}, "has no field 'dial_data'"),
        ({"dial_data": {"dmv": {}}}, "field 'dmv' is {}. It must be of type list"),
        ({"dial_data": {"dmv": [{"turns": 1}]}}, "dialogue 1 of dmv: field 'turns' is 1"),
        ({"dial_data": {"dmv": [{"turns": [{}]}]}}, "dialogue 1 of dmv has no field 'role'"),
        (
            {"dial_data": {"dmv": [{"turns": [turn(1, "bot", "a")]}]}},
            "has the role 'bot'. Roles: user, agent",
        ),
    ],
)
def test_a_file_of_another_format_is_said(dialogues, data, sentence):
    folder = dialogues(data)
    with pytest.raises(DataError) as error:
        list(MultiDoc2DialTask(folder=str(folder)).samples(None))
    assert sentence in str(error.value)


def test_a_reference_to_no_document_is_said(dialogues, tmp_path):
    dialogues({"doc_data": {"dmv": {"Fees": DOCUMENTS["dmv"]["Fees"]}}}, "doc")
    with pytest.raises(DataError, match="refers to 'Renewal', which is not in doc_data"):
        list(MultiDoc2DialTask(folder=str(tmp_path), documents=True).samples(None))


def test_a_missing_file_is_named_with_its_origin_and_size(tmp_path):
    with pytest.raises(DataError, match=r"cannot read multidoc2dial_dial_test.json in .*6\.9 MB"):
        list(MultiDoc2DialTask(folder=str(tmp_path), split="test").samples(None))
    with pytest.raises(InvalidValueError, match="'split' must be"):
        MultiDoc2DialTask(folder=str(tmp_path), split="dev")
