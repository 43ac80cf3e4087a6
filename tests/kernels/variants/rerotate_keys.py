from itertools import product

from compile_offline import Variant

from kvpolicy_kernels.rerotate_keys import kernel

TABLES = ("old_cos", "old_sin", "new_cos", "new_sin")
DENSE = {"keys_d": 1, "old_d": 1, "new_d": 1}


def variants():
    for dtype, interleaved in product(("fp32", "bf16"), (False, True)):
        for chosen in (False, True):
            yield Variant(
                name=f"rerotate_keys {dtype}{' interleaved' * interleaved}{' rows' * chosen}",
                function=kernel._rerotate_keys_kernel,
                pointers={**dict.fromkeys(TABLES, "fp32"), "keys": dtype, "rotated": dtype}
                | ({"rows": "i64"} if chosen else {}),
                constants={
                    **DENSE,
                    **({} if chosen else {"rows": None}),
                    "D": 128,
                    "R": 128,
                    "INTERLEAVED": interleaved,
                    "BLOCK_K": kernel.BLOCK_NUMBERS // 128,
                    "BLOCK_D": 128,
                },
                unaligned=("N", "K", "rows_b"),
            )
