"""The end of a layer's forward: it evicts, at once or with other layers, and is stored."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import torch

from kvpolicy.cache.attention.keys import AttendedKeys
from kvpolicy.cache.eviction.budgets import Budgets
from kvpolicy.cache.eviction.evict import evict, kept
from kvpolicy.cache.eviction.ranked import Ranked, ranked
from kvpolicy.cache.eviction.shown import Shown
from kvpolicy.cache.eviction.together import Waiting
from kvpolicy.cache.memory.contents import Contents
from kvpolicy.cache.storage.layer_memory import LayerMemory
from kvpolicy.errors import CacheStateError
from kvpolicy.huggingface.session import Session
from kvpolicy.pipeline.doubts import collected


@attrs.define(kw_only=True, eq=False)
class Evicting:
    """What a layer holds while a forward reads it, and what becomes of it.

    `layer` counts the layers that evict.
    """

    session: Session
    memory: LayerMemory
    layer: int
    contents: Contents | None
    """None once it was decided what is kept: rows that are evicted must not stay alive here."""

    def finish(
        self,
        keys: AttendedKeys,
        shown: Shown | None,
        *,
        in_place: bool,
        gradients: bool,
        changed: bool,
    ) -> None:
        """Evict where something is shown, since that is due then, and store what is left.

        `changed` says whether rows have moved already.
        """
        session, evicted = self.session, False
        if shown is not None:
            # Gradients flow through the rows that are kept, if they are needed at all.
            with collected(session.guard.doubts), torch.set_grad_enabled(gradients):
                evicted = self._evict(keys, shown, in_place=in_place)
                if session.policy.per_turn:
                    (self.memory.contents or self._own()).slots.settle()
        if session.policy.model_allocator and session.together.waits_for(self.layer):
            return
        self.contents = None
        if session.storage is not None:
            self.memory.put_away(evicted=evicted or changed)

    @property
    def fits(self) -> bool:
        """Whether all rows are within their budgets, so that none of them evicts."""
        policy, slots = self.session.policy, self._own().slots
        return all(map(policy.keeps_all, slots.newest if policy.per_turn else slots.seen))

    def _evict(self, keys: AttendedKeys, shown: Shown, *, in_place: bool) -> bool:
        """Evict at once, or when all layers have been ranked; return whether rows have gone."""
        policy, contents, spare = self.session.policy, self._own(), self.session.spare
        if self.fits:
            return False
        if policy.model_allocator is not None:
            groups = ranked(policy, contents, keys, shown)
            self.session.together.add(self.layer, Waiting(groups, self._keep))
            return False
        return self._hold(evict(policy, contents, keys, shown, spare, in_place=in_place))

    def _keep(self, groups: Sequence[Ranked], budgets: Sequence[Budgets]) -> None:
        """Keep this layer's share of the model's budget."""
        found = kept(self.session.policy, self._own(), groups, budgets)
        self.contents = None
        self.memory.put_away(evicted=self._hold(found))

    def _hold(self, found: Contents | None) -> bool:
        if found is not None:
            self.memory.contents = found
        return found is not None

    def _own(self) -> Contents:
        if self.contents is None:
            raise CacheStateError(f"attention layer {self.layer} has been evicted already.")
        return self.contents
