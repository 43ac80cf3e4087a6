"""Checks what a wheel and an sdist contain, and prints their sizes."""

from __future__ import annotations

import re
import sys
import tarfile
import zipfile
from pathlib import Path

LARGEST = 10 * 2**20
"""Bytes: what a distribution may have. Most of it are the needle models and their pictures."""
PACKAGES = ("kvpolicy/", "kvpolicy_kernels/", "kvpolicy_restkv/")
NEEDED = ("kvpolicy/py.typed", "kvpolicy/evaluation/needle/model/config.json", "kvpolicy/scaffold/")
FOREIGN = ("tests/", "docs/", "benchmarks/", ".venv")
"""How no file of a wheel begins."""


def check(files: list[str], needed: tuple[str, ...], foreign: tuple[str, ...], name: str) -> None:
    """Exit with a sentence if a file is missing, or is there and should not be."""
    for each in needed:
        if not any(each in file for file in files):
            sys.exit(f"{name} has no {each}")
    for each in foreign:
        if found := [file for file in files if file.startswith(each) or "__pycache__" in file]:
            sys.exit(f"{name} has {found[0]}, which belongs elsewhere")


def main(folder: Path) -> None:
    """Check the one wheel and the one sdist in a folder."""
    [wheel], [sdist] = folder.glob("*.whl"), folder.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as opened:
        files = opened.namelist()
        [metadata] = [file for file in files if file.endswith(".dist-info/METADATA")]
        text = opened.read(metadata).decode()
    check(files, (*PACKAGES, *NEEDED, "entry_points.txt", "licenses/LICENSE"), FOREIGN, wheel.name)
    if links := re.findall(r"\]\((?!https?:|#)[^)]*\)", text):
        sys.exit(f"the README of the wheel has a link that no package index can follow: {links[0]}")
    with tarfile.open(sdist) as opened:
        names = opened.getnames()
    sources = ("/plugins/kvpolicy_restkv/", "/tests/conftest.py", "/Makefile", "/CITATION.cff")
    check(names, (*NEEDED, *sources), (".venv",), sdist.name)
    for each, count in ((wheel, len(files)), (sdist, len(names))):
        size = each.stat().st_size
        print(f"{each.name}: {count} files, {size / 2**20:.1f} MiB")
        if size > LARGEST:
            sys.exit(f"{each.name} has {size:,} bytes, more than {LARGEST:,}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
