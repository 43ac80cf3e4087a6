import os
from contextlib import contextmanager

import pytest
import torch
from jaxtyping import TypeCheckError

os.environ.setdefault("TRITON_INTERPRET", "0" if torch.cuda.is_available() else "1")

collect_ignore = ["compile_offline.py"]


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
    """Expect a ValueError; where jaxtyping checks the doors too, it is the first to refuse."""

    @contextmanager
    def expect(message):
        with pytest.raises((ValueError, TypeCheckError)) as error:
            yield
        assert isinstance(error.value, TypeCheckError) or error.match(message)

    return expect
