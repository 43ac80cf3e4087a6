from compile_offline import Variant

from kvpolicy_kernels.adaptive_pooling import kernel


def variants():
    for window in (32, 64, 4096):
        yield Variant(
            name=f"adaptive_pooling drift W={window}",
            function=kernel._drift_kernel,
            pointers={"means": "fp64", "drift": "fp64"},
            constants={"means_w": 1, "BLOCK_W": window},
            unaligned=("count", "H", "W", "means_b", "means_h"),
        )
    yield Variant(
        name="adaptive_pooling pooling",
        function=kernel._pooling_kernel,
        pointers={"drift": "fp64", "widths": "i64", "shifts": "i64"},
        constants={"drift_h": 1, "SCALE": 2000.0, "BLOCK": kernel.BLOCK},
        unaligned=("width", "HEADS", "H", "drift_b"),
    )
