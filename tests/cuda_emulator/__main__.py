"""Builds all of the emulator, so that no test has to wait for the compiler."""

from tests.cuda_emulator import build

try:
    for name in ("samples", "planted", "emulated"):
        build.load(name)
except build.CannotBuildError as missing:
    print(f"skipped: {missing}")
