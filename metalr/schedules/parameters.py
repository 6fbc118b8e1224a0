"""Parameters of a schedule, declared with their constraints beside their defaults and checked at construction.

    every: float = real(0.3, above=0.0)

A check returns the clean value (lists become tuples, integers become floats, so that equal schedules compare
and hash as equal) or refuses it. The constructor and the reader of saved files share these checks, so a file
can build nothing that Python code could not.
"""

import dataclasses
import itertools
import math
import numbers
import reprlib
from collections.abc import Callable, Collection
from typing import Any

MAX_ITEMS = 1000  # each item costs an operation per evaluation: a longer list is a table, not a schedule


class Refused(Exception):
    """The refusal of a value by a check; its text states the expectation."""


def parameter(check: Callable[[Any], Any], default: Any = dataclasses.MISSING) -> Any:
    """Dataclass field with a check, typed `Any` so that a type checker sees only the annotation."""
    return dataclasses.field(default=default, metadata={"check": check})


def real(
    default: float | None,
    *,
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
    optional: bool = False,
) -> Any:
    """Finite float within bounds, or None if `optional`."""
    check = _real_check(above, at_least, below, at_most)
    return parameter(_or_none(check) if optional else check, default)


def integer(default: int | None, *, at_least: int | None = None, optional: bool = False) -> Any:
    """Integer that fits in 64 bits, or None if `optional`."""
    lowest = -(2**63) if at_least is None else at_least
    expected = f"an integer >= {lowest} that fits in 64 bits"

    def check(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, numbers.Integral):
            raise Refused(expected)
        number = int(value)
        if not lowest <= number < 2**63:
            raise Refused(expected)
        return number

    return parameter(_or_none(check) if optional else check, default)


def flag(default: bool) -> Any:
    """True or False. 0 and 1 are refused because they usually come from arguments in the wrong order."""

    def check(value: Any) -> bool:
        if not isinstance(value, bool):
            raise Refused("True or False")
        return value

    return parameter(check, default)


def choice(default: str, *others: str) -> Any:
    """One of the given strings."""
    options = (default, *others)

    def check(value: Any) -> str:
        if not isinstance(value, str) or value not in options:
            raise Refused(f"one of {', '.join(map(repr, options))}")
        return value

    return parameter(check, default)


def reals(
    default: Collection[float],
    *,
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    ordered: bool = False,
    distinct: bool = False,
) -> Any:
    """Tuple of finite floats within bounds, optionally in ascending order (`ordered`) and distinct."""
    check_item = _real_check(above, at_least, below, None)

    def check(value: Any) -> tuple[float, ...]:
        items = tuple(check_item(item) for item in sequence_items(value, "finite numbers"))
        if ordered and any(right < left for left, right in itertools.pairwise(items)):
            raise Refused("numbers in ascending order")
        if distinct and any(right == left for left, right in itertools.pairwise(items)):
            raise Refused("numbers that differ from each other")
        return items

    return parameter(check, tuple(default))


def sequence_items(value: Any, expected: str) -> Collection[Any]:
    """Return `value` if it is a list or tuple of at most `MAX_ITEMS`.

    Raises:
        Refused: it is not.
    """
    if not isinstance(value, list | tuple) or len(value) > MAX_ITEMS:
        raise Refused(f"a list or tuple of at most {MAX_ITEMS} {expected}")
    return value


def _or_none(check: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def check_or_none(value: Any) -> Any:
        if value is None:
            return None
        try:
            return check(value)
        except Refused as refusal:
            raise Refused(f"None or {refusal}") from None

    return check_or_none


def _real_check(
    above: float | None, at_least: float | None, below: float | None, at_most: float | None
) -> Callable[[Any], float]:
    bounds = {">": above, ">=": at_least, "<": below, "<=": at_most}
    stated = [f"{sign} {bound:g}" for sign, bound in bounds.items() if bound is not None]
    expected = " ".join(["a finite number", " and ".join(stated)]).strip()

    def check(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            raise Refused(expected)
        try:
            number = float(value)
        except OverflowError:  # an integer of more than 308 digits
            raise Refused(expected) from None
        inside = (
            math.isfinite(number)
            and (above is None or number > above)
            and (at_least is None or number >= at_least)
            and (below is None or number < below)
            and (at_most is None or number <= at_most)
        )
        if not inside:
            raise Refused(expected)
        return number

    return check


def shown(value: Any) -> str:
    """Short `repr` for an error message, safe for values that are huge, self-referential or hostile."""
    try:
        return reprlib.repr(value)
    except Exception:  # an error in a foreign __repr__ must not hide the real one
        return f"<{type(value).__name__}>"


def validate(instance: Any) -> None:
    """Check every declared parameter of a frozen dataclass and replace it with its clean value.

    Raises:
        ValueError: a check refused a value; the message states the value, the expectation and an example.
    """
    owner = type(instance).__name__
    for field in dataclasses.fields(instance):
        value = getattr(instance, field.name)
        try:
            clean = field.metadata["check"](value)
        except Refused as refusal:
            example = "" if field.default is dataclasses.MISSING else f"; pass {field.default!r}, for example"
            raise ValueError(
                f"got {owner}({field.name}={shown(value)}), expected {field.name} to be {refusal}{example}"
            ) from None
        object.__setattr__(instance, field.name, clean)


def accept_only(given: Collection[str], accepted: Collection[str], what: str) -> None:
    """Raise ValueError if a given keyword is not accepted, and list those that are."""
    unknown = [shown(name) for name in given if name not in accepted]
    if unknown:
        allowed = ", ".join(accepted) or "none"
        raise ValueError(f"got {what} with {', '.join(unknown[:5])}, expected only its own parameters; use {allowed}")
