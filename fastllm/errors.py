"""What a user did that cannot work, said in one sentence."""

from numbers import Integral, Real


class UserError(Exception):
    """A mistake the user can mend; the command line prints its message alone, without a traceback."""


class UserValueError(UserError, ValueError):
    """An argument or a setting with a value that it cannot have: Python's own error for it too, for who calls us."""


def describe(value: object) -> str:
    """Return an argument of a wrong type as a message says what it got: its type and the beginning of its value."""
    return "None" if value is None else f"{type(value).__name__} {value!r:.60}"


_NOUNS: dict[type, str] = {Integral: "a whole number", Real: "a number", bool: "a bool", str: "a str"}


def check_type(where: str, name: str, value: object, kind: type) -> None:
    """Raise TypeError if an argument is not of a kind; True and False are no numbers.

    Args:
        where: the function or class, or the file that the value is from.
        name: the argument's.
        value: what it is.
        kind: a class, or one of numbers' for all that count as such.
    """
    if not isinstance(value, kind) or (kind in (Integral, Real) and isinstance(value, bool)):
        expected = _NOUNS.get(kind, f"a {kind.__name__}")
        raise TypeError(f"{where}: '{name}' must be {expected}, got {describe(value)}")
