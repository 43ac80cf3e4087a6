"""Makes the project of a new plugin from templates: complete, and its contract passes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from kvpolicy.errors import InvalidValueError, shown, suggest

FOLDER = Path(__file__).parent
_NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")


@attrs.frozen(kw_only=True)
class Example:
    """What the new part of a kind does at first: its summary, its equation and its recipe."""

    summary: str
    equation: str
    recipe: Mapping[str, Any] | None
    ends: str
    """How the name of the class ends."""


EXAMPLES: Mapping[str, Example] = {
    "scorer": Example(
        summary="Scores a position by the attention of the last queries to it.",
        equation="s_j = fold over w of softmax_j(q_w · k_j · scaling), for the last W queries q_w",
        recipe={"scorer": "NAME"},
        ends="Scorer",
    ),
    "smoother": Example(
        summary="Weights late queries more, and pools scores over neighbours.",
        equation="s_j = Σ_w decay^(W-1-w) v_wj / Σ_w decay^(W-1-w), then the mean of "
        "s_(j-width//2) ... s_(j+width//2)",
        recipe={"scorer": "snapkv", "smoother": "NAME"},
        ends="Smoother",
    ),
    "allocator": Example(
        summary="Gives early layers the whole budget, and late layers a share of it.",
        equation="b_l = max(protected, ⌊budget · (1 - (1 - last) · l / (L - 1))⌋)",
        recipe={"scorer": "snapkv", "allocator": "NAME"},
        ends="Allocator",
    ),
    "selector": Example(
        summary="Keeps the positions with the highest scores; of equal scores the later position.",
        equation="K_n = the b_n positions j with the largest s_nj",
        recipe={"scorer": "snapkv", "selector": "NAME"},
        ends="Selector",
    ),
    "compactor": Example(
        summary="Copies the kept rows into smaller keys and values.",
        equation="K'_i = K_(j_i) and V'_i = V_(j_i), for the selected rows j_1 < j_2 < ...",
        recipe={"scorer": "snapkv", "compactor": "NAME"},
        ends="Compactor",
    ),
    "storage": Example(
        summary="Keeps a layer as it is between two forwards.",
        equation="load(store(contents)) = contents",
        recipe=None,
        ends="Storage",
    ),
    "task": Example(
        summary="Asks for the number that comes next.",
        equation="score = 1 if the text begins with the answer, else 0",
        recipe=None,
        ends="Task",
    ),
}
"""An example for each kind that a plugin can begin with."""


def new_plugin(name: str, kind: str, folder: Path) -> list[Path]:
    """Write the project of a plugin into a new folder `kvpolicy-NAME`, and return its files.

    Raises InvalidValueError for a kind or a name that cannot be, and for a folder that exists.
    """
    if kind not in EXAMPLES:
        raise InvalidValueError(
            f"--kind must be one of {', '.join(EXAMPLES)}, not {shown(kind)}."
            f"{suggest(kind, EXAMPLES)}"
        )
    if not _NAME.fullmatch(name) or len(name) > 40:
        raise InvalidValueError(
            "the name of a plugin has at most 40 lower-case letters, digits and single "
            f"underscores, and begins with a letter, but is {shown(name)}."
        )
    project = folder / f"kvpolicy-{name.replace('_', '-')}"
    if project.exists():
        raise InvalidValueError(
            f"{shown(str(project))} exists already. Choose another name, or --folder."
        )
    texts = rendered(name, kind)
    for path, text in texts.items():
        file = project / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    return [project / path for path in texts]


def rendered(name: str, kind: str) -> dict[str, str]:
    """Return the text of every file of a project, by its path in it."""
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
    )
    example = EXAMPLES[kind]
    words = {
        "name": name,
        "kind": kind,
        "example": example,
        "project": f"kvpolicy-{name.replace('_', '-')}",
        "module": f"kvpolicy_{name}",
        "part": "".join(word.capitalize() for word in name.split("_")) + example.ends,
        "recipe": None if example.recipe is None else _recipe(example.recipe, name),
    }
    files = {f"kvpolicy_{name}.py": f"parts/{kind}.py.jinja"} | {
        path: f"project/{path.lstrip('.')}.jinja"
        for path in (
            *("README.md", "pyproject.toml", "tests/test_contract.py"),
            ".github/workflows/tests.yml",
        )
    }
    return {path: environment.get_template(source).render(words) for path, source in files.items()}


def _recipe(arguments: Mapping[str, Any], name: str) -> str:
    pairs = (f'"{kind}": "{part.replace("NAME", name)}"' for kind, part in arguments.items())
    return f"{{{', '.join(pairs)}}}"
