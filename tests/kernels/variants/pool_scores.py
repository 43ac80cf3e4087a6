from itertools import product

from compile_offline import Variant

from kvpolicy_kernels.pool_scores import kernel


def variants():
    for average, replicate, each in product((True, False), repeat=3):
        yield Variant(
            name=" ".join(
                (
                    "pool_scores",
                    "avg" if average else "max",
                    "replicate" if replicate else "zero",
                    "widths" if each else "width",
                )
            ),
            function=kernel._pool_scores_kernel,
            pointers={"scores": "fp32", "pooled": "fp32"}
            | ({"widths": "i64", "shifts": "i64"} if each else {}),
            constants={
                "scores_s": 1,
                "EACH_WIDTH": each,
                "EACH_SHIFT": each,
                "AVERAGE": average,
                "REPLICATE": replicate,
                "BLOCK_S": kernel.BLOCK_S,
            },
            unaligned=(
                *("H", "S", "widths", "shifts", "scores_b", "scores_h"),
                *("widths_b", "widths_h", "shifts_b", "shifts_h"),
            ),
        )
