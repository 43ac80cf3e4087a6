import triton
from compile_offline import Variant

from kvpolicy_kernels.partition_deviations import kernel


def variants():
    for dtype in ("fp32", "bf16"):
        for dim in (64, 128, 256):
            block = triton.next_power_of_2(dim)
            yield Variant(
                name=f"partition_deviations {dtype} D={dim}",
                function=kernel._deviations_kernel,
                pointers={"states": dtype, "found": "fp32"},
                constants={
                    "D": dim,
                    "BLOCK_D": block,
                    "BLOCK_L": kernel.BLOCK_NUMBERS // block,
                    "states_d": 1,
                },
                unaligned=("N", "JUDGED"),
                floats=("freedom", "LIMIT"),
                warps=8,
            )
