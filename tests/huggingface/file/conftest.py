"""For tests of files: saved caches, edited files, and processes with fewer rights."""

import json
import os
import traceback

import pytest
from safetensors import safe_open
from safetensors.torch import save_file

from kvpolicy.exactness.usages import small_policy
from kvpolicy.exactness.usages.inputs import read
from kvpolicy.huggingface.file import container
from kvpolicy.testing.models import tiny_model

NOBODY = 65534


@pytest.fixture
def path(tmp_path):
    """Where a cache goes."""
    return tmp_path / "cache.safetensors"


@pytest.fixture(scope="session")
def saved():
    """Give a function that saves a cache of a small model, and returns both."""

    def save(path, model=None, storage=None, **policy):
        model = model or tiny_model()
        cache = small_policy(**{"recipe": "restkv"} | policy).cache(model, storage=storage)
        read(model, cache, (60, 1, 5))
        cache.save(path)
        return model, cache

    return save


@pytest.fixture
def edit():
    """Give a function that changes text and tensors of a file, as another program might."""

    def edited(path, change):
        with safe_open(path, framework="pt") as file:
            text = json.loads(file.metadata()["kvpolicy"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        change(text, tensors)
        text.pop("digest", None)
        text["digest"] = container._digest(text, tensors)
        save_file(tensors, path, {"kvpolicy": json.dumps(text)})

    return edited


@pytest.fixture
def in_a_child():
    """Give a function that runs another one in a child process, and fails if that one does."""

    def run(action):
        child = os.fork()
        if child == 0:
            try:
                action()
            except BaseException:  # noqa: BLE001 - the child ends here, whatever it was
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0

    return run


@pytest.fixture
def as_nobody(in_a_child, tmp_path):
    """Give a function that runs another one without the rights of root."""

    def run(action):
        if os.geteuid() != 0:
            in_a_child(action)
            return
        # A process of pytest-xdist has a folder of its own between these.
        for folder in (tmp_path, *tmp_path.parents):
            if folder.name.startswith("pytest-of-"):
                folder.chmod(0o755)
                break
            folder.chmod(0o755)

        def dropped():
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            action()

        in_a_child(dropped)

    return run
