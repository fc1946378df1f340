"""How every command line is parsed, and its mistakes told."""

import re
import sys
from argparse import Action
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jsonargparse import ActionYesNo, ArgumentParser, DefaultHelpFormatter

from fastllm.errors import did_you_mean

EXIT_USER_ERROR = 2
_UNTOLD = re.compile(r"type: (<class 'Path'>|<function any_path .*>|Path|str|bool)|default: (null|\[\]|False|\s*)")
_TYPES = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "a text"}
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\"}


class _HelpFormatter(DefaultHelpFormatter):
    """Shows types and defaults as a user needs them: no names of Python's classes, and no empty defaults."""

    def _expand_help(self, action: Action) -> str:
        text = super()._expand_help(action)
        if isinstance(action, ActionYesNo):  # its default says something: what --NAME changes
            text = text.replace("default: False", "default: false").replace("default: True", "default: true")
        match = re.fullmatch(r"(.*) \(((?:required|type:|default:).*)\)", text, re.DOTALL)
        if match is None:
            return text
        facts = re.split(r", (?=type:|default:)", match[2].replace(" | null", ""))
        told = [
            fact for fact in facts if not _UNTOLD.fullmatch(fact) and not (fact == "required" and action.nargs == "*")
        ]
        return f"{match[1]} ({', '.join(told)})" if told else match[1]


class Parser(ArgumentParser):
    """Reports a wrong command line in one sentence, with the nearest option or key where one was misspelt."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, formatter_class=_HelpFormatter, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> None:  # type: ignore[override]
        """Exit with status 2."""
        text = " ".join(str(message).split())
        command, told = self._missing(text) or ([], _plain(text))
        told += self._nearest_option(text) or self._nearest_key(text)
        prog = " ".join([self.prog.replace(" [options]", ""), *command])
        print(f"{prog}: {told} (see {prog} --help)", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)

    def _print_message(self, message: str, file: Any = None) -> None:
        """Print a help text; argparse itself would hide that it cannot be written."""
        if message:
            stream = file or sys.stderr
            stream.write(message)
            stream.flush()

    def _missing(self, text: str) -> tuple[list[str], str] | None:
        """Return which command lacks an argument, and a sentence; jsonargparse reports it at an outer parser."""
        if match := re.match(r"the following arguments are required: (.*)", text):
            places = [place.split(".") for place in match[1].split(", ")]
            names = " and ".join(f"'{place[-1]}'" for place in places)
            return places[0][:-1], f"{names} must be given"
        if match := re.match(r'expected "([\w.]+)" to be one of', text):
            command = match[1].split(".")[:-1]
            return command, f"one of {', '.join(self._commands(command))} must follow"
        return None

    def _commands(self, command: Iterable[str] = ()) -> dict[str, "Parser"]:
        """Return the commands that may follow a command."""
        parser = self
        for name in command:
            parser = parser._commands()[name]
        return next((action.choices for action in parser._actions if isinstance(action.choices, dict)), {})

    def _nearest_option(self, text: str) -> str:
        known = [option for action in self._actions for option in action.option_strings]
        for word in sys.argv[1:]:
            name = "--" + word.split("=")[0][2:].replace("-", "_")
            if word.startswith("--") and name not in known and name in text:
                return did_you_mean(name, known)
        return ""

    def _nearest_key(self, text: str) -> str:
        """Suggest a key for one of a --config file that is not known; jsonargparse names the command and the key."""
        match = re.search(r"ubcommand '(\w+)' does not accept option '(\w+)'", text)
        if match is None:
            return ""
        return did_you_mean(match[2], [action.dest for action in self._commands()[match[1]]._actions])


def _plain(text: str) -> str:
    """Return a message of jsonargparse or argparse in plain words, without Python's types."""
    if match := re.match(r'Parser key "([\w.]+)": (.*)', text):
        name, reason = match[1], match[2]
        if "codec can't encode" in reason:
            return f"'{name}' must be UTF-8"
        value = re.search(r"(?:Got|Given) value: ?(.*)", reason)
        types = [_TYPES[word] for word in re.findall(r"Expected a <class '(\w+)'>", reason) if word in _TYPES]
        return f"'{name}' must be {' or '.join(types)}, got '{value[1]}'" if value and types else f"'{name}': {reason}"
    if re.match(
        r"unrecognized arguments: --print_completion|argument --print_completion: .*from '?jsonschema'?\)", text
    ):
        needed = "the package shtab (pip install shtab) and JSONARGPARSE_ADD_PRINT_COMPLETION_ARGUMENT=true before it"
        return f"'print_completion' needs {needed}"
    if match := re.match(r"argument --(\w+).*: invalid _boolean_type value: (.*)", text):
        return f"'{match[1]}' must be true or false, got {match[2]}"
    if match := re.search(r"invalid choice: '(.*)' \(choose from (.*)\)", text):
        known = re.findall(r"\w+", match[2])
        return f"one of {', '.join(known)} must follow, got '{match[1]}'{did_you_mean(match[1], known)}"
    if match := re.match(r"Problems parsing config: (.*)", text):
        return f"'config' is not valid YAML: {match[1]}".replace(' in "<unicode string>",', " at")
    if match := re.match(r"unrecognized arguments: ([^-].*)", text):
        return f"{text}; an option takes one value: for several texts repeat it, as in --stop A --stop B"
    if match := re.match(r"argument --(\w+): expected one argument", text):
        return f"'{match[1]}' must have a value; one that begins with - is joined to it by =, as in --{match[1]}=-x"
    if text.startswith("Unexpected config:"):
        return "'config' must be a YAML file with lines like 'n_layer: 4'"
    return text


def any_path(word: str) -> Path:
    """Return a path, also of bytes that are not UTF-8: jsonargparse refuses them where the type is Path itself."""
    return Path(word)


def unescaped(text: str) -> str:
    r"""Return text with the characters that a shell does not make of \n, \t, \r and \\."""
    return re.sub(r"\\([ntr\\])", lambda match: _ESCAPES[match[1]], text)
