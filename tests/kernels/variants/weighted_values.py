from compile_offline import Variant

from kvpolicy_kernels.weighted_values import kernel

EXACT = {"fp32": True, "bf16": False}
DENSE = {"attention_s": 1, "values_d": 1}


def variants():
    for dtype in EXACT:
        for dim in (64, 128, 256):
            yield _sums(dtype, dim, group=4)
        for dim in (128, 256):
            yield _sums(dtype, dim, group=32)
            yield _sums(dtype, dim, group=4, without=True)


def _sums(dtype, dim, group, *, without=False):
    tile = kernel.sum_tile(group, EXACT[dtype])
    return Variant(
        name=f"weighted_values {dtype} D={dim} G={group}{' without one' * without}",
        function=kernel._weighted_values_kernel,
        pointers={
            "attention": "fp32", "values": dtype, "partials": "fp32",
            **({"without": "i64"} if without else {}),
        },
        constants={
            "D": dim, "BLOCK_D": dim, "BLOCK_G": tile.heads, "BLOCK_S": tile.positions,
            "PRECISION": tile.precision,
            **DENSE, **({} if without else {"without": None}),
        },
        unaligned=("N", "G", "S", "GROUP_BLOCKS", "attention_b", "attention_h"),
        warps=tile.warps,
    )  # fmt: skip
