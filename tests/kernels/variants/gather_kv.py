from compile_offline import Variant

from kvpolicy_kernels.gather_kv import kernel

SIZES = {"D": 128, "DV": 128, "BLOCK_K": kernel.BLOCK_K, "BLOCK_D": 128, "BLOCK_DV": 128}
DENSE = {"keys_d": 1, "values_d": 1, "rows_k": 1}


def variants():
    tables = ("keys", "values", "kept_keys", "kept_values")
    for dtype in ("fp32", "bf16"):
        yield Variant(
            name=f"gather_kv {dtype}",
            function=kernel._gather_kv_kernel,
            pointers={**dict.fromkeys(tables, dtype), "rows": "i64"},
            constants={**SIZES, **DENSE},
            unaligned=("N", "S", "K"),
        )
