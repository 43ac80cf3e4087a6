from compile_offline import Variant

from kvpolicy_kernels.projected_norms import kernel


def variants():
    for order in (1, 2):
        for dim in (64, 128, 256):
            yield _norms("bf16", "bf16", dim, order)
        yield _norms("fp32", "fp32", 128, order)
    # Factors of a projection are float32.
    yield _norms("bf16", "fp32", 128, 2)


def _norms(values, weights, dim, order):
    exact = "fp32" in (values, weights)
    tile = kernel.product_tile(dim, exact=exact)
    return Variant(
        name=f"projected_norms {values} {weights} D={dim} order={order}",
        function=kernel._projected_norms_kernel,
        pointers={"values": values, "weights": weights, "norms": "fp32"},
        constants={
            "D": dim, "BLOCK_S": tile.positions, "BLOCK_R": tile.rows, "CHANNELS": tile.channels,
            "SQUARES": order == 2, "PRECISION": "ieee" if exact else "tf32",
            "UP": values != weights, "values_d": 1, "weights_d": 1,
        },
        unaligned=("N", "G", "S"),
        warps=tile.warps,
        stages=tile.stages,
    )  # fmt: skip
