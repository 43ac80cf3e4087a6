"""The title of a part in messages: its kind, its name and its plugin."""

from __future__ import annotations

from collections.abc import Mapping

import attrs


@attrs.frozen(kw_only=True)
class Title:
    """The title of one part of a policy.

    `type` is the class of the part. `name`, `plugin`, `distribution` and `version` are None for a
    part that no installed plugin offers.

    >>> str(Title(kind="smoother", type=float))
    'smoother float'
    """

    kind: str
    type: type
    name: str | None = None
    plugin: str | None = None
    distribution: str | None = None
    version: str | None = None

    def __str__(self) -> str:
        """Return for example "scorer 'snapkv' of plugin 'snapkv' (kvpolicy 0.1.0)"."""
        if self.name is None:
            return f"{self.kind} {self.type.__name__}"
        return f"{self.kind} {self.name!r} of plugin {self.plugin!r} ({self.release})"

    @property
    def is_proved(self) -> bool:
        """Whether the tests of kvpolicy itself prove the promises of the part."""
        return self.distribution == "kvpolicy"

    @property
    def release(self) -> str:
        """The distribution and version, for example "kvpolicy 0.1.0"."""
        return f"{self.distribution} {self.version}"


Titles = Mapping[str, Title]
"""Titles by kind."""


def title_of(kind: str, part: object, titles: Titles) -> Title:
    """Return the title in `titles` if it was made for the class of `part`, else a new one.

    The new one has the kind and the class of `part` only.
    """
    known = titles.get(kind)
    return (
        known
        if known is not None and known.type is type(part)
        else Title(kind=kind, type=type(part))
    )
