from compile_offline import Variant

from kvpolicy_kernels.output_change import kernel

EXACT = {"fp32": True, "bf16": False}
# Channels of keys and of values, heads of a group, queries: Llama's window, smaller and larger
# heads, the latents of DeepSeek, GPT-OSS's groups, and a last query alone.
SHAPES = [
    (128, 128, 4, 32),
    (64, 64, 4, 32),
    (256, 256, 2, 32),
    (192, 128, 1, 32),
    (64, 64, 8, 32),
    (128, 128, 12, 1),
]
LENGTHS = ("N", "G", "W", "S", "PAST", "M")


def variants():
    for dtype in EXACT:
        for shape in SHAPES:
            yield from both(dtype, *shape)
        yield from both(dtype, *SHAPES[0], softcap=True)
        for zeroed in ("key", "value"):
            *_, changes = both(dtype, *SHAPES[0], zeroed=zeroed)
            yield changes


def both(dtype, dim, dim_values, group, window, *, softcap=False, zeroed="joint"):
    block = 256 if dim == 192 else dim
    tile = kernel.output_tile(group, window, block, dim_values, exact=EXACT[dtype])
    shape = f"{dtype} D={dim} Dv={dim_values} G={group} W={window}{' softcap' * softcap}"
    constants = {
        "D": dim, "BLOCK_D": block, "DV": dim_values, "BLOCK_V": dim_values,
        "queries_d": 1, "keys_d": 1, "values_d": 1,
        **({} if softcap else {"softcap": None}),
        # Triton compiles an integer that is 1 into the kernel.
        **({"W": 1} if window == 1 else {}), **({"G": 1} if group == 1 else {}),
    }  # fmt: skip
    pointers = {"queries": dtype, "keys": dtype, "values": dtype, "totals": "fp32"}
    given = {"floats": ("scale", "softcap") if softcap else ("scale",)}
    yield Variant(
        name=f"output_change outputs {shape}",
        function=kernel._outputs_kernel,
        pointers=pointers | {"partials": "fp32"},
        constants=constants
        | {
            "BLOCK_G": tile.heads, "BLOCK_W": tile.queries, "BLOCK_S": tile.positions,
            "CHANNELS": tile.channels, "PRECISION": tile.products, "SUMS": tile.sums,
            "UP": EXACT[dtype],
        },
        unaligned=(*LENGTHS, "GROUP_BLOCKS"),
        warps=tile.warps,
        **given,
    )  # fmt: skip
    without = zeroed == "value"
    yield Variant(
        name=f"output_change changes {shape} {zeroed}",
        function=kernel._changes_kernel,
        pointers=pointers
        | {"weights": "fp32", "changes": "fp32", **({} if without else {"outputs": "fp32"})},
        constants=constants
        | {
            "BLOCK_S": kernel.positions_at_once(block, dim_values), "weights_w": 1,
            "VALUE": zeroed == "joint", **({"outputs": None} if without else {}),
        },
        unaligned=(*LENGTHS, "weights_b"),
        **given,
    )  # fmt: skip
