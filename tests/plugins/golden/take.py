"""Copy the golden data, its cases indented for reading and review.

python tests/plugins/golden/take.py FOLDER    (holds cases.json and golden.npz)
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path


def take(source: Path, target: Path) -> None:
    """Copy every case, array and input, unchanged."""
    index = json.loads((source / "cases.json").read_text())
    (target / "cases.json").write_text(json.dumps(index, indent=1) + "\n")
    shutil.copyfile(source / "golden.npz", target / "golden.npz")


if __name__ == "__main__":
    take(Path(sys.argv[1]), Path(__file__).parent)
