from itertools import product

import torch
from compile_offline import Variant

from kvpolicy_kernels.common.triton.largest import BLOCK_S, STAGES, WARPS
from kvpolicy_kernels.row_statistics import kernel


def variants():
    for dtype, dim, rows in product(("fp32", "bf16"), (64, 128), (16, 64, kernel.MOST_ROWS)):
        yield _logits(dtype, dim, rows)
    yield Variant(
        name="row_statistics sums",
        function=kernel._sums_kernel,
        pointers={"logits": "fp32", "sums": "i64"},
        constants={"ROWS": kernel.MOST_ROWS, "BLOCK_S": BLOCK_S, "STAGES": STAGES},
        unaligned=("first", "count", "G", "W", "S"),
        warps=WARPS,
    )


def _logits(dtype, dim, rows):

    block = kernel.blocks(torch.float32 if dtype == "fp32" else torch.bfloat16, dim)
    return Variant(
        name=f"row_statistics logits {dtype} D={dim} rows={rows}",
        function=kernel._logits_kernel,
        pointers={"queries": dtype, "keys": dtype, "logits": "fp32"},
        constants={
            "D": dim,
            "ROWS": rows,
            "BLOCK_S": block["BLOCK_S"],
            "CHANNELS": block["CHANNELS"],
            "PRECISION": "ieee" if dtype == "fp32" else "tf32",
            "UP": False,
            "queries_d": 1,
            "keys_d": 1,
        },
        unaligned=("first", "N", "G", "W", "S"),
        floats=("scaling",),
        warps=block["num_warps"],
        stages=block["num_stages"],
    )
