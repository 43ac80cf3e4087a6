"""A door, its reference and its kernel have one signature: names, order, defaults and types."""

import inspect
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

import kvpolicy_kernels

FOLDER = Path(kvpolicy_kernels.__file__).parent
ROOMS = sorted(path.parent.name for path in FOLDER.glob("*/reference.py"))


def module(room, name=None):
    return import_module(".".join(filter(None, ("kvpolicy_kernels", room, name))))


def doors(room):
    """The public functions that a room has a reference of, by name."""
    door, reference = module(room), module(room, "reference")
    return {
        name: function
        for name in door.__all__
        if inspect.isfunction(function := getattr(door, name))
        and function is not getattr(reference, name, None)
    }


def signature(function):
    return str(inspect.signature(function))


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_offers_its_doors_at_the_top(room):
    assert doors(room)
    for name, door in doors(room).items():
        assert getattr(kvpolicy_kernels, name) is door
        assert name in kvpolicy_kernels.__all__


@pytest.mark.parametrize("form", ["reference", "kernel"])
@pytest.mark.parametrize("room", ROOMS)
def test_every_form_of_an_operation_has_the_signature_of_its_door(room, form):
    if not (FOLDER / room / f"{form}.py").exists():
        assert form == "kernel"
        return
    if form == "kernel" and find_spec("triton") is None:
        # Triton exists for Linux only, and kvpolicy works without it.
        pytest.skip("Triton is not installed")
    forms = module(room, form)
    for name, door in doors(room).items():
        assert signature(getattr(forms, name)) == signature(door), f"{room}.{form}.{name}"
