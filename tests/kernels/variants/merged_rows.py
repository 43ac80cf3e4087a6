from itertools import product

from compile_offline import Variant

from kvpolicy_kernels.merged_rows import kernel

# A token: one row, one share for all. A prompt: rows in the order of their slots, and their shares.
CASES = {"one": ("order", "shares", "counts"), "some": ("counts",), "counted": ()}


def variants():
    for dtype, dim, (name, absent) in product(("fp32", "bf16"), (64, 128, 256), CASES.items()):
        of_rows = {"order": "i32", "shares": "fp32", "counts": "fp32"}
        yield Variant(
            name=f"merged_rows {dtype} D={dim} {name}",
            function=kernel._merged_rows_kernel,
            pointers={
                "kept": dtype, "table": dtype, "merged": dtype, "rows": "i64", "ordered": "i32",
                **{name: kind for name, kind in of_rows.items() if name not in absent},
            },
            constants={
                "D": dim, "BLOCK_D": dim, "BLOCK_E": kernel.BLOCK_NUMBERS // dim,
                "FLOAT": kernel.tl.float64, "kept_d": 1, "table_d": 1, **dict.fromkeys(absent),
            },
            floats=("of_all", "repeated", "counted"),
            unaligned=("N", "S", "E", "K", "STEPS"),
            warps=kernel.WARPS,
        )  # fmt: skip
