"""Checks the shapes in signatures: what jaxtyping says of tensors, and nothing else.

A check costs as much as a small operation, and one test may call a function thousands of times. So
each test checks a function's first CALLS calls, and further cases of the same test the first call.
The variable KVPOLICY_SHAPES=all checks all of them, as `make deep` does.

Names that are imported for type checkers only cannot be checked at run time; mypy checks them.
"""

import functools
import inspect
import os
from collections import Counter

import beartype
import jaxtyping
import torch

CALLS = 4
"""How many calls of a function are checked in a test: two layers read a prompt, and a token."""
EVERY_CALL = os.environ.get("KVPOLICY_SHAPES") == "all"
_called: Counter[object] = Counter()
_now = {"test": None, "calls": CALLS}
_jaxtyped = jaxtyping.jaxtyped


def install(packages):
    """Check the shapes in the signatures of these packages, which must not be imported yet."""
    jaxtyping.jaxtyped = _where_shapes_are_named
    jaxtyping.install_import_hook(packages, "shapes.checked")


def start_test(test):
    """Begin to count calls anew. Cases of one test, one behind another, give the same `test`."""
    _called.clear()
    _now.update(test=test, calls=1 if test == _now["test"] else CALLS)


def checked(function):
    """Return a function that checks the tensors in its signature; others are taken as they are."""
    annotations = getattr(function, "__annotations__", {})
    of_tensors = {name: hint for name, hint in annotations.items() if _names_a_shape(hint)}
    if not of_tensors:
        return function
    function.__annotations__ = of_tensors
    return beartype.beartype(function)


def _where_shapes_are_named(**options):
    """Stand for `jaxtyping.jaxtyped` in modules that the hook imports."""
    return functools.partial(_counted, **options)


def _counted(part, **options):
    """Return `part`, checked at the first calls of a test if its signature names a shape."""
    if not inspect.isfunction(part):
        return part
    if not any(map(_names_a_shape, part.__annotations__.values())):
        return part
    # A function inside a function is made at each call of the outer one. To make its check costs
    # more than many checks, so it is made when the first call is checked.
    made = []
    code = part.__code__

    @functools.wraps(part)
    def counted(*args, **kwargs):
        if torch.compiler.is_compiling():
            return part(*args, **kwargs)
        _called[code] += 1
        if _called[code] > _now["calls"] and not EVERY_CALL:
            return part(*args, **kwargs)
        if not made:
            made.append(_jaxtyped(part, **options))
        return made[0](*args, **kwargs)

    return counted


def _names_a_shape(hint):
    return "[Tensor," in str(hint)
