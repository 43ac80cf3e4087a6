from compile_offline import Variant

from kvpolicy_kernels.heirs import kernel


def variants():
    yield Variant(
        name="heirs",
        function=kernel._heirs_kernel,
        pointers={
            "attention": "fp32", "draws": "fp32", "kept": "i64", "evicted": "i64",
            "firsts": "i32", "shares": "fp32",
        },
        constants={"attention_s": 1, "draws_s": 1, "BLOCK_E": kernel.BLOCK_E},
        unaligned=("N", "S", "K", "E", "STEPS", "MOST", "attention_b", "attention_n", "draws_n"),
    )  # fmt: skip
    for dtype in ("fp32", "bf16"):
        for dim in (64, 128, 256):
            yield Variant(
                name=f"inherited {dtype} D={dim}",
                function=kernel._inherited_kernel,
                pointers={"begun": "fp64", "kept": dtype, "inherited": dtype},
                constants={
                    "D": dim, "BLOCK_K": kernel.BLOCK_K, "BLOCK_D": dim,
                    "FLOAT": kernel.tl.float64, "kept_d": 1,
                },
                unaligned=("N", "K", "MOST"),
            )  # fmt: skip
