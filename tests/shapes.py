"""Checks the shapes in signatures: what jaxtyping says of tensors, and nothing else.

Names that are imported for type checkers only cannot be checked at run time; mypy checks them.
"""

import beartype


def checked(function):
    """Return a function that checks the tensors in its signature; others are taken as they are."""
    annotations = getattr(function, "__annotations__", {})
    of_tensors = {name: hint for name, hint in annotations.items() if "[Tensor," in str(hint)}
    if not of_tensors:
        return function
    function.__annotations__ = of_tensors
    return beartype.beartype(function)
