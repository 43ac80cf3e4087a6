from compile_offline import Variant

from kvpolicy_kernels.weighted_products import kernel


def variants():
    for dtype in ("fp32", "bf16"):
        for dim in (64, 128, 256):
            yield _products(dtype, dim)


def _products(dtype, dim):
    tile = kernel.product_tile(dim, exact=dtype == "fp32")
    return Variant(
        name=f"weighted_products {dtype} D={dim}",
        function=kernel._products_kernel,
        pointers={"weights": "fp32", "values": dtype, "products": "fp32"},
        constants={
            "D": dim, "BLOCK_D": dim, "BLOCK_C": tile.columns, "BLOCK_S": tile.positions,
            "PRECISION": tile.precision, "values_d": 1, "weights_s": 1,
        },
        unaligned=("H", "G", "S", "COLUMN_BLOCKS", "weights_b", "weights_h"),
        warps=tile.warps,
        stages=kernel.STAGES,
    )  # fmt: skip
