"""What is not installed is named in one sentence."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

from fastllm import __main__

ROOT = Path(__file__).parent.parent


def test_the_command_line_without_its_extra(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert __main__.main() == 2
    assert "pip install 'fastllm[train]'" in capsys.readouterr().err


def test_a_compiler_that_is_not_there():
    run = subprocess.run(
        [sys.executable, "setup.py", "build_ext", "--inplace"],
        cwd=ROOT, env={**os.environ, "CXX": "/nonexistent/c++"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode != 0
    assert "fastllm: CXX: expected a C++ compiler, got '/nonexistent/c++'" in run.stderr
