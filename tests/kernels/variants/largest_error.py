from itertools import product

from compile_offline import Variant

from kvpolicy_kernels.largest_error import kernel


def variants():
    for dtype, dim, (projected, tau) in product(
        ("fp32", "bf16"), (64, 128, 256), ((True, False), (True, True), (False, False))
    ):
        floats = ("others", "weights", "rests", "outputs", "errors")
        factors = {"factors": "fp32"} if projected else {}
        absent = (*(() if projected else ("factors",)), *(() if tau else ("tau",)))
        yield Variant(
            name=f"largest_error {dtype} D={dim}{' R' * projected}{' tau' * tau}",
            function=kernel._largest_error_kernel,
            pointers={"values": dtype, "places": "i64", **dict.fromkeys(floats, "fp32"), **factors},
            constants={
                "D": dim, "BLOCK_D": dim, "BLOCK_R": kernel.BLOCK_NUMBERS // dim,
                "values_d": 1, "factors_d": 1, **dict.fromkeys(absent),
            },
            floats=("tau",) if tau else (),
            unaligned=("H", "G", "R"),
        )  # fmt: skip
