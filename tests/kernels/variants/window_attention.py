from compile_offline import Variant

from kvpolicy_kernels.window_attention import kernel

PRECISION = {"fp32": "ieee", "bf16": "tf32"}
# Channels, heads of a group, queries: Llama's window, smaller and larger heads, all queries of a
# layer without groups, and a last query alone.
SHAPES = [(128, 4, 32), (64, 4, 32), (256, 2, 32), (128, 1, 4096), (128, 12, 1)]
LENGTHS = ("N", "G", "W", "S", "GROUP_BLOCKS", "M", "SPAN")


def variants():
    for dtype in PRECISION:
        for dim, group, window in SHAPES:
            for capped in (False, True) if (dim, group) == (128, 4) else (False,):
                yield from _both(dtype, dim, group, window, capped)
    yield Variant(
        name="window_attention combine",
        function=kernel._combine_kernel,
        pointers={"partials": "fp32", "totals": "fp32"},
        constants={"BLOCK_M": kernel.BLOCK_M, "BLOCK_SPLITS": 512},
        unaligned=("M", "SPLITS"),
    )


def _both(dtype, dim, group, window, capped):
    precision = PRECISION[dtype]
    tile = kernel.tile_of(group, window, dim, exact=precision == "ieee")
    shape = f"{dtype} D={dim} G={group} W={window}{' softcap' * capped}"
    given = {
        "unaligned": LENGTHS,
        "floats": ("scale", "softcap") if capped else ("scale",),
        "warps": tile.warps,
    }
    constants = {
        "D": dim, "BLOCK_D": dim, "BLOCK_G": tile.heads, "BLOCK_W": tile.queries,
        "BLOCK_S": tile.positions, "CHANNELS": tile.channels,
        "PRECISION": precision, "UP": False, "queries_d": 1, "keys_d": 1,
        **({} if capped else {"softcap": None}),
        **({"W": 1} if window == 1 else {}),
    }  # fmt: skip
    tables = {"queries": dtype, "keys": dtype}
    yield Variant(
        name=f"window_attention logsumexp {shape}",
        function=kernel._logsumexp_kernel,
        pointers={**tables, "partials": "fp32"},
        constants=constants,
        **given,
    )
    yield Variant(
        name=f"window_attention fold {shape}",
        function=kernel._fold_kernel,
        pointers={**tables, **dict.fromkeys(("weights", "totals", "attention"), "fp32")},
        constants={**constants, "weights_w": 1},
        **given,
    )
