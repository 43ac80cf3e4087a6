"""Copy the cases of the methods that are tested here out of the full golden data.

python tests/plugins/golden/take.py FOLDER    (holds cases.json and golden.npz)
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

METHODS = {
    "restkv",
    "restkv_ablation",
    "snapkv",
    "snapkv_gqa",
    "streamingllm",
    "streamingllm_prefill",
}
INPUTS = ("q", "k", "v", "wo")


def take(source: Path, target: Path) -> None:
    """Write the cases of METHODS, their arrays and their inputs, unchanged."""
    index = json.loads((source / "cases.json").read_text())
    cases = [case for case in index["cases"] if case["method"] in METHODS]
    inputs = sorted({case["input"] for case in cases if case["input"]})
    with np.load(source / "golden.npz") as arrays:
        names = [f"{case['id']}/{array}" for case in cases for array in case["arrays"]]
        names += [f"input/{name}/{array}" for name in inputs for array in INPUTS]
        np.savez_compressed(target / "golden.npz", **{name: arrays[name] for name in names})
    index |= {"inputs": {name: index["inputs"][name] for name in inputs}, "cases": cases}
    (target / "cases.json").write_text(json.dumps(index, indent=1) + "\n")


if __name__ == "__main__":
    take(Path(sys.argv[1]), Path(__file__).parent)
