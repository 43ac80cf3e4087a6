from itertools import product

from compile_offline import Variant

from kvpolicy_kernels.summed_rows import kernel


def variants():
    for dtype, dim, ordered in product(("fp32", "bf16"), (64, 128, 256), (True, False)):
        yield Variant(
            name=f"summed_rows {dtype} D={dim}{' sorted' if ordered else ''}",
            function=kernel._summed_rows_kernel,
            pointers={
                "table": dtype, "shares": "fp32", "sums": "fp64",
                "rows": "i64", "ordered": "i32", "order": "i32",
            },
            constants={
                "D": dim, "SORTED": ordered, "BLOCK_D": dim,
                "BLOCK_E": kernel.BLOCK_NUMBERS // dim, "FLOAT": kernel.tl.float64, "table_d": 1,
            },
            unaligned=("N", "S", "E", "K", "STEPS"),
        )  # fmt: skip
