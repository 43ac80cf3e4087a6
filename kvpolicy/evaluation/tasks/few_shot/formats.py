"""GLUE's tasks with choices: their prompts, and where their files keep what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import attrs


@attrs.frozen(kw_only=True)
class Format:
    """A task of GLUE: its prompt, its choices, and where its files keep what.

    `folder` and `labels` are the names in GLUE's own files, `config` is the one on the hub, where
    labels are their places. `columns` gives columns of GLUE's own files the hub's names. A file
    whose first row does not name them has those of `header`. `size` is that of all of its files.
    `metric` is the one that GLUE gives, besides the accuracy.
    """

    prompt: str
    choices: Sequence[str]
    folder: str
    config: str
    size: str
    labels: Sequence[str] = ("0", "1")
    columns: Mapping[str, str] = attrs.field(factory=dict)
    header: Sequence[str] = ()
    dev: str = "dev"
    validation: str = "validation"
    metric: str = "multiple_choice"


_ENTAILMENT = ("entailment", "not_entailment")
_TRUE = "{sentence1}\nQuestion: {sentence2} True or False?\nAnswer:"
_MNLI = Format(
    prompt="{premise}\nQuestion: {hypothesis} True, False or Neither?\nAnswer:",
    choices=("True", "Neither", "False"),
    folder="MNLI",
    config="mnli",
    size="57 MB",
    labels=("entailment", "neutral", "contradiction"),
    columns={"sentence1": "premise", "sentence2": "hypothesis", "gold_label": "label"},
    dev="dev_matched",
    validation="validation_matched",
)
FORMATS: Mapping[str, Format] = {
    "cola": Format(
        prompt="{sentence}\nQuestion: Does this sentence make sense?\nAnswer:",
        choices=("no", "yes"),
        folder="CoLA",
        config="cola",
        size="0.3 MB",
        header=("source", "label", "star", "sentence"),
        metric="matthews_correlation",
    ),
    "mnli": _MNLI,
    "mnli_mismatch": attrs.evolve(_MNLI, dev="dev_mismatched", validation="validation_mismatched"),
    "mrpc": Format(
        prompt="Sentence 1: {sentence1}\nSentence 2: {sentence2}\n"
        "Question: Do both sentences mean the same thing?\nAnswer:",
        choices=("no", "yes"),
        folder="MRPC",
        config="mrpc",
        size="1 MB",
        columns={"#1 String": "sentence1", "#2 String": "sentence2", "Quality": "label"},
        metric="f1_of_set",
    ),
    "qnli": Format(
        prompt="{question}\n{sentence}\nQuestion: Does this response answer the question?\nAnswer:",
        choices=("yes", "no"),
        folder="QNLI",
        config="qnli",
        size="19 MB",
        labels=_ENTAILMENT,
    ),
    "qqp": Format(
        prompt="Question 1: {question1}\nQuestion 2: {question2}\n"
        "Question: Do both questions ask the same thing?\nAnswer:",
        choices=("no", "yes"),
        folder="QQP",
        config="qqp",
        size="73 MB",
        columns={"is_duplicate": "label"},
        metric="f1_of_set",
    ),
    "rte": Format(
        prompt=_TRUE,
        choices=("True", "False"),
        folder="RTE",
        config="rte",
        size="1.3 MB",
        labels=_ENTAILMENT,
    ),
    "sst2": Format(
        prompt="{sentence}\nQuestion: Is this sentence positive or negative?\nAnswer:",
        choices=("negative", "positive"),
        folder="SST-2",
        config="sst2",
        size="3.3 MB",
    ),
    "wnli": Format(
        prompt=_TRUE, choices=("False", "True"), folder="WNLI", config="wnli", size="0.1 MB"
    ),
}
"""The tasks with choices; the prompts are those of lm-evaluation-harness 0.4 (MIT)."""
