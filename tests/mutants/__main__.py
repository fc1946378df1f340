"""Break each kernel on purpose and see its tests fail: python -m tests.mutants [NAME...] (make mutants).

A mutant is one wrong expression in a copy of the sources. The copy is rebuilt and the tests named beside the mutant are
run there; a mutant that they let pass is reported, and the exit status is 1. All take most of an hour; names, or
"on CUDA", pick some.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from fastllm import ops
from tests.mutants import amx, cpu, cuda
from tests.mutants.mutant import Mutant

ROOT = Path(__file__).parents[2]
COPIED = ("setup.py", "pyproject.toml", "README.md", "LICENSE", "csrc", "fastllm", "tests")
MUTANTS = cpu.MUTANTS + cuda.MUTANTS
if ops.build_info()["cpu_capability"] == "amx":
    MUTANTS += amx.MUTANTS  # elsewhere nothing runs what they break


def main(names: list[str]) -> int:
    chosen = [mutant for mutant in MUTANTS if not names or any(name in mutant.name for name in names)]
    if not chosen:
        sys.exit(f"mutants: no mutant's name contains any of {names}")
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for name in COPIED:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
            else:
                shutil.copyfile(source, copy / name)
        if not build(copy):
            sys.exit("mutants: the sources as they are do not build")
        survivors = [mutant for mutant in chosen if not noticed(copy, mutant)]
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} mutants were noticed")
    return 1 if survivors else 0


def noticed(copy: Path, mutant: Mutant) -> bool:
    """Plant a fault, rebuild, test, take the fault out again."""
    path = copy / mutant.file
    right = path.read_text(encoding="utf-8")
    if right.count(mutant.right) != 1:
        print(
            f"STALE     {mutant.name}: its line occurs {right.count(mutant.right)} times in {mutant.file}", flush=True
        )
        return False
    path.write_text(right.replace(mutant.right, mutant.wrong), encoding="utf-8")
    try:
        built = build_emulator(copy) if mutant.on_cuda else build(copy)
        failed = built and not tests_pass(copy, mutant)
    finally:
        path.write_text(right, encoding="utf-8")
    verdict = "noticed" if failed else "SURVIVED" if built else "NO BUILD"
    print(f"{verdict:9} {mutant.name}", flush=True)
    return failed


def build(copy: Path) -> bool:
    environment = {**os.environ, "FASTLLM_CUDA": "0", "FASTLLM_CAPABILITIES": "native"}
    command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
    return subprocess.run(command, cwd=copy, env=environment, capture_output=True, check=False).returncode == 0


def build_emulator(copy: Path) -> bool:
    command = [sys.executable, "-m", "tests.cuda_emulator"]
    return subprocess.run(command, cwd=copy, capture_output=True, check=False).returncode == 0


def tests_pass(copy: Path, mutant: Mutant) -> bool:
    paths = [f"tests/{test}" for test in mutant.tests.split()]
    marks = "emulated and not slow" if mutant.on_cuda else "not emulated and not slow"
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-m", marks, *paths]
    run = subprocess.run(command, cwd=copy, capture_output=True, text=True, check=False)
    if run.returncode not in (0, 1):  # 1: tests failed; anything else is no verdict
        sys.exit(f"mutants: {' '.join(paths)} could not run:\n{run.stdout}{run.stderr}")
    return run.returncode == 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
