from itertools import product

import torch
from compile_offline import Variant

from kvpolicy_kernels.common.triton import launch
from kvpolicy_kernels.common.triton.largest import BLOCK_S, STAGES, WARPS
from kvpolicy_kernels.row_statistics import counting, kernel

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def variants():
    for dtype, dim, rows in product(DTYPES, (64, 128), (16, 64, kernel.MOST_ROWS)):
        yield _logits(dtype, dim, rows)
    yield Variant(
        name="row_statistics sums",
        function=kernel._sums_kernel,
        pointers={"logits": "fp32", "means": "fp64"},
        constants={"ROWS": kernel.MOST_ROWS, "BLOCK_S": BLOCK_S, "STAGES": STAGES},
        unaligned=("first", "count", "G", "W", "S"),
        warps=WARPS,
    )
    for dtype, dim, rows in product(DTYPES, (64, 128), (16, kernel.MOST_ROWS)):
        yield from _counted(dtype, dim, rows)
    yield Variant(
        name="row_statistics means",
        function=counting._means_kernel,
        pointers={"sums": "i64", "means": "fp64"},
        constants={"ROWS": kernel.MOST_ROWS, "BLOCK": counting.BLOCK_MEANS},
        unaligned=("count", "SPLITS", "G", "W", "S"),
    )


def _counted(dtype, dim, rows):
    """The kernels that hold no logits."""
    constants = {
        "D": dim,
        "ROWS": rows,
        "BLOCK_S": counting.BLOCK_S,
        "CHANNELS": launch.channels_at_once(DTYPES[dtype], dim),
        "PRECISION": "ieee" if dtype == "fp32" else "tf32",
        "UP": False,
        "BLOCK_SPLITS": counting.BLOCK_SPLITS,
        "queries_d": 1,
        "keys_d": 1,
    }
    pointers = {"queries": dtype, "keys": dtype}
    pointers |= dict.fromkeys(("counts", "prefixes", "rooms"), "i32")
    unaligned = ("count", "SPLITS", "N", "G", "W", "S")
    name = f"{dtype} D={dim} rows={rows}"
    written = dict.fromkeys(("before", "next_prefixes", "next_rooms"), "i32")
    for place in (0, 1, 2):
        yield Variant(
            name=f"row_statistics digits {place} {name}",
            function=counting._digits_kernel,
            pointers=pointers | written,
            constants=constants | {"PASS": place},
            unaligned=(*unaligned, "shift"),
            floats=("scaling",),
            warps=counting.WARPS,
            stages=2,
        )
    yield Variant(
        name=f"row_statistics positions {name}",
        function=counting._positions_kernel,
        pointers=pointers | {"sums": "i64"},
        constants=constants,
        unaligned=unaligned,
        floats=("scaling",),
        warps=counting.WARPS,
        stages=2,
    )


def _logits(dtype, dim, rows):

    block = kernel.blocks(DTYPES[dtype], dim)
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
