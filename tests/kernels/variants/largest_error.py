from itertools import product

from compile_offline import Variant

from kvpolicy_kernels.largest_error import kernel

SIZES = ("H", "G", "R", "S", "SUMMED", "SPLITS", "attention_b", "attention_h")


def variants():
    for sinks in (False, True):
        yield Variant(
            name=f"largest_weight{' sinks' * sinks}",
            function=kernel._largest_kernel,
            pointers={"attention": "fp32", "places": "i64", "rests": "fp32"},
            constants={"SINKS": sinks, "BLOCK_S": kernel.BLOCK_S, "attention_s": 1},
            unaligned=SIZES,
            warps=kernel.WARPS,
        )
    for dtype, dim, (projected, tau) in product(
        ("fp32", "bf16"), (64, 128, 256), ((True, False), (True, True), (False, False))
    ):
        floats = ("attention", "partials", "rests", "outputs", "errors")
        factors = {"factors": "fp32"} if projected else {}
        absent = (*(() if projected else ("factors",)), *(() if tau else ("tau",)))
        yield Variant(
            name=f"largest_error {dtype} D={dim}{' R' * projected}{' tau' * tau}",
            function=kernel._largest_error_kernel,
            pointers={"values": dtype, "places": "i64", **dict.fromkeys(floats, "fp32"), **factors},
            constants={
                "D": dim, "BLOCK_D": dim, "BLOCK_R": kernel.BLOCK_NUMBERS // dim,
                "attention_s": 1, "values_d": 1, "factors_d": 1, **dict.fromkeys(absent),
            },
            floats=("tau",) if tau else (),
            unaligned=SIZES,
        )  # fmt: skip
