"""Every metric by its name, and a user's own as `module:name`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from pathlib import Path

from kvpolicy.errors import ComponentFailedError, InvalidValueError, shown, suggest, told
from kvpolicy.evaluation.measures.rouge import rouge_l
from kvpolicy.evaluation.measures.sets import outcome
from kvpolicy.evaluation.measures.text import contains, edit_similarity, exact_match, token_f1
from kvpolicy.task import Judge, Metric, Sample


def best(agreement: Callable[[str, str], float]) -> Judge:
    """Return a judge that takes the answer with which the text agrees best.

    >>> judge = best(exact_match)
    >>> judge("red", Sample(name="1", answers=("blue", "red")))
    1.0
    """
    return partial(_best, agreement)  # which can be pickled


def _best(agreement: Callable[[str, str], float], text: str, sample: Sample) -> float:
    return max(float(agreement(text, answer)) for answer in sample.answers)


def share_found(text: str, sample: Sample) -> float:
    """Return the share of the answers that occur in the text.

    >>> share_found("red and blue", Sample(name="1", answers=("blue", "green")))
    0.5
    """
    return sum(contains(text, answer) for answer in sample.answers) / len(sample.answers)


METRICS: Mapping[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric(name="exact_match", judge=best(exact_match)),
        Metric(name="contains", judge=best(contains)),
        Metric(name="contains_all", judge=share_found),
        Metric(name="f1", judge=best(token_f1)),
        Metric(name="rouge_l", judge=best(rouge_l)),
        Metric(name="edit_similarity", judge=best(edit_similarity)),
        Metric(name="multiple_choice", judge=best(exact_match), asks="choice"),
        Metric(name="matthews_correlation", judge=best(exact_match), asks="choice", parts=outcome),
        Metric(name="f1_of_set", judge=best(exact_match), asks="choice", parts=outcome),
        Metric(name="perplexity", asks="likelihood"),
        Metric(name="dialogue_perplexity", asks="dialogue"),
        Metric(name="agreement", asks="agreement"),
    )
}
"""The metrics that a user can name."""


def metric_named(name: str) -> Metric:
    """Return the metric of that name, or a function `module:name` of the text and the sample.

    A module is looked for in the current folder too.

    >>> metric_named("f1").name, metric_named("difflib:unified_diff").name
    ('f1', 'difflib:unified_diff')

    Raises InvalidValueError if there is no such metric, module or function, and
    ComponentFailedError if the module cannot be imported.
    """
    if name in METRICS:
        return METRICS[name]
    module, colon, attribute = name.partition(":")
    if not (colon and module and attribute):
        raise InvalidValueError(
            f"no metric named {shown(name)}.{suggest(name, METRICS)} Metrics: "
            f"{', '.join(METRICS)}, or module:name for a function of your own."
        )
    function = getattr(_imported(module, name), attribute, None)
    if not callable(function):
        raise InvalidValueError(
            f"module {module!r} has no function {attribute!r}. Define "
            f"`def {attribute}(text, sample): ...` there; it returns a number."
        )
    return Metric(name=name, judge=function)


def _imported(module: str, name: str) -> object:
    here = str(Path.cwd())
    added = here not in sys.path
    if added:
        sys.path.insert(0, here)
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name and not f"{module}.".startswith(f"{error.name}."):
            raise ComponentFailedError(f"metric {name!r}: {told(error)}") from error
        raise InvalidValueError(
            f"there is no module {module!r} for the metric {shown(name)}. Put {module}.py into "
            f"this folder, or install it."
        ) from error
    except Exception as error:
        raise ComponentFailedError(f"metric {name!r} cannot be imported: {told(error)}") from error
    finally:
        if added:
            sys.path.remove(here)
