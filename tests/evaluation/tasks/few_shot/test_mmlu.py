"""MMLU's own files and the hub's become the same questions."""

from __future__ import annotations

import csv

import jinja2
import pyarrow
import pyarrow.parquet
import pytest

from kvpolicy.errors import DataError, InvalidValueError
from kvpolicy.evaluation.tasks.few_shot.mmlu import MmluTask
from kvpolicy.testing import check

SUBJECTS = ("high_school_physics", "anatomy")


def questions(subject, split, number):
    return [
        (f'{split}, "{subject}" {place}?', *(f"{place}-{letter}" for letter in "wxyz"), place % 4)
        for place in range(number)
    ]


def write_own(folder, number=6):
    for split in ("dev", "test"):
        (folder / split).mkdir(exist_ok=True)
        for subject in SUBJECTS:
            with (folder / split / f"{subject}_{split}.csv").open("w", newline="") as file:
                for *texts, answer in questions(subject, split, number):
                    csv.writer(file).writerow([*texts, "ABCD"[answer]])


def write_hub(folder, number=6):
    (folder / "all").mkdir(exist_ok=True)
    for split in ("dev", "test"):
        rows = [
            {"question": f" {text} ", "subject": subject, "choices": choices, "answer": answer}
            for subject in sorted(SUBJECTS)
            for text, *choices, answer in questions(subject, split, number)
        ]
        file = folder / "all" / f"{split}-00000-of-00001.parquet"
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)


@pytest.mark.parametrize("write", [write_own, write_hub])
def test_a_question_stands_behind_examples_of_its_subject(tmp_path, write):
    write(tmp_path)
    samples = list(MmluTask(folder=str(tmp_path), shots=2).samples(None))
    names = [f"{subject} {place}" for subject in sorted(SUBJECTS) for place in range(6)]
    assert [sample.name for sample in samples] == names
    last = samples[-1]
    assert last.context == (
        "The following are multiple choice questions (with answers) about high school physics.\n\n"
        'dev, "high_school_physics" 0?\nA. 0-w\nB. 0-x\nC. 0-y\nD. 0-z\nAnswer: A\n\n'
        'dev, "high_school_physics" 1?\nA. 1-w\nB. 1-x\nC. 1-y\nD. 1-z\nAnswer: B\n\n'
    )
    assert last.question == (
        'test, "high_school_physics" 5?\nA. 5-w\nB. 5-x\nC. 5-y\nD. 5-z\nAnswer:'
    )
    assert (last.choices, last.answers) == ((" A", " B", " C", " D"), (" B",))
    assert all(sample.outside and sample.chat is False for sample in samples)


def test_the_prompts_are_those_of_lm_eval(tmp_path, shipped):
    write_hub(tmp_path)
    theirs, _ = shipped("mmlu/default/_default_template_yaml")
    subject, _ = shipped("mmlu/default/mmlu_high_school_physics.yaml")
    prompt = jinja2.Template(theirs["doc_to_text"])

    def item(split, place):
        text, *choices, answer = questions("high_school_physics", split, 6)[place]
        shown = prompt.render(question=f" {text} ", choices=choices)
        return shown, f" {theirs['doc_to_choice'][answer]}"

    samples = list(MmluTask(folder=str(tmp_path), subject="high_school_physics").samples(None))
    examples = "".join(f"{''.join(item('dev', place))}\n\n" for place in range(5))
    assert samples[0].context == subject["description"] + examples
    assert [(each.question, *each.answers) for each in samples] == [
        item("test", place) for place in range(6)
    ]


def test_one_subject_may_be_asked_for(tmp_path):
    write_own(tmp_path)
    samples = list(MmluTask(folder=str(tmp_path), subject="anatomy").samples(None))
    assert {sample.name.split()[0] for sample in samples} == {"anatomy"}
    with pytest.raises(
        InvalidValueError, match=r"no subject 'botany' there\. It has: all, anatomy,"
    ):
        list(MmluTask(folder=str(tmp_path), subject="botany").samples(None))


def test_a_task_keeps_its_contract(tmp_path):
    write_own(tmp_path)
    check("task", MmluTask(folder=str(tmp_path)))


def test_what_is_wrong_is_said(tmp_path):
    with pytest.raises(DataError, match=r"cannot read dev-00000-of-00001\.parquet in .*cais/mmlu"):
        list(MmluTask(folder=str(tmp_path)).samples(None))
    write_own(tmp_path)
    with pytest.raises(DataError, match="dev has 6 examples of anatomy, fewer than shots 7"):
        list(MmluTask(folder=str(tmp_path), shots=7).samples(None))
    (tmp_path / "test" / "anatomy_test.csv").write_text("What?,a,b,c,d,E\n")
    with pytest.raises(
        DataError, match=r"anatomy_test\.csv, row 1 has 4 choices and the answer -1"
    ):
        list(MmluTask(folder=str(tmp_path)).samples(None))
    (tmp_path / "test" / "anatomy_test.csv").write_text("What?,a,b,c\n")
    with pytest.raises(DataError, match=r"anatomy_test\.csv, row 1 has 4 cells, but there are 6"):
        list(MmluTask(folder=str(tmp_path)).samples(None))


def test_without_a_folder_the_hub_has_the_files(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match=r"It is all/dev-00000-of-00001\.parquet \(77 kB\)"):
        list(MmluTask().samples(None))
