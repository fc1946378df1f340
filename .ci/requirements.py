"""Print the requirements of the named extras of pyproject.toml, one a line: python requirements.py EXTRA..."""

import sys
from pathlib import Path

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    from pip._vendor import tomli as tomllib

extras = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
print("\n".join(requirement for extra in sys.argv[1:] for requirement in extras[extra]))
