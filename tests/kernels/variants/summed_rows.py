from itertools import product

from compile_offline import Variant

from kvpolicy_kernels.summed_rows import kernel


def variants():
    for dtype, dim, ascending in product(("fp32", "bf16"), (64, 128, 256), (True, False)):
        yield Variant(
            name=f"summed_rows {dtype} D={dim}{' ascending' if ascending else ''}",
            function=kernel._summed_rows_kernel,
            pointers={
                "table": dtype, "shares": "fp32", "sums": "fp64",
                "rows": "i64", "ordered": "i32", **({} if ascending else {"order": "i32"}),
            },
            constants={
                "D": dim, "BLOCK_D": dim, "BLOCK_E": kernel.BLOCK_NUMBERS // dim,
                "FLOAT": kernel.tl.float64, "table_d": 1, **({"order": None} if ascending else {}),
            },
            unaligned=("N", "S", "E", "K", "STEPS"),
        )  # fmt: skip
