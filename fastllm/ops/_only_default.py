"""Arguments that torch's functions have and fastllm's do not: taken at their default, else refused by name.

So that a call written for torch either means the same here or says why it cannot.
"""

from typing import Any

from torch import Tensor

from fastllm.ops._types import describe


def only_default(op: str, name: str, value: Any, default: Any, instead: str) -> None:
    """Raise ValueError if an argument is not at torch's default; the message ends in what to do instead."""
    if value is not default and (isinstance(value, Tensor) or value != default):
        raise ValueError(f"{op}: '{name}' must be {default}, got {describe(value)}: {instead}")
