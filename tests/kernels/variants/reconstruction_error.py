from compile_offline import Variant

from kvpolicy_kernels.reconstruction_error import kernel

EXACT = {"fp32": True, "bf16": False}
DIMS = (64, 128, 256)
DENSE = {"attention_s": 1, "values_d": 1}


def variants():
    for dtype in EXACT:
        for dim in DIMS:
            yield _error(dtype, dim, projected=True, tau=None)
            yield _error(dtype, dim, projected=True, tau=None, known=True)
        yield _error(dtype, 128, projected=True, tau="fp32")
        for dim in (128, 256):
            yield _error(dtype, dim, projected=False, tau=None)


def _error(dtype, dim, *, projected, tau, known=False):
    tile = kernel.error_tile(dim, EXACT[dtype], projected)
    space = {"factors_d": 1} if projected else dict.fromkeys(("factors_h", "factors_r"), 0)
    pointers = {"attention": "fp32", "values": dtype, "output": "fp32", "errors": "fp32"}
    better = {"known": "i64", "known_errors": "fp32"} if known else {}
    return Variant(
        name=f"reconstruction_error {dtype} D={dim}{'' if projected else ' in value space'}"
        + (" tau" if tau else "")
        + (" known" if known else ""),
        function=kernel._error_kernel,
        pointers={**pointers, **({"factors": "fp32"} if projected else {}), **better},
        constants={
            "D": dim, "BLOCK_D": dim, "BLOCK_S": tile.positions,
            "CHANNELS": tile.channels, "BLOCK_R": tile.rank,
            "PRECISION": "ieee" if EXACT[dtype] else "tf32",
            **DENSE, "output_d": 1, **space,
            **({} if projected else {"factors": None, "factors_d": 0, "R": 0}),
            **({} if tau else {"tau": None}),
            **({} if known else {"known": None, "known_errors": None}),
        },
        floats=("tau",) if tau else (),
        unaligned=("N", "G", "R", "S", "attention_b", "attention_h"),
        warps=tile.warps,
    )  # fmt: skip
