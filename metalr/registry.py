"""Look-up of registered names, with the nearest match in the error."""

import difflib
from collections.abc import Mapping
from typing import TypeVar

T = TypeVar("T")


def look_up(registry: Mapping[str, T], name: str, kind: str) -> T:
    """Return `registry[name]`.

    Args:
        registry: name -> whatever is registered.
        name: the name to look up.
        kind: the noun for the error, such as "schedule".

    Raises:
        ValueError: `name` is not registered; the message gives the nearest registered name and all of them.

    Example:
        >>> look_up({"cosine": 1, "linear": 2}, "cosine", "schedule")
        1
    """
    if name in registry:
        return registry[name]
    near = difflib.get_close_matches(str(name), registry, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ValueError(f"got {kind} {name!r}, expected a registered one: {hint}choose from {', '.join(sorted(registry))}")
