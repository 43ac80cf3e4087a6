from compile_offline import Variant

from kvpolicy_kernels.rerotate_keys import kernel

TABLES = ("old_cos", "old_sin", "new_cos", "new_sin")
DENSE = {"keys_d": 1, "old_d": 1, "new_d": 1}


def variants():
    for dtype in ("fp32", "bf16"):
        for interleaved in (False, True):
            yield Variant(
                name=f"rerotate_keys {dtype}{' interleaved' if interleaved else ''}",
                function=kernel._rerotate_keys_kernel,
                pointers={**dict.fromkeys(TABLES, "fp32"), "keys": dtype, "rotated": dtype},
                constants={
                    **DENSE,
                    "D": 128,
                    "R": 128,
                    "INTERLEAVED": interleaved,
                    "BLOCK_S": kernel.BLOCK_NUMBERS // 128,
                    "BLOCK_D": 128,
                },
                unaligned=("N", "S"),
            )
