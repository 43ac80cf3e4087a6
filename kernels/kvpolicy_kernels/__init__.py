"""Operations that plugins share. Each room has a PyTorch reference, some have a Triton kernel.

Letters in the shapes: B batch, H query heads, N key/value heads, W observation window, S positions,
D head dimension of keys, Dv of values, R rank of a head's output projection, K kept positions,
M model dimension, Q queries, T positions of a dense tail behind uneven heads. Query head h reads
key/value head h // (H // N). The window's queries are those of the last W positions, oldest first.

Also here: `spans` and `rows_per_block`, which keep temporary tensors small, and `sums_dtype`.
"""

from kvpolicy_kernels.adaptive_pooling import adaptive_pooling, mean_drift
from kvpolicy_kernels.column_attention import column_attention
from kvpolicy_kernels.common.pytorch.blocks import rows_per_block, spans
from kvpolicy_kernels.common.pytorch.odds import odds
from kvpolicy_kernels.common.pytorch.sums import sums_dtype
from kvpolicy_kernels.direction_cosines import direction_cosines
from kvpolicy_kernels.forward_selection import (
    Queries,
    forward_selection,
    query_outputs,
    set_error,
)
from kvpolicy_kernels.gather_kv import compact_in_place, gather_kv
from kvpolicy_kernels.gaussian_logits import gaussian_logits
from kvpolicy_kernels.group_scores import group_scores, protect_scores
from kvpolicy_kernels.head_factors import head_factors
from kvpolicy_kernels.heirs import Heirs, heirs, inherited_values
from kvpolicy_kernels.joint_reconstruction_error import joint_reconstruction_error
from kvpolicy_kernels.largest_attention import LargestAttention, largest_attention
from kvpolicy_kernels.largest_error import LargestError, largest_error
from kvpolicy_kernels.leave_one_out_error import leave_one_out_error
from kvpolicy_kernels.merged_rows import merged_rows
from kvpolicy_kernels.nearest_keys import NearestKeys, nearest_keys
from kvpolicy_kernels.output_change import output_change
from kvpolicy_kernels.partition_deviations import deviation, partition_deviations
from kvpolicy_kernels.pool_scores import pool_scores
from kvpolicy_kernels.projected_norms import projected_norms
from kvpolicy_kernels.ragged_attention import ragged_attention
from kvpolicy_kernels.reconstruction_error import reconstruction_error
from kvpolicy_kernels.rerotate_keys import angle_between, rerotate_keys, rotate_half
from kvpolicy_kernels.row_statistics import row_statistics
from kvpolicy_kernels.select import select, unselected
from kvpolicy_kernels.similar_keys import SimilarKeys, similar_keys
from kvpolicy_kernels.summed_rows import summed_rows
from kvpolicy_kernels.token_shares import TokenShares, token_shares
from kvpolicy_kernels.unrotated_sums import UnrotatedSums, unrotated_sums
from kvpolicy_kernels.weighted_products import weighted_products
from kvpolicy_kernels.weighted_values import weighted_values
from kvpolicy_kernels.window_attention import WindowAttention, window_attention
from kvpolicy_kernels.windowed_reconstruction_error import windowed_reconstruction_error

__all__ = [
    "Heirs",
    "LargestAttention",
    "LargestError",
    "NearestKeys",
    "Queries",
    "SimilarKeys",
    "TokenShares",
    "UnrotatedSums",
    "WindowAttention",
    "adaptive_pooling",
    "angle_between",
    "column_attention",
    "compact_in_place",
    "deviation",
    "direction_cosines",
    "forward_selection",
    "gather_kv",
    "gaussian_logits",
    "group_scores",
    "head_factors",
    "heirs",
    "inherited_values",
    "joint_reconstruction_error",
    "largest_attention",
    "largest_error",
    "leave_one_out_error",
    "mean_drift",
    "merged_rows",
    "nearest_keys",
    "odds",
    "output_change",
    "partition_deviations",
    "pool_scores",
    "projected_norms",
    "protect_scores",
    "query_outputs",
    "ragged_attention",
    "reconstruction_error",
    "rerotate_keys",
    "rotate_half",
    "row_statistics",
    "rows_per_block",
    "select",
    "set_error",
    "similar_keys",
    "spans",
    "summed_rows",
    "sums_dtype",
    "token_shares",
    "unrotated_sums",
    "unselected",
    "weighted_products",
    "weighted_values",
    "window_attention",
    "windowed_reconstruction_error",
]
