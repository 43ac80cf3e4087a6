"""Files in LongBench's format become its prompts, with its rules for templates and tokens."""

# ruff: noqa: RUF001 - Chinese marks are meant
from __future__ import annotations

import json
import zipfile

import pytest

from kvpolicy.errors import DataError, InvalidValueError
from kvpolicy.evaluation.tasks.groups import GROUPS
from kvpolicy.evaluation.tasks.longbench.task import BUCKETS, TASKS, LongBenchTask

LINE = {
    "input": "Who keeps {goats}?",
    "context": "Otto {keeps} goats.",
    "answers": ["Otto", "It is Otto."],
    "length": 3,
    "dataset": "any",
    "language": "en",
    "all_classes": ["Food", "Human", "Human being"],
    "_id": "abc",
}


@pytest.fixture
def read(tmp_path):
    def read(task, line=LINE, **options):
        file = tmp_path / (f"{task}_e.jsonl" if "bucket" in options else f"{task}.jsonl")
        lines = [line] if isinstance(line, dict) else line
        file.write_text("".join(json.dumps(each, ensure_ascii=False) + "\n" for each in lines))
        return list(LongBenchTask(task=task, folder=str(tmp_path), **options).samples(None))

    return read


def test_the_prompt_is_the_template_with_its_fields(read):
    [sample] = read("narrativeqa")
    text = sample.context + sample.question
    assert text.startswith("You are given a story, which can be either a novel or a movie script")
    assert (
        "Story: Otto {keeps} goats.\n\nNow, answer the question based on the story asconcise"
        in text
    )
    assert text.endswith("\n\nQuestion: Who keeps {goats}?\n\nAnswer:")
    assert sample.context.endswith("goats.")
    assert sample.answers == ("Otto", "It is Otto.")


@pytest.mark.parametrize(
    ("task", "end"),
    [
        ("hotpotqa", "Question: Who keeps {goats}?\nAnswer:"),
        ("gov_report", "Now, write a one-page summary of the report.\n\nSummary:"),
        ("trec", "goats.\nWho keeps {goats}?"),
        ("samsum", "goats.\n\nWho keeps {goats}?"),
        ("passage_count", "The final answer is: "),
        ("lcc", "goats.Next line of code:\n"),
        ("repobench-p", "goats.Who keeps {goats}?Next line of code:\n"),
    ],
)
def test_the_end_of_a_prompt_is_kept_to_the_letter(read, task, end):
    [sample] = read(task)
    assert (sample.context + sample.question).endswith(end)


def test_there_are_16_tasks_with_their_numbers_of_tokens(read):
    tokens = {task: read(task)[0].max_new_tokens for task in TASKS}
    assert len(tokens) == len(GROUPS["longbench"]) == 16
    assert sum(tokens.values()) == 128 * 3 + 64 * 4 + 32 * 6 + 512 * 3
    assert (tokens["qasper"], tokens["lcc"], tokens["musique"]) == (128, 64, 32)


def test_few_shot_tasks_and_code_go_without_a_chat_template(read):
    without = {task for task in TASKS if read(task)[0].chat is False}
    assert without == {"trec", "triviaqa", "samsum", "lcc", "repobench-p"}
    assert all(read(task, preset="restkv")[0].chat is False for task in TASKS)


def test_the_preset_of_restkv_writes_at_least_a_token(read):
    least = [read("qasper", preset=each)[0].min_new_tokens for each in ("official", "restkv")]
    assert least == [0, 1]
    assert read("samsum")[0].min_new_tokens == 1


LENGTHS = [0, 3999, 4000, 7999, 8000, 20000]


@pytest.mark.parametrize(
    ("bucket", "expected"),
    [("0-4k", [0, 3999]), ("4-8k", [4000, 7999]), ("from-8k", [8000, 20000])],
)
def test_longbench_e_is_read_by_lengths(read, bucket, expected):
    samples = read("qasper", [LINE | {"length": each} for each in LENGTHS], bucket=bucket)
    assert [sample.extra["length"] for sample in samples] == expected
    places = [LENGTHS.index(length) for length in expected]
    assert [sample.name for sample in samples] == [f"{place} abc" for place in places]


def test_longbench_e_has_13_tasks_by_three_lengths():
    assert len(GROUPS["longbench_e"]) == 39
    assert set(GROUPS["longbench_e"]) == {
        name for bucket in BUCKETS for name in GROUPS[f"longbench_e_{bucket}"]
    }
    assert "longbench_e_lcc_from-8k" in GROUPS["longbench_e_from-8k"]


def test_a_task_that_longbench_e_does_not_have_is_refused():
    with pytest.raises(InvalidValueError, match=r"'qmsum' is none of them\. It has: qasper"):
        LongBenchTask(task="qmsum", folder="data", bucket="4-8k")


def test_a_line_of_longbench_e_without_a_length_is_named(read):
    with pytest.raises(DataError, match=r"lcc_e\.jsonl, line 1: field 'length' is None"):
        read("lcc", LINE | {"length": None}, bucket="4-8k")


CHINESE_LINE = LINE | {"input": "谁养羊？", "context": "小明养羊。", "language": "zh"}


@pytest.mark.parametrize(
    ("task", "tokens", "end"),
    [
        ("multifieldqa_zh", 64, "\n\n问题：谁养羊？\n回答："),
        ("dureader", 128, "\n\n问题：谁养羊？\n回答："),
        ("vcsum", 512, "小明养羊。\n\n会议总结："),
        ("lsht", 64, "小明养羊。\n谁养羊？"),
        ("passage_retrieval_zh", 32, '答案格式必须是"段落1"，"段落2"等格式\n\n答案是：'),
    ],
)
def test_chinese_tasks_have_their_prompts_and_numbers_of_tokens(read, task, tokens, end):
    [sample] = read(task, CHINESE_LINE)
    assert (sample.context + sample.question).endswith(end)
    assert sample.max_new_tokens == tokens
    assert sample.chat is (False if task == "lsht" else None)


def test_the_chinese_tasks_are_a_group_of_their_own():
    assert len(GROUPS["longbench_zh"]) == 5
    assert not set(GROUPS["longbench_zh"]) & set(GROUPS["longbench"])


def test_without_a_folder_the_hub_has_the_archive(monkeypatch, tmp_path):
    archive = tmp_path / "data.zip"
    with zipfile.ZipFile(archive, "w") as written:
        written.writestr("data/qasper.jsonl", json.dumps(LINE))
    asked = []
    monkeypatch.setattr(
        "huggingface_hub.hf_hub_download", lambda *names, **_: asked.append(names) or str(archive)
    )
    assert len(list(LongBenchTask(task="qasper").samples(None))) == 1
    assert len(list(LongBenchTask(task="qasper", folder=str(tmp_path)).samples(None))) == 1
    assert asked == [("THUDM/LongBench", "data.zip")]


def test_offline_one_error_says_what_is_missing(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        DataError, match=r"read data\.zip in .*\(114 MB\).*LongBench.*folder=\.\.\."
    ):
        list(LongBenchTask(task="lcc").samples(None))


@pytest.mark.parametrize("folder", ["data/", ""])
def test_the_archive_is_read_as_it_is(tmp_path, folder):
    archive = tmp_path / "data.zip"
    with zipfile.ZipFile(archive, "w") as written:
        written.writestr(f"{folder}qasper.jsonl", json.dumps(LINE) + "\n")
        written.writestr(f"{folder}lcc.jsonl", json.dumps(LINE | {"answers": None}) + "\n")
    [sample] = LongBenchTask(task="qasper", folder=str(archive)).samples(None)
    assert sample.answers == ("Otto", "It is Otto.")
    with pytest.raises(DataError, match=r"data\.zip.*lcc\.jsonl, line 1: field 'answers' is None"):
        list(LongBenchTask(task="lcc", folder=str(archive)).samples(None))
    with pytest.raises(DataError, match=r"cannot read trec\.jsonl in '.*data\.zip'.*\(114 MB\)"):
        list(LongBenchTask(task="trec", folder=str(archive)).samples(None))


def test_the_folder_of_an_unpacked_archive_is_found(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "qasper.jsonl").write_text(json.dumps(LINE))
    assert len(list(LongBenchTask(task="qasper", folder=str(tmp_path)).samples(None))) == 1


def test_a_file_that_is_no_archive_is_refused(tmp_path):
    (tmp_path / "data.zip").write_text("no archive")
    with pytest.raises(DataError, match=r"data\.zip' is neither a folder nor a \.zip"):
        list(LongBenchTask(task="lcc", folder=str(tmp_path / "data.zip")).samples(None))


def test_every_task_has_its_metric(read):
    names = {task: LongBenchTask(task=task, folder="data").metric.name for task in TASKS}
    assert names["narrativeqa"] == names["triviaqa"] == "qa_f1"
    assert names["samsum"] == names["gov_report"] == "rouge"
    assert (names["trec"], names["lcc"]) == ("classification", "code_sim")
    [sample] = read("trec", LINE | {"answers": ["Human"]})
    assert LongBenchTask(task="trec", folder="data").metric.judge("\nHuman\nFood", sample) == 1


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"answers": "Otto"}, "field 'answers' is 'Otto'. It must be of type list"),
        ({"answers": []}, r"field 'answers' is \[\]. It must hold texts"),
        ({"context": None}, "field 'context' is None"),
        ({"all_classes": None}, "field 'all_classes' is None"),
    ],
)
def test_a_line_that_is_none_of_longbench_is_named(read, change, sentence):
    with pytest.raises(DataError, match=f"trec.jsonl, line 1.*{sentence}"):
        read("trec", LINE | change)


def test_a_missing_file_is_named_with_its_origin(tmp_path):
    with pytest.raises(
        DataError, match=r"cannot read lcc.jsonl in .*data.zip \(114 MB\) of the data set THUDM"
    ):
        list(LongBenchTask(task="lcc", folder=str(tmp_path)).samples(None))


def test_an_unknown_task_is_refused():
    with pytest.raises(InvalidValueError, match="'task' must be one of"):
        LongBenchTask(task="lc", folder="data")
