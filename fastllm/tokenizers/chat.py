"""Chat templates: a conversation as the text that a model was trained on, in Jinja as Hugging Face's files have it.

A template comes with a model and is not trusted: it runs in Jinja's sandbox, sees copies of plain data, and is stopped
when it takes too long or writes too much. What users wrote is not trusted either: where the name of a special token
is in it, the name is marked, so that encode_chat tells it from the names that the template wrote itself. Only a
template that changes what users wrote, as by `lower`, can still make a name of it.
"""

import json
import re
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextvars import ContextVar
from datetime import datetime
from functools import lru_cache
from typing import Any, NamedTuple

from fastllm.errors import UserError, UserValueError, describe

Messages = Sequence[Mapping[str, Any]]

_SECONDS = 10.0  # that a template may take; a long one takes milliseconds
_LENGTH = 100_000_000  # characters that it may write: far more than any model reads
_MARKS = range(0xE000, 0xF900)  # characters for private use: one that occurs nowhere else becomes the mark
_deadline: ContextVar[float] = ContextVar("deadline")


class Marked(NamedTuple):
    """A chat's text in which names of special tokens that a user wrote are marked.

    Attributes:
        text: the chat.
        mark: a character that is in no message and not in the template; it is inside every name that a user wrote.
        names: finds the names that the template wrote.
    """

    text: str
    mark: str
    names: re.Pattern


def render(template: str, messages: Messages, roles: Mapping[str, str], variables: Mapping[str, Any]) -> str:
    """Return the text of a chat, as transformers' apply_chat_template does.

    Args:
        template: in Jinja.
        messages: each a mapping, usually of "role" and "content"; entries that are None are left out.
        roles: the names of tokens that the template can use, such as "bos_token".
        variables: what else it can use.

    Raises:
        UserError: the template is broken, raises, or takes too long, or the package jinja2 is missing.
        TypeError: messages are not a list of mappings of plain data.
    """
    plain, others = _checked(messages, variables)
    return _render(template, plain, {**roles, **others})


def render_marked(
    template: str, messages: Messages, roles: Mapping[str, str], variables: Mapping[str, Any], names: Collection[str]
) -> Marked:
    """Return the same text, with marks in the names of special tokens that are in messages or variables.

    Args:
        template: as in render.
        messages: as in render.
        roles: as in render.
        variables: as in render.
        names: the special tokens.

    Raises:
        UserError: as render.
        TypeError: as render.
    """
    plain, others = _checked(messages, variables)
    used = set(template).union(json.dumps([plain, others], ensure_ascii=False))
    mark = next(chr(point) for point in _MARKS if chr(point) not in used)
    broken = _breaker(names, mark)
    text = _render(template, _copy("messages", plain, broken), {**roles, **_copy("variables", others, broken)})
    longest_first = sorted(names, key=len, reverse=True)
    # A name of one character has no inside: the mark is after it.
    whole = [re.escape(name) + (f"(?!{mark})" if len(name) == 1 else "") for name in longest_first]
    return Marked(text, mark, re.compile(f"({'|'.join(whole) or '(?!)'})"))


def _breaker(names: Collection[str], mark: str) -> Callable[[str], str]:
    """Return a function that puts the mark where a text has a name, or may be a part of one with what is beside it."""
    if not names:
        return str
    longest_first = "|".join(map(re.escape, sorted(names, key=len, reverse=True)))
    starts = re.compile(f"(?=({longest_first}))")  # of names that overlap, too
    begun = tuple({name[:cut] for name in names for cut in range(1, len(name))})
    ended = tuple({name[cut:] for name in names for cut in range(1, len(name))})

    def broken(text: str) -> str:
        places = {match.start() + 1 for match in starts.finditer(text)}
        if text.startswith(ended):
            places.add(0)
        if text.endswith(begun):
            places.add(len(text))
        for place in sorted(places, reverse=True):
            text = text[:place] + mark + text[place:]
        return text

    return broken


def _checked(messages: Messages, variables: Mapping[str, Any]) -> tuple[list[dict], dict[str, Any]]:
    """Return copies that are plain data."""
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence):
        raise TypeError(f"chat: 'messages' must be a list of messages, got {describe(messages)}")
    if not messages:
        raise UserValueError("chat: 'messages' must have at least one message, got none")
    for message in messages:
        if not isinstance(message, Mapping):
            raise TypeError(f"chat: 'messages' must be mappings with a role and content, got {describe(message)}")
    plain = [{name: value for name, value in message.items() if value is not None} for message in messages]
    return _copy("messages", plain, str), {name: _copy(name, value, str) for name, value in variables.items()}


def _copy(name: str, value: Any, change: Callable[[str], str]) -> Any:
    """Return a copy of plain data in which change has been applied to every text."""
    if isinstance(value, str):
        return change(value)
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, Mapping):
        return {change(str(key)): _copy(name, one, change) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_copy(name, one, change) for one in value]
    raise TypeError(f"chat: '{name}' must be plain data (texts, numbers, lists, mappings), got {describe(value)}")


def _render(template: str, messages: list[dict], variables: dict[str, Any]) -> str:
    compiled = _compiled(template)
    token = _deadline.set(time.monotonic() + _SECONDS)
    written, parts = 0, []
    try:
        for part in compiled.generate(**{"tools": None, "documents": None, **variables, "messages": messages}):
            _check_time()
            parts.append(part)
            written += len(part)
            if written > _LENGTH:
                raise UserError(f"the chat template writes more than {_LENGTH:,} characters")
    except UserError:
        raise
    except Exception as error:  # anything that an expression of the template can raise
        raise UserError(f"the chat template cannot render these messages: {' '.join(f'{error}'.split())}") from error
    finally:
        _deadline.reset(token)
    return "".join(parts)


def _check_time() -> None:
    """Stop a template that loops on and on; it is called in every turn of a loop and in every macro."""
    if time.monotonic() > _deadline.get():
        raise UserError(f"the chat template takes longer than {_SECONDS:g} seconds")


@lru_cache(maxsize=16)
def _compiled(template: str) -> Any:
    try:
        import jinja2
        import jinja2.sandbox
    except ModuleNotFoundError as error:
        raise UserError("the package jinja2 is missing; pip install 'fastllm[tokenizers]'") from error
    from jinja2 import nodes

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_generation_tag(), "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals.update(raise_exception=_raise, strftime_now=_now, namespace=_namespace())
    environment.extend(check_time=_check_time)
    try:
        tree = environment.parse(template)
        for node in tree.find_all((nodes.For, nodes.Macro, nodes.CallBlock)):
            assert isinstance(node, nodes.For | nodes.Macro | nodes.CallBlock)
            check = nodes.Call(nodes.EnvironmentAttribute("check_time"), [], [], None, None)
            node.body.insert(0, nodes.ExprStmt(check).set_lineno(node.lineno))
        code = environment.compile(tree)
    except jinja2.TemplateSyntaxError as error:
        raise UserError(f"the chat template is broken in line {error.lineno}: {error.message}") from error
    return environment.template_class.from_code(environment, code, environment.make_globals(None))


# What transformers gives templates beside Jinja's own.


def _raise(message: str) -> None:
    raise UserError(f"the chat template refuses these messages: {message}")


def _now(format: str) -> str:
    return datetime.now().strftime(format)


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """Without Jinja's escapes for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _generation_tag() -> Any:
    """Return the extension that knows `{% generation %}`, which marks for training what the model writes."""
    from jinja2 import ext, nodes

    class Generation(ext.Extension):
        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True)).set_lineno(line)

    return Generation


def _namespace() -> Any:
    """Return Jinja's namespace without names that begin with an underscore: those lead to Python's own."""
    from jinja2.utils import Namespace

    class Plain(Namespace):
        def __init__(*args: Any, **attributes: Any) -> None:
            self, *rest = args
            given = dict(*rest, **attributes)
            for name in given:
                _check_name(name)
            Namespace.__init__(self, given)

        def __setitem__(self, name: str, value: Any) -> None:
            _check_name(name)
            super().__setitem__(name, value)

    return Plain


def _check_name(name: str) -> None:
    if name.startswith("_"):
        raise UserError(f"the chat template sets '{name}': a name in a namespace must not begin with '_'")
