"""The plugin that offers kvpolicy's own tasks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from kvpolicy.evaluation.needle.kinds import KINDS as NEEDLE
from kvpolicy.evaluation.tasks.few_shot.formats import FORMATS as GLUE
from kvpolicy.evaluation.tasks.few_shot.glue import GlueTask
from kvpolicy.evaluation.tasks.few_shot.mmlu import MmluTask
from kvpolicy.evaluation.tasks.haystack import HaystackTask
from kvpolicy.evaluation.tasks.infinitebench.synthetic import SYNTHETIC, SyntheticTask
from kvpolicy.evaluation.tasks.infinitebench.task import TASKS as INFINITEBENCH
from kvpolicy.evaluation.tasks.infinitebench.task import InfiniteBenchTask
from kvpolicy.evaluation.tasks.instructions.following import InstructionsTask
from kvpolicy.evaluation.tasks.instructions.leakage import LeakageTask
from kvpolicy.evaluation.tasks.longbench.task import BUCKETS, CHINESE, EXTENDED, LongBenchTask
from kvpolicy.evaluation.tasks.longbench.task import TASKS as LONGBENCH
from kvpolicy.evaluation.tasks.multidoc2dial.task import MultiDoc2DialTask
from kvpolicy.evaluation.tasks.needle import NeedleKindTask, NeedleTask
from kvpolicy.evaluation.tasks.perplexity import DATASETS, PerplexityTask
from kvpolicy.evaluation.tasks.ruler.common_words import CommonWordsTask
from kvpolicy.evaluation.tasks.ruler.frequent_words import FrequentWordsTask
from kvpolicy.evaluation.tasks.ruler.niah import NiahTask
from kvpolicy.evaluation.tasks.ruler.qa import QaTask
from kvpolicy.evaluation.tasks.ruler.variables import VariablesTask
from kvpolicy.evaluation.tasks.scbench.task import TASKS as SCBENCH
from kvpolicy.evaluation.tasks.scbench.task import SharedContextTask
from kvpolicy.evaluation.tasks.sessions import SessionsTask
from kvpolicy.evaluation.tasks.stdlib import StandardLibraryTask
from kvpolicy.evaluation.tasks.topics import TopicsTask
from kvpolicy.hookspecs import hookimpl
from kvpolicy.task import Task

RULER: Mapping[str, Callable[..., Task]] = {
    "ruler_niah_single_1": partial(NiahTask, haystack="noise"),
    "ruler_niah_single_2": partial(NiahTask, haystack="essay"),
    "ruler_niah_single_3": partial(NiahTask, haystack="essay", values="uuids"),
    "ruler_niah_multikey_1": partial(NiahTask, haystack="essay", num_keys=4),
    "ruler_niah_multikey_2": partial(NiahTask, haystack="needle"),
    "ruler_niah_multikey_3": partial(NiahTask, haystack="needle", keys="uuids", values="uuids"),
    "ruler_niah_multivalue": partial(NiahTask, haystack="essay", num_values=4),
    "ruler_niah_multiquery": partial(NiahTask, haystack="essay", num_queries=4),
    "ruler_vt": VariablesTask,
    "ruler_cwe": CommonWordsTask,
    "ruler_fwe": FrequentWordsTask,
    "ruler_qa_1": partial(QaTask, dataset="squad"),
    "ruler_qa_2": partial(QaTask, dataset="hotpotqa"),
}


OFFERED: Mapping[str, Callable[..., Task]] = {
    "needle": NeedleTask,
    "needle_single": partial(NeedleTask, facts=1),
    "needle_multikey": partial(NeedleTask, facts=64),
    "needle_shared": partial(NeedleTask, questions=4),
    **{f"needle_{kind}": partial(NeedleKindTask, kind=kind) for kind in NEEDLE},
    "haystack": HaystackTask,
    "perplexity": PerplexityTask,
    "stdlib": StandardLibraryTask,
    "stdlib_sessions": SessionsTask,
    "stdlib_topics": TopicsTask,
    **{f"perplexity_{name}": partial(PerplexityTask, dataset=name) for name in DATASETS},
    "multidoc2dial": MultiDoc2DialTask,
    **RULER,
    **{f"longbench_{task}": partial(LongBenchTask, task=task) for task in (*LONGBENCH, *CHINESE)},
    **{
        f"longbench_e_{task}_{bucket}": partial(LongBenchTask, task=task, bucket=bucket)
        for task in EXTENDED
        for bucket in BUCKETS
    },
    **{f"infinitebench_{task}": partial(InfiniteBenchTask, task=task) for task in INFINITEBENCH},
    **{f"infinitebench_{task}": partial(SyntheticTask, task=task) for task in SYNTHETIC},
    **{f"glue_{task}": partial(GlueTask, task=task) for task in GLUE},
    "mmlu": MmluTask,
    "instructions": InstructionsTask,
    "prompt_leakage": LeakageTask,
    **{f"scbench_{task}": partial(SharedContextTask, task=task) for task in SCBENCH},
}
"""Every task by its name; the same objects at every call of the hook."""


@hookimpl
def kvpolicy_tasks() -> Mapping[str, Callable[..., Task]]:
    """Offer the tasks."""
    return OFFERED
