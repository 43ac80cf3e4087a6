from compile_offline import Variant

from kvpolicy_kernels.column_attention import kernel

GROUP = 4
SIZES = ("N", "G", "Q", "S", "PAST", "GROUP_BLOCKS", "SPAN", "M")
INPUTS = {"queries_d": 1, "keys_d": 1}


def variants():
    for dtype, dim, queries, softcap in (
        ("fp32", 128, 4096, False),
        ("fp32", 64, 4096, False),
        ("bf16", 256, 4096, False),
        ("bf16", 128, 4096, False),
        ("bf16", 128, 4096, True),
        ("bf16", 128, 1, False),
        ("bf16", 64, 4096, False),
    ):
        exact = dtype == "fp32"
        tile = kernel.tile_of(GROUP, queries, dim, exact=exact)
        of = f"{dtype} D={dim} Q={queries}{' softcap' if softcap else ''}"
        constants = {
            **INPUTS,
            "D": dim,
            "BLOCK_D": dim,
            "BLOCK_G": tile.heads,
            "BLOCK_Q": tile.queries,
            "BLOCK_S": tile.positions,
            "CHANNELS": tile.channels,
            "PRECISION": "ieee" if exact else "tf32",
            "UP": False,
        }
        # Triton compiles an integer that is 1 into the kernel.
        constants["GROUP_BLOCKS"] = 1
        if queries == 1:
            constants["Q"] = 1
        if not softcap:
            constants["softcap"] = None
        for name, function, sums in (
            ("logsumexp", kernel._logsumexp_kernel, ("partials",)),
            ("sum", kernel._sum_kernel, ("totals", "attention")),
        ):
            yield Variant(
                name=f"{name} {of}",
                function=function,
                pointers={"queries": dtype, "keys": dtype, **dict.fromkeys(sums, "fp32")},
                constants=constants,
                unaligned=[
                    size for size in SIZES if size in function.arg_names and size not in constants
                ],
                floats=("scale", "softcap") if softcap else ("scale",),
                warps=tile.warps,
            )
