from compile_offline import Variant

from kvpolicy_kernels.group_scores import kernel


def variants():
    for dtype in ("fp32", "bf16"):
        for how in ("mean", "max", "sum"):
            yield Variant(
                name=f"group_scores {dtype} {how}",
                function=kernel._group_kernel,
                pointers={"scores": dtype, "grouped": dtype},
                constants={"scores_s": 1, "HOW": how, "BLOCK_S": kernel.BLOCK_S},
                unaligned=("N", "G", "S", "scores_b", "scores_h"),
            )
        yield Variant(
            name=f"protect_scores {dtype}",
            function=kernel._protect_kernel,
            pointers={"scores": dtype, "positions": "i64", "protected": dtype},
            constants={"scores_s": 1, "positions_s": 1, "BLOCK_S": kernel.BLOCK_S},
            unaligned=("before", "since", "N", "S", "scores_b", "positions_b"),
        )
