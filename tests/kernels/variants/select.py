from compile_offline import Variant

from kvpolicy_kernels.common.triton.largest import BLOCK_S, STAGES, WARPS
from kvpolicy_kernels.select import kernel


def variants():
    for dtype in ("fp32", "bf16"):
        for name, unaligned in (("", ("N", "K")), (" odd", ("N", "K", "S", "scores_n"))):
            yield Variant(
                name=f"select {dtype}{name}",
                function=kernel._select_kernel,
                pointers={"scores": dtype, "budgets": "i64", "kept": "i64"},
                constants={
                    "scores_s": 1,
                    "budgets_n": 1,
                    "BLOCK_S": BLOCK_S,
                    "STAGES": STAGES,
                },
                unaligned=(*unaligned, "budgets_b"),
                warps=WARPS,
            )
    yield Variant(
        name="select fp32 one budget",
        function=kernel._select_kernel,
        pointers={"scores": "fp32", "kept": "i64"},
        constants={"budgets": None, "scores_s": 1, "BLOCK_S": BLOCK_S, "STAGES": STAGES},
        unaligned=("of_all", "N", "K", "budgets_b", "budgets_n"),
        warps=WARPS,
    )
    yield Variant(
        name="unselected",
        function=kernel._unselected_kernel,
        pointers={"rows": "i64", "left": "i64"},
        constants={"BLOCK_S": kernel.BLOCK_LEFT},
        unaligned=("S", "K", "E", "STEPS"),
    )
