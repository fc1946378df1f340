"""python -m fastllm, and the `fastllm` command."""

import importlib.util
import sys


def main() -> int:
    """Run the command line, or say what it needs that is not installed."""
    if importlib.util.find_spec("jsonargparse") is None:
        print("fastllm: the command line needs more than the library: pip install 'fastllm[train]'", file=sys.stderr)
        return 2
    from fastllm import cli

    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
