"""A Hypothesis state machine: uses caches in random orders, and measures their logits.

    test_caches = kvpolicy.exactness.machine.CacheMachine.TestCase

Up to three conversations share one model. The machine reads turns into them, crops, reorders,
repeats, clones, saves and resets them at random. In the end it replays each of them.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from jaxtyping import Int
from torch import Tensor

from kvpolicy import Policy
from kvpolicy.errors import InvalidValueError
from kvpolicy.exactness.conversation import Conversation, check_equal, contents_of
from kvpolicy.exactness.limits import LIMIT
from kvpolicy.exactness.strategies import models, policies
from kvpolicy.exactness.told import Told, told
from kvpolicy.testing.strategies import SEEDS

LONGEST, MOST_ROWS, MOST_TALKS = 220, 6, 3


class CacheMachine(RuleBasedStateMachine):
    """Uses several caches of one policy on one model."""

    talks: list[Conversation]
    policy: Policy

    def __init__(self) -> None:
        """Begin without a conversation."""
        super().__init__()
        self.talks = []
        self.done: Counter[str] = Counter()

    @initialize(data=st.data())
    def begin(self, data: st.DataObject) -> None:
        """Draw a model and a policy, and begin the first conversation."""
        model = data.draw(models())
        self.policy = data.draw(policies(model, budgets=(8, 30)))
        self.talks = [Conversation.begun(model, self.policy)]

    @rule(
        data=st.data(),
        length=st.one_of(st.integers(1, 9), st.integers(30, 90), st.integers(30, 90)),
        seed=SEEDS,
    )
    @precondition(lambda self: any(not talk.rows for talk in self.talks))
    def read_first(self, data: st.DataObject, length: int, seed: int) -> None:
        """Read the first prompts of a batch; some rows are padded on the left."""
        talk = next(talk for talk in self.talks if not talk.rows)
        batch = data.draw(st.integers(1, 3), label="batch")
        mask = torch.ones(batch, length, dtype=torch.long)
        for row in range(1, batch):
            mask[row, : data.draw(st.integers(0, length - 1), label="padding")] = 0
        self._tell(talk, data.draw(told(mask.sum(1).tolist()), label="spans"))
        tokens = _tokens(seed, batch, length) * mask
        if not self._read(talk, tokens, mask):
            self._tell(talk, None)
            self._read(talk, tokens, mask)

    @rule(data=st.data(), length=st.one_of(st.integers(2, 9), st.integers(20, 60)), seed=SEEDS)
    @precondition(lambda self: self._used())
    def read_on(self, data: st.DataObject, length: int, seed: int) -> None:
        """Read another turn of several tokens."""
        talk = self._drawn(data)
        if talk.length + length <= LONGEST:
            self._read(talk, _tokens(seed, talk.rows, length))

    @rule(data=st.data(), length=st.integers(2, 20), seed=SEEDS)
    @precondition(lambda self: self._used())
    def ask_questions(self, data: st.DataObject, length: int, seed: int) -> None:
        """Read a question in each row; shorter ones are padded behind what was read."""
        talk = self._drawn(data)
        if talk.length + length > LONGEST:
            return
        mask = torch.ones(talk.rows, length, dtype=torch.long)
        for row in range(1, talk.rows):
            mask[row, : data.draw(st.integers(0, length - 1), label="padding")] = 0
        if self._read(talk, _tokens(seed, talk.rows, length) * mask, mask):
            self.done["padded questions"] += bool((mask == 0).any())

    @rule(data=st.data(), count=st.integers(1, 6), seed=SEEDS)
    @precondition(lambda self: self._used())
    def decode(self, data: st.DataObject, count: int, seed: int) -> None:
        """Decode: read tokens one by one."""
        talk = self._drawn(data)
        for step in range(count):
            talk.read(_tokens(seed + step, talk.rows, 1))
        self.done["decoded tokens"] += count

    @rule(data=st.data(), count=st.integers(1, 12))
    @precondition(lambda self: self._used())
    def crop(self, data: st.DataObject, count: int) -> None:
        """Take some of the tokens back; to take all of them is a reset."""
        talk = self._drawn(data)
        if count < talk.length:
            self.done["crops" if talk.crop(count) else "refused crops"] += 1

    @rule(data=st.data())
    @precondition(lambda self: self._used())
    def reorder(self, data: st.DataObject) -> None:
        """Put rows in another order, as beam search does; a row may occur several times."""
        talk = self._drawn(data)
        rows = data.draw(st.tuples(*[st.integers(0, talk.rows - 1)] * talk.rows), label="rows")
        talk.reorder(torch.tensor(rows))
        self.done["reorders"] += 1

    @rule(data=st.data())
    @precondition(lambda self: self._used())
    def select(self, data: st.DataObject) -> None:
        """Keep some rows, in any order."""
        talk = self._drawn(data)
        some = st.lists(st.integers(0, talk.rows - 1), min_size=1, max_size=talk.rows, unique=True)
        talk.select(torch.tensor(data.draw(some, label="rows")))
        self.done["selections"] += 1

    @rule(data=st.data(), times=st.integers(1, 3))
    @precondition(lambda self: self._used())
    def repeat(self, data: st.DataObject, times: int) -> None:
        """Repeat every row."""
        talk = self._drawn(data)
        if talk.rows * times <= MOST_ROWS:
            talk.repeat(times)
            self.done["repeats"] += 1

    @rule(data=st.data())
    @precondition(lambda self: self._used() and len(self.talks) < MOST_TALKS)
    def clone(self, data: st.DataObject) -> None:
        """Copy a conversation; both copies go on."""
        self.talks.append(self._drawn(data).twin())
        self.done["clones"] += 1

    @rule(data=st.data())
    @precondition(lambda self: self._used())
    def save_and_load(self, data: st.DataObject) -> None:
        """Save a conversation, and go on from the file."""
        talk = self._drawn(data)
        self.talks[self.talks.index(talk)] = talk.reloaded()
        self.done["files"] += 1

    @rule(data=st.data())
    @precondition(lambda self: self._used())
    def reset(self, data: st.DataObject) -> None:
        """Measure a conversation, reset its cache, and begin anew."""
        talk = self._drawn(data)
        self._check(talk)
        talk.reset()
        self.done["resets"] += 1

    def teardown(self) -> None:
        """Measure every conversation."""
        for talk in self.talks:
            self._check(talk)

    def _used(self) -> bool:
        return any(talk.rows for talk in self.talks)

    def _drawn(self, data: st.DataObject) -> Conversation:
        used = [at for at, talk in enumerate(self.talks) if talk.rows]
        return self.talks[data.draw(st.sampled_from(used), label="conversation")]

    def _tell(self, talk: Conversation, spans: Told | None) -> None:
        """Tell an empty cache of spans. One that was told of others is replaced."""
        if spans is None and talk.cache.session.spans is None:
            # Rows that had spans may be gone, and the file of the others names none.
            talk.protected = []
            return
        try:
            talk.tell(self.policy, spans)
            self.done["told of spans"] += spans is not None
        except InvalidValueError:
            talk.tell(self.policy, None)

    def _read(
        self,
        talk: Conversation,
        tokens: Int[Tensor, "B Q"],
        mask: Int[Tensor, "B Q"] | None = None,
    ) -> bool:
        """Read a turn. Return False if its share cannot hold what is protected."""
        before = contents_of(talk.cache)
        try:
            talk.read(tokens, mask)
        except InvalidValueError:
            if not talk.protected:
                raise
            check_equal(before, contents_of(talk.cache))
            self.done["refused turns"] += 1
            return False
        self.done["turns"] += 1
        talk.check_protected()
        # With a budget for each turn, the sum over turns has no bound here.
        if (tokens.shape[1] > 1 or talk.length == 1) and not self.policy.per_turn:
            _check_budget(talk, self.policy)
        return True

    def _check(self, talk: Conversation) -> None:
        difference = talk.difference()
        assert difference <= LIMIT, (
            f"logits differ by {difference} from those of a masked full cache"
        )
        if talk.forwards:
            self.done["measured conversations"] += 1
            self.done["of them evicted"] += talk.has_evicted


def _tokens(seed: int, batch: int, length: int) -> Int[Tensor, "B T"]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, 128, (batch, length), generator=generator)


def _check_budget(talk: Conversation, policy: Policy) -> None:
    """Check that each row holds at most the budget, averaged over heads and layers."""
    real: Any = talk.mask
    # Counts are compared with counts, since a mean would be rounded.
    held = torch.stack([(layer.positions >= 0).sum((1, 2)) for layer in talk.cache.policy_layers])
    heads = sum(layer.positions.shape[1] for layer in talk.cache.policy_layers)
    for row, (count, seen) in enumerate(
        zip(held.sum(0).tolist(), real.sum(1).tolist(), strict=True)
    ):
        most = seen if policy.keeps_all(seen) else min(seen, policy.positions(seen))
        assert count <= most * heads, (
            f"row {row} holds {count / heads} of {seen} tokens, not {most}"
        )
