from itertools import product

from compile_offline import Variant

from kvpolicy_kernels.similar_keys import kernel


def variants():
    for dtype, dim, last in product(("fp32", "bf16"), (64, 128, 256), (True, False)):
        exact = dtype == "fp32"
        tile = kernel.pair_tile(dim, exact=exact)
        yield Variant(
            name=f"similar_keys {dtype} D={dim} {'last' if last else 'first'}",
            function=kernel._similar_kernel,
            pointers={"keys": dtype, "norms": "fp32", "positions": "i64", "cosines": "fp64"},
            constants={
                "D": dim, "LAST": last, "LEAST": kernel.LEAST, "BLOCK_R": tile.rows,
                "BLOCK_C": tile.columns, "CHANNELS": tile.channels,
                "PRECISION": "ieee" if exact else "tf32", "UP": False, "keys_d": 1,
            },
            unaligned=("N", "S"),
            floats=("threshold",),
            warps=tile.warps,
        )  # fmt: skip
