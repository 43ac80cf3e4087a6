"""Compact by merging: add evicted rows to the kept position with the most similar key."""

from __future__ import annotations

from typing import ClassVar

import attrs
from jaxtyping import Float
from torch import Tensor

from kvpolicy.observation.observation import Observation
from kvpolicy.options import one_of
from kvpolicy.stages.compaction import Evicted, merged
from kvpolicy.stages.selection import Selection
from kvpolicy_kernels import merged_rows, nearest_keys
from kvpolicy_lookm.merging import Merge, shares


@attrs.frozen(kw_only=True)
class SimilarityMergingCompactor:
    """Merges every evicted key and value into the kept position with the most similar key.

    s is the cosine of an evicted key and the kept key that is most similar to it. A kept key or
    value x, which is the best match of n evicted ones d, becomes, depending on `merge`:

    "pivot"       (x + sum (d + x) / 2) / (1 + n)
    "averaged"    (x + sum d) / (1 + n)
    "weighted"    (x + sum s d) / (1 + n), over evicted ones with an s of at least the mean
    "normalized"  (x + sum w d) / (1 + sum w)  with  w = (1 + s) / 2

    "weighted" compares heads: all heads of a layer must then keep the same number.

    Wan et al., Findings of EMNLP 2024, https://aclanthology.org/2024.findings-emnlp.235/;
    "normalized" is that of https://github.com/Zefan-Cai/KVCache-Factory.

    >>> import torch
    >>> from kvpolicy import Observation, Selection
    >>> keys = torch.tensor([[[[1.0, 0.0], [0.0, 1.0], [0.0, 2.0]]]])
    >>> layer = Observation(queries=keys[:, :, -1:], keys=keys, values=keys)
    >>> first = Selection(indices=torch.tensor([[[0, 1]]]), lengths=torch.tensor([[2]]))
    >>> SimilarityMergingCompactor(merge="averaged").compact(keys, keys, first, layer)[0]
    tensor([[[[1.0000, 0.0000],
              [0.0000, 1.5000]]]])
    """

    capturable: ClassVar[bool] = True
    position_bias: ClassVar[bool] = True

    merge: Merge = attrs.field(
        default="pivot", validator=one_of("pivot", "averaged", "weighted", "normalized")
    )

    @property
    def across_heads(self) -> bool:
        """Whether heads are compared: "weighted" has one filter for all heads."""
        return self.merge == "weighted"

    def compact(
        self,
        keys: Float[Tensor, "B N S D"],
        values: Float[Tensor, "B N S Dv"],
        selection: Selection,
        observation: Observation,
    ) -> tuple[Float[Tensor, "B N K D"], Float[Tensor, "B N K Dv"]]:
        """Return the kept keys and values, with the evicted ones merged into them."""

        def merge(
            kept_keys: Tensor, kept_values: Tensor, evicted: Evicted
        ) -> tuple[Tensor, Tensor]:
            is_kept = None if evicted.alike else selection.indices < keys.shape[2]
            slots, similarity = nearest_keys(keys, evicted.rows, kept_keys, is_kept)
            share = shares(similarity, evicted, self.merge, observation.of_all_heads)
            del similarity
            kept_keys, kept_values = merged_rows(
                (kept_keys, kept_values),
                (keys, values),
                evicted.rows,
                slots,
                share.own,
                repeated=share.repeated,
                counted=share.counted,
            )
            return kept_keys, kept_values

        return merged(keys, values, selection, merge)
