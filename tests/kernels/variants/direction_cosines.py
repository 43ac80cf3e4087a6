from compile_offline import Variant

from kvpolicy_kernels.direction_cosines import kernel


def variants():
    for dtype in ("fp32", "bf16"):
        for dim in (64, 128, 256):
            constants = {
                "D": dim,
                "BLOCK_D": dim,
                "BLOCK_S": kernel.BLOCK_NUMBERS // dim,
                "keys_d": 1,
            }
            yield Variant(
                name=f"direction_cosines sums {dtype} D={dim}",
                function=kernel._sums_kernel,
                pointers={"keys": dtype, "partials": "fp64"},
                constants=constants,
                unaligned=("N", "S", "SPAN"),
                floats=("TINY",),
            )
            yield Variant(
                name=f"direction_cosines {dtype} D={dim}",
                function=kernel._cosines_kernel,
                pointers={"keys": dtype, "anchor": "fp64", "cosines": "fp32"},
                constants=constants,
                unaligned=("N", "S"),
                floats=("TINY",),
            )
