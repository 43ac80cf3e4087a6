"""No gradients in this room; one test turns them on to see that they do no harm."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield
