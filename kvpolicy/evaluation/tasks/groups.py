"""Groups of tasks, which are asked for by one name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from kvpolicy.evaluation.needle.kinds import KINDS as NEEDLE
from kvpolicy.evaluation.tasks.few_shot.formats import FORMATS as GLUE
from kvpolicy.evaluation.tasks.infinitebench.synthetic import SYNTHETIC
from kvpolicy.evaluation.tasks.infinitebench.task import TASKS as INFINITEBENCH
from kvpolicy.evaluation.tasks.longbench.task import BUCKETS, CHINESE, EXTENDED
from kvpolicy.evaluation.tasks.longbench.task import TASKS as LONGBENCH
from kvpolicy.evaluation.tasks.scbench.task import TASKS as SCBENCH

_NIAH = ("single_1", "single_2", "single_3", "multikey_1", "multikey_2", "multikey_3")
_RULER = (
    *(f"ruler_niah_{name}" for name in (*_NIAH, "multivalue", "multiquery")),
    *("ruler_vt", "ruler_cwe", "ruler_fwe"),
)

GROUPS: Mapping[str, tuple[str, ...]] = {
    "needles": (
        *("needle_single", "needle", "needle_multikey"),
        *(f"needle_{kind}" for kind in NEEDLE),
    ),
    "ruler": (*_RULER, "ruler_qa_1", "ruler_qa_2"),
    "ruler_restkv": _RULER,
    "longbench": tuple(f"longbench_{task}" for task in LONGBENCH),
    "longbench_zh": tuple(f"longbench_{task}" for task in CHINESE),
    "longbench_e": tuple(f"longbench_e_{task}_{bucket}" for task in EXTENDED for bucket in BUCKETS),
    **{
        f"longbench_e_{bucket}": tuple(f"longbench_e_{task}_{bucket}" for task in EXTENDED)
        for bucket in BUCKETS
    },
    "infinitebench": tuple(f"infinitebench_{task}" for task in INFINITEBENCH),
    "glue": tuple(f"glue_{task}" for task in GLUE),
    "pitfalls": ("instructions", "prompt_leakage"),
    "scbench": tuple(f"scbench_{task}" for task in SCBENCH),
    "infinitebench_synthetic": tuple(f"infinitebench_{task}" for task in SYNTHETIC),
}
"""The tasks of each group. ReST-KV's authors leave out the questions about documents."""


def expanded(names: Iterable[str]) -> list[str]:
    """Return the names of tasks, with each group replaced by its tasks; none twice.

    >>> expanded(["ruler_restkv", "needle"])[-2:], len(expanded(["ruler", "ruler_restkv"]))
    (['ruler_fwe', 'needle'], 13)
    """
    return list(dict.fromkeys(task for name in names for task in GROUPS.get(name, (name,))))
