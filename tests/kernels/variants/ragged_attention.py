from compile_offline import Variant

from kvpolicy_kernels.ragged_attention import kernel

GROUP = 4
TABLES = ("ragged_keys", "ragged_values", "keys", "values")
SIZES = ("N", "G", "Q", "T", "TILES", "TAIL_TILES")


def variants():
    for dtype, dim, queries, softcap, padded, biased in (
        ("fp32", 128, 1, False, False, False),
        ("fp32", 64, 1, False, True, False),
        ("fp32", 256, 16, True, True, True),
        ("bf16", 128, 1, False, False, False),
        ("bf16", 128, 1, False, False, True),
        ("bf16", 128, 1, True, True, False),
        ("bf16", 128, 16, False, True, False),
        ("bf16", 64, 1, False, False, False),
        ("bf16", 256, 1, False, False, False),
        ("bf16", 256, 16, False, False, True),
    ):
        exact = dtype == "fp32"
        block_r, block_s = kernel.blocks_of(GROUP * queries, dim, exact=exact)
        constants = {
            "D": dim,
            "DV": dim,
            "BLOCK_D": dim,
            "BLOCK_DV": dim,
            "BLOCK_R": block_r,
            "BLOCK_S": block_s,
            "CHANNELS": 16 if exact else dim,
            "PRECISION": "ieee" if exact else "tf32",
            "UP": False,
        }
        floats = ("scale", "softcap") if softcap else ("scale",)
        # Triton compiles an integer that is 1 into the kernel.
        constants |= {"Q": 1} if queries == 1 else {}
        absent = {"softcap": None} if not softcap else {}
        absent |= {"padding": None} if not padded else {}
        absent |= {"ragged_bias": None} if not biased else {}
        partials = {"outputs": "fp32", "totals": "fp32"}
        options = f"{' softcap' if softcap else ''}{' padded' if padded else ''}"
        options += " biased" if biased else ""
        yield Variant(
            name=f"attend {dtype} D={dim} Q={queries}{options}",
            function=kernel._attend_kernel,
            pointers={
                "queries": dtype,
                **dict.fromkeys(TABLES, dtype),
                **partials,
                "tiles": "i64",
                **({"padding": "i64"} if padded else {}),
                **({"ragged_bias": "fp32"} if biased else {}),
            },
            constants={**constants, **absent},
            unaligned=[size for size in SIZES if size not in constants],
            floats=floats,
        )
    for dtype, sinks, extra in (
        ("fp32", False, False),
        ("bf16", False, False),
        ("bf16", True, False),
        ("bf16", True, True),
    ):
        pointers = {"outputs": "fp32", "totals": "fp32", "bounds": "i64", "merged": dtype}
        constants = {"DV": 128, "BLOCK_DV": 128, "BLOCK_TILES": kernel.BLOCK_TILES, "Q": 1}
        rows = ("extra_totals", "extra_values")
        pointers |= {"sinks": dtype} if sinks else {}
        pointers |= dict.fromkeys(rows, "fp32") if extra else {}
        constants |= {} if sinks else {"sinks": None}
        constants |= {} if extra else dict.fromkeys(rows)
        options = f"{' sinks' if sinks else ''}{' extra row' if extra else ''}"
        yield Variant(
            name=f"merge {dtype} Q=1{options}",
            function=kernel._merge_kernel,
            pointers=pointers,
            constants=constants,
            unaligned=("N", "G", "TILES", "TAIL_TILES"),
        )
