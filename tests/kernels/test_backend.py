import os
import subprocess
import sys
import warnings

import pytest
import torch

from kvpolicy_kernels import backend, gather_kv
from kvpolicy_kernels.backend import KernelFallbackWarning, implementation

ROOM = "kvpolicy_kernels.gather_kv"


@pytest.fixture(autouse=True)
def _forgotten(monkeypatch):
    monkeypatch.delenv("KVPOLICY_KERNELS", raising=False)
    backend._warn_once.cache_clear()


def test_the_reference_runs_on_a_cpu():
    assert implementation(gather_kv, torch.zeros(1)).__module__ == f"{ROOM}.reference"


@pytest.mark.usefixtures("triton_kernels")
def test_the_variable_asks_for_kernels(device):
    assert implementation(gather_kv, torch.zeros(1, device=device)).__module__ == f"{ROOM}.kernel"


def test_the_variable_asks_for_the_reference(device, monkeypatch):
    monkeypatch.setenv("KVPOLICY_KERNELS", "reference")
    assert (
        implementation(gather_kv, torch.zeros(1, device=device)).__module__ == f"{ROOM}.reference"
    )


def test_a_misspelt_choice_is_an_error(monkeypatch):
    monkeypatch.setenv("KVPOLICY_KERNELS", "tritn")
    with pytest.raises(ValueError, match="one of auto, reference, triton, not 'tritn'"):
        implementation(gather_kv, torch.zeros(1))


def test_kernels_on_a_cpu_need_the_interpreter(monkeypatch):
    monkeypatch.setenv("KVPOLICY_KERNELS", "triton")
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(ValueError, match=r"not all tensors are on a GPU: cpu.*TRITON_INTERPRET"):
        implementation(gather_kv, torch.zeros(1))


def test_kernels_need_triton(monkeypatch):
    monkeypatch.setenv("KVPOLICY_KERNELS", "triton")
    monkeypatch.setattr(backend, "_has_triton", lambda: False)
    with pytest.raises(ValueError, match=r"Triton is not installed. Install kvpolicy\[kernels\]"):
        implementation(gather_kv, torch.zeros(1))


@pytest.mark.usefixtures("triton_kernels")
def test_what_a_kernel_does_not_take_runs_in_pytorch_and_says_so_once(device):
    keys = torch.arange(8.0, dtype=torch.float64, device=device).view(1, 1, 4, 2)
    rows = torch.tensor([[[3, 1]]], device=device)
    with pytest.warns(KernelFallbackWarning, match="gather_kv runs in PyTorch.*float64"):
        kept, _ = gather_kv(keys, keys, rows)
    assert kept.flatten().tolist() == [6, 7, 2, 3]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gather_kv(keys, keys, rows)


@pytest.mark.usefixtures("triton_kernels")
def test_the_warning_points_at_the_call(device, tmp_path):
    script = tmp_path / "caller.py"
    script.write_text(f"""
import torch
from kvpolicy_kernels import gather_kv

keys = torch.zeros(1, 1, 4, 2, dtype=torch.float64, device={device!r})
gather_kv(keys, keys, torch.zeros(1, 1, 1, dtype=torch.int64, device={device!r}))
""")
    # Not here, where jaxtyping puts its own frames between the call and the door.
    environment = os.environ | {"PYTHONPATH": ":".join(filter(None, sys.path))}
    run = subprocess.run(
        [sys.executable, script], env=environment, capture_output=True, text=True, check=True
    )
    assert f"{script}:6: KernelFallbackWarning: gather_kv runs in PyTorch" in run.stderr


@pytest.mark.usefixtures("triton_kernels")
def test_gradients_are_not_lost_to_a_kernel(device):
    keys = torch.zeros(1, 1, 4, 2, device=device, requires_grad=True)
    kept, _ = gather_kv(keys, keys, torch.tensor([[[3, 1]]], device=device))
    kept.sum().backward()
    assert keys.grad[0, 0, :, 0].tolist() == [0, 1, 0, 1]
