"""How every command line is parsed, and its mistakes told."""

import difflib
import re
import sys
from argparse import Action

from jsonargparse import ArgumentParser, DefaultHelpFormatter

EXIT_USER_ERROR = 2
_UNTOLD = re.compile(r"type: (<class 'Path'>|Path|str|bool)|default: (null|\[\]|False|\s*)")
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\"}


class _HelpFormatter(DefaultHelpFormatter):
    """Says of an option's type and default what a reader can use: no names of Python's classes, no default of none."""

    def _expand_help(self, action: Action) -> str:
        text = super()._expand_help(action)
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
        text += self._nearest_option(text) or self._nearest_key(text)
        print(f"{self.prog}: {text} (see {self.prog} --help)", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)

    def _nearest_option(self, text: str) -> str:
        known = [option for action in self._actions for option in action.option_strings]
        for word in sys.argv[1:]:
            name = word.split("=")[0]
            if name.startswith("--") and name not in known and name in text:
                return _did_you_mean(name, known)
        return ""

    def _nearest_key(self, text: str) -> str:
        """Suggest a key for one of a --config file that is not known; jsonargparse names the command and the key."""
        match = re.search(r"ubcommand '(\w+)' does not accept option '(\w+)'", text)
        if match is None:
            return ""
        parsers = [action.choices for action in self._actions if isinstance(action.choices, dict)]
        known = [action.dest for commands in parsers for action in commands[match[1]]._actions]
        return _did_you_mean(match[2], known)


def unescaped(text: str) -> str:
    r"""Return text with the characters that a shell does not make of \n, \t, \r and \\."""
    return re.sub(r"\\([ntr\\])", lambda match: _ESCAPES[match[1]], text)


def _did_you_mean(word: str, known: list[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {near[0]}?" if near else ""
