from compile_offline import Variant

from kvpolicy_kernels.token_shares import kernel


def variants():
    yield Variant(
        name="token_shares means",
        function=kernel._means_kernel,
        pointers={"scores": "fp32", "means": "fp32"},
        constants={"scores_s": 1, "BLOCK_S": kernel.BLOCK_MEANS},
        unaligned=("H", "S", "scores_b", "scores_h"),
    )
    yield Variant(
        name="token_shares",
        function=kernel._shares_kernel,
        pointers={"means": "fp32", "places": "i64", "shares": "fp32"},
        constants={"BLOCK_S": kernel.BLOCK_S, "STAGES": kernel.STAGES},
        unaligned=("FIRST", "S", "K"),
        warps=kernel.WARPS,
    )
