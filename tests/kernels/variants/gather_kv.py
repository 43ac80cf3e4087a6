from compile_offline import Variant

from kvpolicy_kernels.gather_kv import kernel

SIZES = {"D": 128, "DV": 128}
DENSE = {"keys_d": 1, "values_d": 1, "rows_k": 1}
BYTES = {"fp32": 4, "bf16": 2}


def variants():
    for dtype in BYTES:
        yield Variant(
            name=f"gather_kv {dtype}",
            function=kernel._gather_kv_kernel,
            pointers={
                **dict.fromkeys(("keys", "values", "kept_keys", "kept_values"), dtype),
                "rows": "i64",
            },
            constants={
                **SIZES,
                **DENSE,
                "BLOCK_K": kernel.BLOCK_K,
                "BLOCK_D": 128,
                "BLOCK_DV": 128,
            },
            unaligned=("N", "S", "K"),
        )
        channels = kernel.MOVED_BYTES // BYTES[dtype]
        yield Variant(
            name=f"compact_in_place {dtype}",
            function=kernel._compact_kernel,
            pointers={"keys": dtype, "values": dtype, "rows": "i64"},
            constants={
                **SIZES,
                **DENSE,
                "BLOCK_K": kernel.MOVED_ROWS,
                "BLOCK_D": channels,
                "BLOCK_DV": channels,
            },
            unaligned=("N", "S", "K"),
        )
