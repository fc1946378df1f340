"""How every command line is parsed, and its mistakes told."""

import difflib
import sys

from jsonargparse import ArgumentParser

EXIT_USER_ERROR = 2


class Parser(ArgumentParser):
    """Reports a wrong command line in one sentence, with the nearest option where one was misspelt."""

    def error(self, message: str, ex: Exception | None = None) -> None:  # type: ignore[override]
        """Exit with status 2."""
        text = " ".join(str(message).split())
        known = [option for action in self._actions for option in action.option_strings]
        for word in sys.argv[1:]:
            name = word.split("=")[0]
            if name.startswith("--") and name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                text += f"; did you mean {near[0]}?" if near and name in text else ""
        print(f"{self.prog}: {text} (see {self.prog} --help)", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)
