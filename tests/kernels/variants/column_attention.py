from variants.window_attention import both

# Channels, heads of a group: all queries of a prompt, as of a layer without groups, too.
SHAPES = [(128, 4), (64, 4), (256, 4), (128, 1)]


def variants():
    for dtype in ("fp32", "bf16"):
        for dim, group in SHAPES:
            yield from both(dtype, dim, group, 4096, weighted=False)
    yield from both("bf16", 128, 4, 4096, softcap=True, weighted=False)
    yield from both("bf16", 64, 8, 4096, sinks=True, weighted=False)
