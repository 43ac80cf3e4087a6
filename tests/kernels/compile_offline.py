"""Compile the kernel for GPUs that are not here, and print what it uses; run by the tests."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from kvpolicy_kernels.gather_kv import kernel

SIZES = {"D": 128, "DV": 128, "BLOCK_K": kernel.BLOCK_K, "BLOCK_D": 128, "BLOCK_DV": 128}
DENSE = {"keys_d": 1, "values_d": 1, "rows_k": 1}
ALIGNED = [["tt.divisibility", 16]]


def gather_kv(dtype: str) -> ASTSource:
    """As the launcher specialises it for aligned tensors with whole rows."""
    function = kernel._gather_kv_kernel
    constants = {**SIZES, **DENSE}
    kinds = {"rows": "*i64", **dict.fromkeys(("N", "S", "K"), "i32")}
    kinds |= dict.fromkeys(("keys", "values", "kept_keys", "kept_values"), f"*{dtype}")
    kinds |= dict.fromkeys(constants, "constexpr")
    signature = {name: kinds.get(name, "i32") for name in function.arg_names}
    attributes = {
        (place,): ALIGNED
        for place, (name, kind) in enumerate(signature.items())
        if kind != "constexpr" and name not in {"N", "S", "K"}
    }
    return ASTSource(fn=function, signature=signature, constexprs=constants, attrs=attributes)


def resources(cubin: bytes) -> dict[str, int]:
    """Registers, and bytes of stack and local memory: what spills would use."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(cubin)
        tool = triton.knobs.nvidia.cuobjdump.path
        report = subprocess.run(
            [tool, "--dump-resource-usage", path], check=True, capture_output=True, text=True
        ).stdout
    return {name: int(number) for name, number in re.findall(r"(REG|STACK|LOCAL):(\d+)", report)}


def main() -> None:
    """Fail if any variant keeps registers in memory."""
    spills = []
    for dtype, capability in itertools.product(("fp32", "bf16"), (80, 90)):
        compiled = triton.compile(gather_kv(dtype), target=GPUTarget("cuda", capability, 32))
        used = resources(compiled.asm["cubin"])
        print(f"gather_kv {dtype} sm_{capability}: {used}")
        if used["STACK"] or used["LOCAL"]:
            spills.append((dtype, capability))
    if spills:
        sys.exit(f"spills: {spills}")


if __name__ == "__main__":
    main()
