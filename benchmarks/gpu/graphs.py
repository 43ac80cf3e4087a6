"""CUDA graphs of decode steps."""

from __future__ import annotations

from collections.abc import Callable

import torch

Call = Callable[[], object]


def captured(step: Call, device: torch.device) -> Call:
    """Return a call that replays `step` as one CUDA graph; on a CPU, `step` itself.

    Tensors that `step` reads and writes must live as long as the returned call.
    """
    if device.type != "cuda":
        return step
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream(device).wait_stream(stream)
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            kept = step()
    finally:
        # A capture that fails leaves its stream as the current one.
        torch.cuda.set_stream(torch.cuda.default_stream(device))

    def replay(results: object = kept) -> None:
        graph.replay()

    return replay
