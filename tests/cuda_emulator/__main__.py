"""Builds all of the emulator, so that no test has to wait for the compiler."""

from tests.cuda_emulator import build

MODULES = ("samples", "planted", "emulated")

try:
    build.require_ninja()
    build.build(*MODULES)  # in one go, so that no core waits for the end of one module; load tells a complaint
    for name in MODULES:
        build.load(name)
except build.CannotBuildError as missing:
    print(f"skipped: {missing}")
