"""Says which names plugins and what they offer may have.

A name has 1 to 64 characters: a to z, 0 to 9, "-", "_" and ".". It starts with a letter or a digit.
So no two names look alike, and every name can be written in a terminal, a table and an address.
"""

from __future__ import annotations

import re
import unicodedata

from kvpolicy.errors import InvalidComponentError, shown

LONGEST = 64
"""How many characters a name may have."""
RULE = (
    f"a name has 1 to {LONGEST} characters a-z, 0-9, '-', '_' and '.', and starts with a letter or "
    "a digit"
)

_OTHER = re.compile(r"[^a-z0-9._-]")


def check_name(name: object, giver: str) -> None:
    r"""Raise InvalidComponentError if `name` cannot be a name. `giver` says who gives it.

    >>> check_name("restkv", "kvpolicy_scorers")
    >>> check_name("restkv\u200b", "kvpolicy_scorers")
    Traceback (most recent call last):
    kvpolicy.errors.InvalidComponentError: kvpolicy_scorers gives 'restkv\u200b' as a name, but it
    has the character U+200B (ZERO WIDTH SPACE); a name has 1 to 64 characters a-z, 0-9, '-', '_'
    and '.', and starts with a letter or a digit.
    """
    fault = _fault(str.__str__(name)) if isinstance(name, str) else "it is no string"
    if fault:
        raise InvalidComponentError(
            f"{giver} gives {escaped(name)} as a name, but {fault}; {RULE}."
        )


def escaped(name: object) -> str:
    r"""Return a name as messages show it: quoted, and cut where it is long.

    Characters outside ASCII are escaped, because some cannot be seen and some look like others.

    >>> print(escaped("sn\u0430pkv"))
    'sn\u0430pkv'
    """
    text = shown(name)
    cut = "…" if text.endswith("…") else ""
    return text.removesuffix("…").encode("ascii", "backslashreplace").decode("ascii") + cut


def _fault(name: str) -> str | None:
    """Return what is wrong with a name, as half a sentence; None if nothing is."""
    if not name:
        return "it is empty"
    if name != name.strip():
        return "it starts or ends with white space"
    if len(name) > LONGEST:
        return f"it has {len(name):,} characters"
    if other := _OTHER.search(name):
        return f"it has {_described(other[0])}"
    return None if name[0].isalnum() else f"it starts with {name[0]!r}"


def _described(character: str) -> str:
    """Return a character by its code and its name in Unicode.

    >>> _described("K")
    "the upper-case letter 'K'"
    >>> _described("\u00e9")
    'the character U+00E9 (LATIN SMALL LETTER E WITH ACUTE)'
    """
    if "A" <= character <= "Z":
        return f"the upper-case letter {character!r}"
    title = unicodedata.name(character, "which has no name")
    return f"the character U+{ord(character):04X} ({title})"
