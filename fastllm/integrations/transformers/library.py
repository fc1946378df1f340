"""What is used of transformers, by name: it changes often, and a name that is gone is said in a sentence."""

import functools
import importlib
import inspect
from typing import Any

from fastllm.errors import UserImportError


def needed(module: str, name: str) -> Any:
    """Return what a module of transformers keeps under a name, or a class of it ("Class.name").

    Raises:
        UserImportError: transformers is not installed, or has no such module or name.
    """
    try:
        library = importlib.import_module("transformers")
    except ImportError as error:
        raise UserImportError(
            "fastllm.integrations.transformers needs transformers: pip install transformers"
        ) from error
    try:
        return functools.reduce(getattr, name.split("."), importlib.import_module(module))
    except (ImportError, AttributeError) as error:
        raise UserImportError(_missing(library, f"{module}.{name}")) from error


def check_parameters(module: str, name: str, parameters: set[str]) -> None:
    """Raise UserImportError unless a function of transformers has these parameters."""
    found = inspect.signature(needed(module, name)).parameters
    for parameter in sorted(parameters - set(found)):
        raise UserImportError(_missing(importlib.import_module("transformers"), f"{module}.{name}({parameter}=)"))


def _missing(library: Any, what: str) -> str:
    return (
        f"transformers {library.__version__} has no {what}, which fastllm.integrations.transformers uses: install the "
        "version of transformers that this version of fastllm was tested with (5.24), or a newer fastllm"
    )
