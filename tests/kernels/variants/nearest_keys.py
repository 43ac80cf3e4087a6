from itertools import product

from compile_offline import Variant

from kvpolicy_kernels.nearest_keys import kernel


def variants():
    for dtype, dim, marked in product(("fp32", "bf16"), (64, 128, 256), (True, False)):
        exact = dtype == "fp32"
        tile = kernel.pair_tile(dim, exact=exact)
        yield Variant(
            name=f"nearest_keys {dtype} D={dim}{' marked' * marked}",
            function=kernel._nearest_kernel,
            pointers={
                "keys": dtype, "others": dtype, "norms": "fp32", "rows": "i64",
                "slots": "i32", "cosines": "fp32", **({"is_other": "i1"} if marked else {}),
            },
            constants={
                "D": dim, "LEAST": kernel.LEAST, "BLOCK_E": tile.rows, "BLOCK_K": tile.others,
                "CHANNELS": tile.channels, "PRECISION": "ieee" if exact else "tf32",
                "UP": False, "keys_d": 1, "others_d": 1,
                **({} if marked else {"is_other": None}),
            },
            unaligned=("N", "S", "E", "K"),
            warps=tile.warps,
        )  # fmt: skip
