"""From what a layer holds to observations, and from selections to what it holds afterwards."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import torch
from jaxtyping import Float, Int
from torch import Tensor

from kvpolicy.cache.eviction.views import View
from kvpolicy.cache.memory.assembly import Piece
from kvpolicy.cache.memory.contents import Contents
from kvpolicy.errors import InvalidComponentError
from kvpolicy.observation.observation import Observation
from kvpolicy.observation.rotary import Rotary
from kvpolicy.observation.shard import Shard
from kvpolicy.pipeline.capabilities import across_heads
from kvpolicy.pipeline.checks import title
from kvpolicy.pipeline.combination import KINDS
from kvpolicy.policy import Policy
from kvpolicy.stages.compaction import GatherCompactor
from kvpolicy.stages.selection import Selection
from kvpolicy_kernels import compact_in_place


@attrs.frozen(kw_only=True, eq=False)
class Shown:
    """What an attention call shows of a layer beyond keys and values."""

    layer: int
    num_layers: int
    kv_heads: int
    queries: Float[Tensor, "B H Q D"]
    scaling: float
    softcap: float | None
    sink_logits: Float[Tensor, " H"] | None
    output_weight: Float[Tensor, "M columns"] | None
    rotary: Rotary | None
    shard: Shard | None = None

    def observation(self, policy: Policy, view: View, window: int | None) -> Observation:
        """Show a view, with the last `window` of the queries; None: all."""
        groups = self.queries.shape[1] // self.kv_heads
        heads = slice(view.heads.start * groups, view.heads.stop * groups)
        available = min(self.queries.shape[2], view.length)
        count = available if window is None else min(window, available)
        return Observation(
            queries=self.queries[view.rows, heads, self.queries.shape[2] - count :],
            keys=view.turned,
            values=view.values,
            layer=self.layer,
            num_layers=self.num_layers,
            scaling=self.scaling,
            softcap=self.softcap,
            sink_logits=None if self.sink_logits is None else self.sink_logits[heads],
            output_weight=self.output_weight,
            positions=view.positions,
            seen=view.seen,
            budget=policy.positions(view.seen),
            state=view.state,
            first_head=heads.start,
            rotary=self.rotary,
            shard=self._shard_of(view),
        )

    def _shard_of(self, view: View) -> Shard | None:
        # A head that is shown alone is so in one process, too: it is compared with none.
        return self.shard.alone() if self.shard and view.of_layer else self.shard


@attrs.frozen(kw_only=True, eq=False)
class Ranked:
    """A group of rows with its scores; they are None where nothing is to be evicted.

    Heads that hold different numbers of positions have a view and an observation each, and their
    scores are filled up with -inf. `shard` says which heads of the layer these are, if not all.
    """

    views: Sequence[View]
    observations: Sequence[Observation]
    scores: Float[Tensor, "b n S"] | None
    shard: Shard | None = None

    @property
    def observation(self) -> Observation:
        """The observation that allocators see: of the head that holds the most."""
        return max(self.observations, key=lambda each: each.length)

    @property
    def held(self) -> Sequence[int]:
        """How many positions each head of the layer holds; one number if that is the same."""
        return self.views[0].of_layer or (self.views[0].length,)

    @property
    def scores_of_layer(self) -> Float[Tensor, "b N S"] | None:
        """The scores of all heads of the layer, those of other processes included."""
        if self.scores is None or self.shard is None:
            return self.scores
        return torch.cat(list(self.shard.exchange(self.scores)), 1)

    def own(self, of_layer: Int[Tensor, "b N"]) -> Int[Tensor, "b n"]:
        """Return what is said of the heads of this process."""
        if self.shard is None or self.scores is None:
            return of_layer
        groups = self.observation.queries.shape[1] // self.observation.keys.shape[1]
        return of_layer.narrow(1, self.shard.first_head // groups, self.scores.shape[1])


def rank(policy: Policy, views: Sequence[View], shown: Shown) -> Ranked:
    """Let the policy score one group of rows."""
    ranked = Ranked(views=views, observations=(), scores=None, shard=shown.shard)
    if not min(ranked.held) or policy.keeps_all(views[0].seen):
        return ranked
    observations = [shown.observation(policy, view, policy.scorer.window) for view in views]
    scores = [policy.rank(observation) for observation in observations]
    longest = max(ranked.held)
    filled = [
        torch.nn.functional.pad(each, (0, longest - each.shape[-1]), value=-torch.inf)
        for each in scores
    ]
    return attrs.evolve(ranked, observations=observations, scores=torch.cat(filled, 1))


def keeps_even(ranked: Ranked, budgets: Int[Tensor, "b N"] | None) -> bool:
    """Whether all heads of a layer and of these rows hold equally many when `keep` is done."""
    if budgets is None:
        return len(ranked.held) == 1
    low, high = budgets.aminmax()
    return bool(low == high)


def keep(policy: Policy, ranked: Ranked, budgets: Int[Tensor, "b N"] | None) -> list[Piece] | None:
    """Let the policy choose within `budgets`, and compact what it chose; None if that is all.

    What is held is not changed: if a part raises, the layer still has it all.
    """
    if ranked.scores is None or budgets is None:
        return None
    of_layer: list[list[int]] = budgets.tolist()
    if all(length == each for row in of_layer for length, each in _paired(row, ranked.held)):
        return None
    selection = policy.choose(ranked.scores, ranked.own(budgets))
    if len({length for row in of_layer for length in row}) > 1:
        _check_uneven(policy, of_layer)
    # A GPU was waited for once, and need not be again.
    lengths = ranked.own(torch.tensor(of_layer))
    if len(ranked.views) == 1:
        return [_compacted(policy, ranked.views[0], ranked.observations[0], selection, lengths)]
    pieces = []
    for head, shown in enumerate(zip(ranked.views, ranked.observations, strict=True)):
        own = slice(head, head + 1)
        alone = Selection(
            indices=selection.indices[:, own, : int(lengths[0, head])],
            lengths=selection.lengths[:, own],
        )
        pieces.append(_compacted(policy, *shown, alone, lengths[:, own]))
    return pieces


def keep_in_place(
    policy: Policy, contents: Contents, ranked: Ranked, budgets: Int[Tensor, "b N"] | None
) -> bool:
    """Move what the policy chooses to the front of the memory that it is in; False if it must not.

    That is for a few rows that go while decoding: what is left of a prompt would hold on to its
    memory. A part that raises does so before anything has moved. Rows must be those of the whole
    batch, and no longer needed as they are.
    """
    if ranked.scores is None or budgets is None or type(policy.compactor) is not GatherCompactor:
        return False
    if len(ranked.views) > 1 or ranked.views[0].length < contents.slots.held:
        return False
    low, high = (int(bound) for bound in budgets.aminmax())
    tables = (contents.keys, contents.values)
    if low < high or high >= contents.slots.held or not all(each.fits(high) for each in tables):
        return False
    selection = policy.choose(ranked.scores, ranked.own(budgets))
    compact_in_place(contents.keys.view, contents.values.view, selection.indices)
    for table in tables:
        table.truncate(high)
    (view,), rows = ranked.views, selection.indices.to(contents.slots.device)
    contents.slots.replace(view.positions.gather(2, rows), [high] * len(view.keys))
    contents.state = _gathered(view.state, rows)
    return True


def everything(views: Sequence[View]) -> list[Piece]:
    """Return all that a group of rows holds, as it is."""
    return [
        Piece(keys=view.keys, values=view.values, positions=view.positions, state=view.state)
        for view in views
    ]


def _paired(lengths: Sequence[int], held: Sequence[int]) -> zip[tuple[int, int]]:
    return zip(lengths, [*held] * len(lengths) if len(held) == 1 else held, strict=True)


def _compacted(
    policy: Policy,
    view: View,
    observation: Observation,
    selection: Selection,
    lengths: Int[Tensor, "b n"],
) -> Piece:
    keys, values = policy.compact(view.keys, view.values, selection, observation)
    # Beyond its length a head's rows are fillers, which are cut off as the pieces are assembled.
    rows = selection.indices.to(view.positions.device).clamp(max=view.length - 1)
    return Piece(
        keys=keys,
        values=values,
        positions=view.positions.gather(2, rows),
        state=_gathered(view.state, rows),
        lengths=None if bool((lengths == keys.shape[2]).all()) else lengths,
    )


def _gathered(
    state: Float[Tensor, "b h S *rest"] | None, rows: Int[Tensor, "b n K"]
) -> Float[Tensor, "b h K *rest"] | None:
    if state is None:
        return None
    rows = rows.repeat_interleave(state.shape[1] // rows.shape[1], dim=1)
    rows = rows.view(*rows.shape, *[1] * (state.dim() - 3))
    return state.gather(2, rows.expand(*rows.shape[:3], *state.shape[3:]))


def _check_uneven(policy: Policy, lengths: list[list[int]]) -> None:
    """Refuse uneven heads of an allocator that did not announce them to parts that need even."""
    flat = [length for row in lengths for length in row]
    for kind in KINDS:
        if across_heads(getattr(policy, kind)) and any(len(set(row)) > 1 for row in lengths):
            raise InvalidComponentError(
                f"{title(policy, 'allocator')} gave the heads of one layer {min(flat)} to "
                f"{max(flat)} positions, but {title(policy, kind)} needs them alike. An allocator "
                "says so of itself by `uneven = True`, and is then refused in time."
            )
