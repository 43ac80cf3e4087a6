import os
from contextlib import contextmanager

import jaxtyping
import pytest
import torch

from kvpolicy_kernels import backend

os.environ.setdefault("TRITON_INTERPRET", "0" if torch.cuda.is_available() else "1")

collect_ignore = ["compile_offline.py", "variants"]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def naive_logits():
    """Masked logits [B H W S] in float64, every product written out."""

    def compute(queries, keys, scaling, softcap=None):
        group = queries.shape[1] // keys.shape[1]
        logits = queries.double() @ keys.double().repeat_interleave(group, 1).mT * scaling
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        window, positions = logits.shape[-2:]
        last_seen = torch.arange(positions - window, positions)[:, None]
        return logits.masked_fill(torch.arange(positions) > last_seen, -torch.inf)

    return compute


@pytest.fixture
def naive_rows(naive_logits):
    """Softmax [B H W S] and logsumexp [B H W] in float64, with each head's sink written out."""

    def compute(queries, keys, scaling, softcap=None, *, sinks):
        logits = naive_logits(queries, keys, scaling, softcap)
        column = sinks.double()[:, None, None].expand(*logits.shape[:3], 1)
        every = torch.cat([logits, column], -1)
        return every.softmax(-1)[..., :-1], every.logsumexp(-1)

    return compute


@pytest.fixture
def naive_odds():
    """Odds of being attended in float64, finite where one position has all attention."""
    return lambda attention: attention.double() / (1 - attention.double()).clamp_min(2**-20)


@pytest.fixture
def naive_norms():
    """|R_h (output_h - v_i)| for values [B N S D] and output [B H *T D], as [B H *T S]."""

    def compute(values, output, factors):
        group = output.shape[1] // values.shape[1]
        missing = output.double()[..., None, :] - values.double().repeat_interleave(
            group, 1
        ).reshape(*output.shape[:2], *[1] * (output.ndim - 3), *values.shape[2:])
        if factors is not None:
            missing = torch.einsum("bh...d,hrd->bh...r", missing, factors.double())
        return missing.norm(dim=-1)

    return compute


@pytest.fixture(params=["contiguous", "buffer", "transposed", "strided"])
def layout(request):
    """Turn [B N S D] into a view of the same numbers with other strides."""

    def of(tensor):
        if request.param == "buffer":
            room = torch.full((*tensor.shape[:2], tensor.shape[2] + 7, tensor.shape[3]), torch.nan)
            view = room.to(tensor.dtype)[:, :, : tensor.shape[2]]
        elif request.param == "transposed":
            view = torch.empty_like(tensor.transpose(1, 2).contiguous()).transpose(1, 2)
        elif request.param == "strided":
            view = torch.empty_like(tensor.mT.contiguous()).mT
        else:
            view = torch.empty_like(tensor)
        return view.copy_(tensor)

    return of


@pytest.fixture
def refused():
    """Expect a ValueError of the door itself: jaxtyping, which only tests use, is switched off."""

    @contextmanager
    def expect(message):
        jaxtyping.config.update("jaxtyping_disable", True)
        try:
            with pytest.raises(ValueError, match=message):
                yield
        finally:
            jaxtyping.config.update("jaxtyping_disable", False)

    return expect


@pytest.fixture
def device():
    """Where kernels run: on the GPU, or in Triton's interpreter."""
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture
def triton_kernels(monkeypatch):
    """Let the doors choose the Triton kernels, and make an error of falling back."""
    pytest.importorskip("triton", reason="Triton is not installed")
    monkeypatch.setenv("KVPOLICY_KERNELS", "triton")
    backend._warn_once.cache_clear()


@pytest.fixture(params=["reference", "triton"])
def form(request, monkeypatch):
    """Run the reference, and the kernel: on a GPU or in Triton's interpreter."""
    if request.param == "triton":
        request.getfixturevalue("triton_kernels")
    else:
        monkeypatch.setenv("KVPOLICY_KERNELS", "reference")
    return request.param


# Only the interpreter runs programs one by one, in an order that can be reversed.
ORDERS = ["forwards"] if torch.cuda.is_available() else ["forwards", "backwards"]


@pytest.fixture(params=ORDERS)
def program_order(request, monkeypatch):
    """Run the programs of a launch in either order: results must not depend on it."""
    if request.param == "backwards":
        interpreter = pytest.importorskip("triton.runtime.interpreter")
        builder = interpreter.interpreter_builder
        forwards = builder.set_grid_idx

        def backwards(*place):
            forwards(*(size - 1 - i for size, i in zip(builder.grid_dim, place, strict=True)))

        monkeypatch.setattr(builder, "set_grid_idx", backwards)
