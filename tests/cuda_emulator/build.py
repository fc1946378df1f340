"""Builds the emulator's Python modules into build/cuda_emulator/ with ninja: only what changed is compiled.

`emulated` has the product's kernels and op glue (csrc/cuda, csrc/ops/cuda); `samples` the kernels of the emulator's own
tests, `planted` an op of theirs. Each contains the runtime. Kernels are compiled with -fsanitize=thread, which has g++
call a function before each memory access: the runtime's own (runtime/hooks.cpp), as the sanitizer's library is not
linked.
"""

import fcntl
import importlib.util
import os
import shutil
import subprocess
import sysconfig
from functools import cache
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CSRC = ROOT / "csrc"
BUILD = ROOT / "build" / "cuda_emulator"
SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")

COMMON = "-O2 -fPIC -fvisibility=hidden -Wall -Wno-unknown-pragmas"
# A 16-byte access of the source stays one access (no scalar replacement), an instruction stays one instruction
# (no jump threading), and -g1 names its line. a * b + c is fused, as nvcc does by default.
KERNEL = (
    "-O1 -g1 -fPIC -fvisibility=hidden -Wall -Wno-unknown-pragmas -ffp-contract=fast -fno-tree-sra -fno-ipa-sra "
    "-fno-thread-jumps -fsanitize=thread --param tsan-instrument-func-entry-exit=0"
)


class EmulatorError(RuntimeError):
    """A kernel did what a GPU would let pass; the message names kernel, block and thread."""


class CannotBuildError(Exception):
    """What this machine lacks, in one sentence."""


def compiler() -> str:
    """Return g++, or say why there is none: clang++ has other instrumentation."""
    named = os.environ.get("CXX", "g++")
    path = shutil.which(named)
    if path is None:
        raise CannotBuildError(f"the CUDA emulator needs g++ >= 11, and '{named}' is not there")
    banner = subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout
    if "clang" in banner.lower():
        raise CannotBuildError(f"the CUDA emulator needs g++ >= 11, and '{named}' is clang")
    return path


def rule(name: str, command: str) -> str:
    tracked = f"{command} -MMD -MF $out.d\n  depfile = $out.d\n  deps = gcc"
    return f"rule {name}\n  description = {name} $out\n  command = {tracked}"


def require_ninja() -> None:
    """Raise CannotBuildError if the Python package ninja is not there."""
    if importlib.util.find_spec("ninja") is None:
        raise CannotBuildError("the CUDA emulator needs the Python package ninja")


class Plan:
    """What to compile with which flags, as the text of a build.ninja."""

    def __init__(self) -> None:
        import torch
        from torch.utils import cpp_extension

        cxx = compiler()
        torch_lib = Path(torch.__file__).parent / "lib"
        system = " ".join(
            f"-isystem {path}" for path in (*cpp_extension.include_paths("cpu"), sysconfig.get_path("include"))
        )
        ours = f"-I{BUILD}/pch -I{HERE}/include -I{HERE}/runtime -I{HERE}/modules -I{CSRC}"
        native = "-march=native" if os.uname().machine == "x86_64" else ""
        version = subprocess.run([cxx, "-dumpversion"], capture_output=True, text=True, check=True).stdout
        # Registers that a kernel reads before it writes them hold no zeros.
        poison = "-ftrivial-auto-var-init=pattern" if int(version.split(".")[0]) >= 12 else ""
        self.lines = [
            rule("runtime", f"{cxx} -std=c++17 {COMMON} -O3 {native} {ours} -c $in -o $out"),
            rule("kernel", f"{cxx} -std=c++17 {KERNEL} {poison} {native} {ours} -x c++ -c $in -o $out"),
            rule("bind", f"{cxx} -std=c++20 {COMMON} {ours} {system} -c $in -o $out"),
            rule("precompile", f"{cxx} -std=c++20 {COMMON} {ours} {system} -w -x c++-header $in -o $out"),
            f"rule link\n  description = link $out\n  command = {cxx} -shared $in -o $out $libraries",
        ]
        self.torch_libraries = f"-L{torch_lib} -Wl,-rpath,{torch_lib} -ltorch_python -ltorch -ltorch_cpu -lc10"

    def compile(self, rule_name: str, sources: list[Path], folder: str, after: str = "") -> list[str]:
        """Plan the sources; return the objects."""
        objects = []
        for source in sorted(sources):
            objects.append(f"{BUILD}/{folder}/{source.stem}.o")
            self.lines.append(f"build {objects[-1]}: {rule_name} {source}{after}")
        return objects

    def module(self, name: str, objects: list[str], libraries: str = "") -> None:
        """Plan a Python module."""
        self.lines.append(f"build {name}: phony {BUILD / name}{SUFFIX}")
        self.lines.append(f"build {BUILD / name}{SUFFIX}: link {' '.join(objects)}\n  libraries = {libraries}")

    def text(self) -> str:
        """Return the whole build.ninja."""
        header = f"{BUILD}/pch/ops/op.h.gch"
        self.lines.append(f"build {header}: precompile {CSRC}/ops/op.h")
        runtime = self.compile("runtime", list((HERE / "runtime").glob("*.cpp")), "runtime")
        runtime += self.compile("bind", [HERE / "modules/bindings.cpp"], "modules")
        samples = self.compile("kernel", list((HERE / "kernels").glob("*.cu")), "kernels")
        samples += self.compile("bind", [HERE / "modules/samples.cpp"], "modules")
        self.module("samples", runtime + samples)
        ops = self.compile("kernel", list((CSRC / "cuda").glob("*.cu")), "cuda")
        ops += self.compile("bind", list((CSRC / "ops/cuda").glob("*.cpp")), "ops", after=f" | {header}")
        glue = [HERE / f"modules/{name}.cpp" for name in ("install", "library", "torch_device")]
        glue = self.compile("bind", glue, "modules", after=f" | {header}")
        ops += self.compile("bind", [HERE / "modules/emulated.cpp"], "modules", after=f" | {header}")
        self.module("emulated", runtime + glue + ops, self.torch_libraries)
        planted = self.compile("kernel", [HERE / "planted/copy.cu"], "planted/cuda")
        planted += self.compile("bind", list((HERE / "planted").glob("*.cpp")), "planted", after=f" | {header}")
        self.module("planted", runtime + glue + planted, self.torch_libraries)
        return "\n".join(self.lines) + "\n"


@cache
def build(*names: str) -> str | None:
    """Build modules; return the compiler's complaint, if any. Once a process: a test suite asks often."""
    import ninja

    BUILD.mkdir(parents=True, exist_ok=True)
    with open(BUILD / "lock", "w") as lock:  # several test processes may come at once
        fcntl.flock(lock, fcntl.LOCK_EX)
        plan, file = Plan().text(), BUILD / "build.ninja"
        if not file.exists() or file.read_text() != plan:
            file.write_text(plan)
        command = [Path(ninja.BIN_DIR) / "ninja", "-C", BUILD, *names]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
    return run.stdout + run.stderr if run.returncode else None


@cache
def load(name: str) -> ModuleType:
    """Build `emulated`, `samples` or `planted`, and import it.

    Raises:
        CannotBuildError: this machine lacks a tool.
        RuntimeError: the sources do not compile; the message has the compiler's.
    """
    require_ninja()
    complaint = build(name)
    if complaint:
        raise RuntimeError(f"the CUDA emulator's module '{name}' does not compile:\n{complaint}")
    import torch  # noqa: F401, whose libraries the module is linked with

    spec = importlib.util.spec_from_file_location(name, BUILD / f"{name}{SUFFIX}")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.set_error_class(EmulatorError)
    return module
