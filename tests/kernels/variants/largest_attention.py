from compile_offline import Variant
from variants.window_attention import PRECISION

from kvpolicy_kernels.largest_attention import kernel
from kvpolicy_kernels.window_attention.sums import tile_of

# Channels, heads of a group, queries: Llama's window, smaller and larger heads, GPT-OSS's groups.
SHAPES = [(128, 4, 32), (64, 4, 32), (256, 2, 32), (64, 8, 32)]
LENGTHS = ("N", "G", "W", "P", "GROUP_BLOCKS", "HALF", "EDGES")


def variants():
    for dtype, precision in PRECISION.items():
        for dim, group, window in SHAPES:
            yield from both(dtype, precision, dim, group, window)
        yield from both(dtype, precision, 128, 4, 32, softcap=True)


def both(dtype, precision, dim, group, window, *, softcap=False):
    exact = precision == "ieee"
    tile = tile_of(group, window, dim, exact=exact)
    shape = f"{dtype} D={dim} G={group} W={window}{' softcap' * softcap}"
    constants = {
        "D": dim, "BLOCK_D": dim, "BLOCK_G": tile.heads, "BLOCK_W": tile.queries,
        "BLOCK_S": kernel.BLOCK_S, "CHANNELS": tile.channels,
        "PRECISION": precision, "UP": False, "queries_d": 1, "keys_d": 1,
        **({} if softcap else {"softcap": None}),
    }  # fmt: skip
    pointers = {"queries": dtype, "keys": dtype}
    pointers |= dict.fromkeys(("past_sums", "factors"), "fp32")
    given = {
        "unaligned": LENGTHS,
        "floats": ("scale", "softcap") if softcap else ("scale",),
        "warps": tile.warps,
    }
    yield Variant(
        name=f"largest_attention factors {shape}",
        function=kernel._factors_kernel,
        pointers=pointers | {"window_sums": "fp32"},
        constants=constants,
        **given,
    )
    yield Variant(
        name=f"largest_attention largest {shape}",
        function=kernel._largest_kernel,
        pointers=pointers | {"largest": "fp32", "mean": "fp32"},
        constants=constants
        | {"BLOCK_P": kernel.positions_at_once(exact), "POOLING": "ieee" if exact else "tf32x3"},
        **given,
    )
