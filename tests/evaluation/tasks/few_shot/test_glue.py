"""GLUE's own files and the hub's become the same items."""

from __future__ import annotations

import runpy

import jinja2
import pyarrow
import pyarrow.parquet
import pytest

import kvpolicy
from kvpolicy.errors import DataError
from kvpolicy.evaluation import needle
from kvpolicy.evaluation.tasks.few_shot.formats import FORMATS
from kvpolicy.evaluation.tasks.few_shot.glue import GlueTask
from kvpolicy.evaluation.tasks.groups import GROUPS
from kvpolicy.testing import check

# For each task the header of GLUE's own file, a row of it, the same row on the hub, and the prompt
# with its answer.
ROWS = {
    "cola": (
        None,
        "gj04\t1\t\tThe sailors rode.",
        {"sentence": "The sailors rode.", "label": 1},
        "The sailors rode.\nQuestion: Does this sentence make sense?\nAnswer: yes",
    ),
    "mnli": (
        "index\tpromptID\tsentence1\tsentence2\tgold_label",
        "0\t1\tHe sat.\tHe stood \tcontradiction",
        {"premise": "He sat.", "hypothesis": "He stood ", "label": 2},
        "He sat.\nQuestion: He stood. True, False or Neither?\nAnswer: False",
    ),
    "mrpc": (
        "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String",
        '1\t7\t8\t"One" said.\tOne was said.',
        {"sentence1": '"One" said.', "sentence2": "One was said.", "label": 1},
        'Sentence 1: "One" said.\nSentence 2: One was said.\n'
        "Question: Do both sentences mean the same thing?\nAnswer: yes",
    ),
    "qnli": (
        "index\tquestion\tsentence\tlabel",
        "0\tWho?\tAda did.\tentailment",
        {"question": "Who?", "sentence": "Ada did.", "label": 0},
        "Who?\nAda did.\nQuestion: Does this response answer the question?\nAnswer: yes",
    ),
    "qqp": (
        "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate",
        "0\t1\t2\tWho?\tWhat {is} it?\t0",
        {"question1": "Who?", "question2": "What {is} it?", "label": 0},
        "Question 1: Who?\nQuestion 2: What {is} it?\n"
        "Question: Do both questions ask the same thing?\nAnswer: no",
    ),
    "rte": (
        "index\tsentence1\tsentence2\tlabel",
        "0\tIt rains.\tIt is wet.\tnot_entailment",
        {"sentence1": "It rains.", "sentence2": "It is wet.", "label": 1},
        "It rains.\nQuestion: It is wet. True or False?\nAnswer: False",
    ),
    "sst2": (
        "sentence\tlabel",
        "a fine film \t1",
        {"sentence": "a fine film ", "label": 1},
        "a fine film \nQuestion: Is this sentence positive or negative?\nAnswer: positive",
    ),
    "wnli": (
        "index\tsentence1\tsentence2\tlabel",
        "0\tIt fell.\tThe cup fell.\t1",
        {"sentence1": "It fell.", "sentence2": "The cup fell.", "label": 1},
        "It fell.\nQuestion: The cup fell. True or False?\nAnswer: True",
    ),
}
ROWS["mnli_mismatch"] = ROWS["mnli"]


def write_own(folder, task, copies=3):
    form, (header, row, _, _) = FORMATS[task], ROWS[task]
    (folder / form.folder).mkdir(exist_ok=True)
    lines = [header] * (header is not None) + [row] * copies
    for split in ("train", form.dev):
        (folder / form.folder / f"{split}.tsv").write_text("\n".join(lines) + "\n")


def write_hub(folder, task, copies=3):
    form, row = FORMATS[task], ROWS[task][2]
    (folder / form.config).mkdir(exist_ok=True)
    table = pyarrow.table({name: [value] * copies for name, value in row.items()})
    for split in ("train", form.validation):
        file = folder / form.config / f"{split}-00000-of-00001.parquet"
        pyarrow.parquet.write_table(table, file)


@pytest.mark.parametrize("task", FORMATS)
@pytest.mark.parametrize("write", [write_own, write_hub])
def test_a_row_becomes_a_prompt_with_its_answer(tmp_path, task, write):
    write(tmp_path, task)
    samples = list(GlueTask(task=task, folder=str(tmp_path), shots=2).samples(None))
    text = ROWS[task][3]
    assert len(samples) == 3
    assert [sample.name for sample in samples] == ["0", "1", "2"]
    for sample in samples:
        assert sample.context == f"{text}\n\n" * 2
        assert sample.question + sample.answers[0] == text
        assert sample.answers[0] in sample.choices
        assert sample.outside


@pytest.mark.parametrize("task", [task for task in FORMATS if task != "mnli_mismatch"])
def test_the_prompts_and_choices_are_those_of_lm_eval(tmp_path, shipped, task):
    row = ROWS[task][2]
    theirs, file = shipped(f"glue/{task}/default.yaml")
    if task == "mnli":
        expected = runpy.run_path(str(file.with_name("utils.py")))["doc_to_text"](row)
    else:
        expected = jinja2.Template(theirs["doc_to_text"]).render(row)
    write_hub(tmp_path, task)
    sample = next(GlueTask(task=task, folder=str(tmp_path), shots=1).samples(None))
    assert sample.question == expected
    choices = [f" {choice}" for choice in theirs["doc_to_choice"]]
    assert sample.choices == tuple(choices)
    assert sample.answers == (choices[row["label"]],)
    form = FORMATS[task]
    assert (theirs["dataset_name"], theirs["validation_split"]) == (form.config, form.validation)


def test_there_are_nine_tasks_with_their_choices():
    assert len(GROUPS["glue"]) == len(FORMATS) == 9
    assert FORMATS["mnli"].choices == ("True", "Neither", "False")
    assert FORMATS["sst2"].choices == ("negative", "positive")
    assert all(len(form.choices) == len(form.labels) for form in FORMATS.values())


@pytest.mark.parametrize("task", [task for task in FORMATS if task != "mnli_mismatch"])
def test_the_metrics_are_those_of_lm_eval(shipped, task):
    theirs = {each["metric"] for each in shipped(f"glue/{task}/default.yaml")[0]["metric_list"]}
    ours = {
        "multiple_choice": {"acc"},
        "f1_of_set": {"acc", "f1"},
        "matthews_correlation": {"mcc"},
    }
    assert ours[FORMATS[task].metric] == theirs


def test_cola_is_scored_as_a_whole(tmp_path):
    write_own(tmp_path, "cola", copies=6)
    model, tokenizer = needle.load()
    task = GlueTask(task="cola", folder=str(tmp_path), shots=2)
    found = kvpolicy.evaluate(model, tokenizer, tasks=[task], recipes=[], limit=4)
    [cell] = found.cells
    assert cell.metric == "matthews_correlation"
    assert cell.estimate.value == 0  # every answer is the same
    assert cell.parts["accuracy"] in (0, 1)


def write_numbers(folder, number):
    (folder / "SST-2").mkdir()
    rows = [f"film {place}\t{place % 2}" for place in range(number)]
    for split in ("train", "dev"):
        (folder / "SST-2" / f"{split}.tsv").write_text("\n".join(["sentence\tlabel", *rows]))


def test_rows_that_are_cut_are_left_out(tmp_path):
    write_own(tmp_path, "qqp")
    file = tmp_path / "QQP" / "dev.tsv"
    file.write_text(file.read_text() + "7\t8\t9\tWhat was\n")
    assert len(list(GlueTask(task="qqp", folder=str(tmp_path), shots=1).samples(None))) == 3


def test_the_seed_draws_the_examples(tmp_path):
    write_numbers(tmp_path, 40)

    def context(seed):
        task = GlueTask(task="sst2", folder=str(tmp_path), shots=4, seed=seed)
        return next(task.samples(None)).context

    assert context(1) == context(1) != context(2)
    assert context(1).count("Answer:") == 4


def test_a_task_keeps_its_contract(tmp_path):
    write_numbers(tmp_path, 8)
    check("task", GlueTask(task="sst2", folder=str(tmp_path), shots=2))


def test_the_examples_are_evicted_before_an_item_is_asked(tmp_path):
    write_numbers(tmp_path, 12)
    model, tokenizer = needle.load()  # to which every word here is the same unknown one
    task = GlueTask(task="sst2", folder=str(tmp_path), shots=4)
    rows = kvpolicy.evaluate(
        model, tokenizer, tasks=[task], recipes=["snapkv"], budgets=[40], limit=1
    ).rows
    assert not any(row.error for row in rows)
    assert {row.question for row in rows} == {"outside"}
    [sample, *_] = task.samples(None)
    item = len(tokenizer(sample.question, add_special_tokens=False)["input_ids"])
    held = {row.entrant: row.positions for row in rows}
    assert (held["full"], held["snapkv"]) == (rows[0].tokens, 40 + item)


def test_the_run_may_say_where_an_item_is_asked(tmp_path):
    write_numbers(tmp_path, 4)
    task = GlueTask(task="sst2", folder=str(tmp_path), shots=2, question="inside")
    assert not any(sample.outside for sample in task.samples(None))


def test_what_is_wrong_is_said(tmp_path):
    write_own(tmp_path, "rte")
    with pytest.raises(DataError, match="training data of rte have 3 examples, fewer than shots 4"):
        list(GlueTask(task="rte", folder=str(tmp_path), shots=4).samples(None))
    with pytest.raises(
        DataError, match=r"cannot read train-00000-of-00001\.parquet in .*qqp.*73 MB"
    ):
        list(GlueTask(task="qqp", folder=str(tmp_path)).samples(None))
    file = tmp_path / "RTE" / "dev.tsv"
    file.write_text("index\tsentence1\tsentence2\tlabel\n0\ta\tb\tmaybe\n")
    with pytest.raises(
        DataError, match=r"dev\.tsv, row 2: field 'label' is 'maybe'. It must be one of entailment,"
    ):
        list(GlueTask(task="rte", folder=str(tmp_path), shots=1).samples(None))
    file.write_text("index\tsentence1\tlabel\n0\ta\tentailment\n")
    with pytest.raises(DataError, match=r"dev\.tsv, row 2 has no field 'sentence2'"):
        list(GlueTask(task="rte", folder=str(tmp_path), shots=1).samples(None))


def test_without_a_folder_the_hub_has_the_files(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match=r"sst2/train-00000-of-00001\.parquet .*nyu-mll/glue"):
        list(GlueTask(task="sst2").samples(None))
