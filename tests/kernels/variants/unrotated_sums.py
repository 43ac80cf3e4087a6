from itertools import product

from compile_offline import Variant

from kvpolicy_kernels.unrotated_sums import kernel


def variants():
    for dtype, dim, centred in product(("fp32", "bf16"), (64, 128, 256), (True, False)):
        yield _sums(dtype, dim, centred=centred)
    yield _sums("bf16", 128, centred=True, interleaved=True)
    yield _sums("bf16", 128, centred=True, further=False)
    yield _sums("bf16", 128, centred=False, sizes=True)


def _sums(dtype, dim, centred, *, interleaved=False, further=True, sizes=False):
    tile = kernel.product_tile(dim, exact=dtype == "fp32")
    tables = ("cosines", "sines", "further_cosines", "further_sines")
    floats = (*tables, "centre", "sums", "sizes", "products")
    return Variant(
        name=f"unrotated_sums {dtype} D={dim}{' products' if centred else ''}"
        f"{' interleaved' if interleaved else ''}{'' if further else ' one table'}"
        f"{' sizes' if sizes else ''}",
        function=kernel._sums_kernel,
        pointers={"vectors": dtype, **dict.fromkeys(floats, "fp32")},
        constants={
            "D": dim, "R": dim, "INTERLEAVED": interleaved, "CENTRED": centred,
            "FURTHER": further, "SIZES": sizes, "BLOCK_D": dim,
            "BLOCK_C": tile.columns, "BLOCK_S": tile.positions, "PRECISION": tile.precision,
            "vectors_d": 1,
        },
        unaligned=("H", "S", "T", "COLUMN_BLOCKS"),
        warps=tile.warps,
        stages=kernel.STAGES,
    )  # fmt: skip
