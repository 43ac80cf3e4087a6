from compile_offline import Variant

from kvpolicy_kernels.window_attention import kernel, sums

PRECISION = {"fp32": "ieee", "bf16": "tf32"}
# Channels, heads of a group, queries: Llama's window, smaller and larger heads, GPT-OSS's groups,
# and a last query alone.
SHAPES = [(128, 4, 32), (64, 4, 32), (256, 2, 32), (64, 8, 32), (128, 12, 1)]
LENGTHS = ("N", "G", "W", "S", "PAST", "GROUP_BLOCKS", "M", "SPAN")


def variants():
    for dtype in PRECISION:
        for dim, group, window in SHAPES:
            yield from both(dtype, dim, group, window, sinks=(dim, group) == (64, 8))
        yield from both(dtype, 128, 4, 32, softcap=True)
        for dim, group, _ in SHAPES[:-1]:
            *_, fold = both(dtype, dim, group, 64, own_weights=True)
            yield fold
    yield Variant(
        name="window_attention combine",
        function=sums._combine_kernel,
        pointers={"partials": "fp32", "totals": "fp32"},
        constants={"BLOCK_M": sums.BLOCK_M, "BLOCK_SPLITS": 512},
        unaligned=("M", "SPLITS"),
    )


def both(
    dtype, dim, group, window, *, softcap=False, sinks=False, weighted=True, own_weights=False
):
    precision = PRECISION[dtype]
    tile = sums.tile_of(group, window, dim, exact=precision == "ieee")
    shape = f"{dtype} D={dim} G={group} W={window}{' softcap' * softcap}"
    constants = {
        "D": dim, "BLOCK_D": dim, "BLOCK_G": tile.heads, "BLOCK_W": tile.queries,
        "BLOCK_S": tile.positions, "CHANNELS": tile.channels,
        "PRECISION": precision, "UP": False, "queries_d": 1, "keys_d": 1,
        **({} if softcap else {"softcap": None}),
        # Triton compiles an integer that is 1 into the kernel.
        **({"W": 1} if window == 1 else {}),
    }  # fmt: skip
    tables = {"queries": dtype, "keys": dtype}
    given = {
        "unaligned": LENGTHS,
        "floats": ("scale", "softcap") if softcap else ("scale",),
        "warps": tile.warps,
    }
    yield Variant(
        name=f"logsumexp {shape}{' sinks' * sinks}",
        function=sums._logsumexp_kernel,
        pointers={**tables, "partials": "fp32", **({"sinks": dtype} if sinks else {})},
        constants={**constants, **({} if sinks else {"sinks": None})},
        **given,
    )
    yield Variant(
        name=f"fold {shape}{' own weights' * own_weights}",
        function=kernel._fold_kernel,
        pointers={
            **tables,
            **dict.fromkeys(("totals", "attention", "logsums"), "fp32"),
            **({"weights": "fp32"} if weighted else {}),
        },
        constants={
            **constants,
            "weights_w": 1,
            "OWN_WEIGHTS": own_weights,
            **({} if weighted else {"weights": None}),
        },
        **given,
    )
