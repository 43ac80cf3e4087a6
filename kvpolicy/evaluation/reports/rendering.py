"""Fills the templates of pages; what is filled in is text, and no markup."""

from __future__ import annotations

import re
from typing import Any


def rendered(template: str, **given: Any) -> str:
    """Return a page of kvpolicy/evaluation/templates. A name that is not given is an error."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("kvpolicy.evaluation"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["parts"] = parts
    return environment.get_template(template).render(**given)


def parts(name: str) -> list[str]:
    """Return the parts of a name between which a line may end.

    >>> parts("a_task(b=1)")
    ['a_', 'task(', 'b=', '1)']
    """
    return re.split(r"(?<=[_(=/,-])(?=\S)", name)
