"""Compile the kernels of rooms for GPUs that are not here; print what they use. Run by tests.

python tests/kernels/compile_offline.py gather_kv 90       # all variants, for one kind of GPU
python tests/kernels/compile_offline.py gather_kv,select 90 4    # one variant of four of each
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parent))

ALIGNED = [["tt.divisibility", 16]]


class Variant(NamedTuple):
    """A kernel as its launcher specialises it; `variants/<room>.py` gives those of its room."""

    name: str
    function: Any
    pointers: Mapping[str, str]
    """Type of what each pointer points at, such as "bf16"."""
    constants: Mapping[str, Any]
    """Values of constexpr arguments, and of strides that are 1."""
    unaligned: Iterable[str] = ()
    """Integers that 16 need not divide, such as lengths; it divides all others and addresses."""
    floats: Iterable[str] = ()
    """Arguments that are numbers with a fraction; what is named nowhere is an integer."""
    warps: int = 4
    stages: int = 3
    spills_on: Iterable[int] = ()
    """Capabilities where a few spilled bytes are known, and why is said where this is given."""


def compiled(variant: Variant, capability: int) -> Any:
    """Compile for one kind of GPU; no GPU is needed."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kinds = {name: f"*{kind}" for name, kind in variant.pointers.items()}
    kinds |= dict.fromkeys(variant.constants, "constexpr") | dict.fromkeys(variant.floats, "fp32")
    signature = {name: kinds.get(name, "i32") for name in variant.function.arg_names}
    unaligned = {*variant.unaligned, *variant.constants, *variant.floats}
    attributes = {
        (place,): ALIGNED for place, name in enumerate(signature) if name not in unaligned
    }
    source = ASTSource(
        fn=variant.function,
        signature=signature,
        constexprs=dict(variant.constants),
        attrs=attributes,
    )
    options = {"num_warps": variant.warps, "num_stages": variant.stages}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def resources(cubin: bytes) -> dict[str, int]:
    """Registers, and bytes of stack and local memory: what spills would use."""
    import triton

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(cubin)
        tool = triton.knobs.nvidia.cuobjdump.path
        report = subprocess.run(
            [tool, "--dump-resource-usage", path], check=True, capture_output=True, text=True
        ).stdout
    return {name: int(number) for name, number in re.findall(r"(REG|STACK|LOCAL):(\d+)", report)}


def main() -> None:
    """Fail if any variant of the rooms keeps registers in memory."""
    spills = []
    rooms, capability, every = [*sys.argv[1:], "1"][:3]
    variants = [
        variant
        for room in rooms.split(",")
        for variant in list(import_module(f"variants.{room}").variants())[:: int(every)]
    ]
    for variant in variants:
        kernel = compiled(variant, int(capability))
        used = resources(kernel.asm["cubin"])
        spilled = used["STACK"] + used["LOCAL"]
        print(
            f"{variant.name:44} sm_{capability} {used['REG']:4} registers "
            f"{kernel.metadata.shared:7} B shared {spilled:4} B spilled"
        )
        if spilled and int(capability) not in variant.spills_on:
            spills.append((variant.name, capability))
    if spills:
        sys.exit(f"spills: {spills}")


if __name__ == "__main__":
    main()
