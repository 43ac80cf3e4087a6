from itertools import product

from compile_offline import Variant

from kvpolicy_kernels.gaussian_logits import kernel


def variants():
    for dtype, dim, spread in product(("fp32", "bf16"), (64, 128, 256), (True, False)):
        tile = kernel.logit_tile(exact=dtype == "fp32")
        yield Variant(
            name=f"gaussian_logits {dtype} D={dim}{'' if spread else ' mean only'}",
            function=kernel._logits_kernel,
            pointers={"keys": dtype, "mean": "fp32", "covariance": "fp32", "logits": "fp32"},
            constants={
                "D": dim, "SPREAD": spread, "BLOCK_S": tile.positions, "BLOCK_C": tile.columns,
                "CHANNELS": tile.channels, "PRECISION": tile.precision, "keys_d": 1,
            },
            unaligned=("H", "G", "S"),
            floats=("linear", "quadratic"),
            warps=8,
        )  # fmt: skip
