"""What an attention call tells the layer whose keys it was given."""

from __future__ import annotations

from typing import Any, Protocol

from jaxtyping import Float
from torch import Tensor, nn

from kvpolicy.cache.memory.contents import Contents
from kvpolicy.huggingface.attention.arguments import Call
from kvpolicy.huggingface.drafts import Rest
from kvpolicy.huggingface.session import Session
from kvpolicy.observation.logits import Logits


class Listener(Protocol):
    """One layer of a cache, as its attention call sees it."""

    @property
    def session(self) -> Session:
        """What all layers of the cache share."""

    @property
    def contents(self) -> Contents | None:
        """What the layer holds, new tokens included; None once it was decided what is kept."""

    @property
    def seen(self) -> int:
        """The tokens that the layer has read, new ones included."""

    @property
    def moved(self) -> tuple[Tensor, Tensor] | None:
        """Keys and values in place of those that were handed out; None: those."""

    @property
    def has_evicted(self) -> bool:
        """Whether the layer holds fewer tokens than it has seen."""

    @property
    def rest(self) -> Rest | None:
        """Drafts of this forward, which are read when the layer has evicted."""

    def failed(self, error: BaseException) -> None:
        """Learn that the call failed: the cache refuses to go on, unless nothing was changed."""

    def learn_expanded(self, keys: Float[Tensor, "B H S D"], values: Float[Tensor, ...]) -> None:
        """Learn what attention sees in place of the latents that were handed out."""

    def mask_for(self, module: nn.Module, mask: Any, query: Float[Tensor, "B H Q D"]) -> Any:
        """Return the mask that the model built, as it fits the slots of this layer."""

    def seen_by(self, query: Float[Tensor, "B H Q D"]) -> Float[Tensor, "B H Q D"]:
        """Return the model's queries, rotated as the keys are that the layer handed out."""

    def attend(
        self, call: Call, query: Float[Tensor, "B H Q D"], mask: Any, logits: Logits
    ) -> Float[Tensor, "B Q H Dv"] | None:
        """Attend to what the layer holds; None leaves it to the model's own attention function."""

    def observe(self, module: nn.Module, query: Float[Tensor, "B H Q D"], logits: Logits) -> None:
        """Take note of the queries that attended; the layer may evict now."""
