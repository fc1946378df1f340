"""Builds fastllm's extension with ninja, without torch's build isolation or its per-file overhead.

What is built: the op files (csrc/ops, csrc/common) once, the CPU kernels (csrc/cpu) once per CPU capability, the CUDA
kernels and what calls them (csrc/cuda, csrc/ops/cuda) if torch has CUDA and nvcc is there. Then one extension module
per capability links the op objects with that capability's kernels, and fastllm imports the best one the machine can
run.

Environment: FASTLLM_CUDA=0|1 forces CUDA off or on, FASTLLM_CUDA_ARCHS="80 90" picks its targets,
FASTLLM_CAPABILITIES="default avx2 avx512 amx" limits the CPU builds ("native": the host's best alone), CXX picks the
compiler.
"""

import functools
import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
MINIMUM_TORCH = (2, 11)

CAPABILITIES = {
    "default": "-DCPU_CAPABILITY=DEFAULT -DCPU_CAPABILITY_DEFAULT",
    "avx2": "-DCPU_CAPABILITY=AVX2 -DCPU_CAPABILITY_AVX2 -mavx2 -mfma -mf16c",
    "avx512": "-DCPU_CAPABILITY=AVX512 -DCPU_CAPABILITY_AVX512 "
    "-mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx2 -mfma -mf16c "
    "-Wno-uninitialized",  # g++ 12 takes its own AVX-512 headers for a fault; the other builds look for real ones
}
# Only these sources differ from another capability's, whose objects serve for the rest.
CAPABILITIES["amx"] = f"{CAPABILITIES['avx512']} -mavx512bf16 -mamx-tile -mamx-bf16 -DFASTLLM_AMX"
EXTENDS = {"amx": ("avx512", ("bfloat16_*.cpp", "gemm.cpp"))}


def fail(sentence):
    """Stop with one sentence."""
    sys.exit(f"fastllm: {sentence}")


def require_tools():
    """Import torch and the build tools, or say in one sentence what is missing."""
    how = "and install again with --no-build-isolation"
    try:
        import torch
    except ImportError:
        fail(f"building needs torch >= 2.11 in this environment: install torch first, {how}.")
    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    if version < MINIMUM_TORCH:
        fail(f"building needs torch >= 2.11, this environment has {torch.__version__}: upgrade torch, {how}.")
    try:
        import ninja
        import pybind11
    except ImportError as error:
        fail(f"building needs the Python package '{error.name}': pip install pybind11 ninja, {how}.")
    named = os.environ.get("CXX")
    compiler = shutil.which(named) if named else shutil.which("c++") or shutil.which("g++")
    if compiler is None and named:
        fail(f"CXX: expected a C++ compiler, got '{named}', which is not there.")
    if compiler is None:
        fail("building needs a C++ compiler (g++ >= 11 or clang++ >= 14): install one, or name yours in CXX.")
    return torch, pybind11, Path(ninja.BIN_DIR) / "ninja", compiler


def choose_capabilities():
    """Which CPU capabilities to build."""
    on_x86 = platform.machine().lower() in ("x86_64", "amd64")
    wanted = os.environ.get("FASTLLM_CAPABILITIES", "all" if on_x86 else "default").split()
    if wanted == ["all"]:
        return list(CAPABILITIES)
    if wanted == ["native"]:
        flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
        features = {"amx": "amx_bf16", "avx512": "avx512dq", "avx2": "avx2", "default": ""}
        return [next(name for name, feature in features.items() if feature in flags)]
    for name in wanted:
        if name not in CAPABILITIES:
            fail(f"FASTLLM_CAPABILITIES: expected 'all', 'native' or some of {list(CAPABILITIES)}, got '{name}'.")
    return wanted


def choose_cuda(torch):
    """Return (nvcc or None, the reason in words)."""
    setting = os.environ.get("FASTLLM_CUDA", "auto")
    if setting not in ("0", "1", "auto"):
        fail(f"FASTLLM_CUDA: expected 0 or 1, got '{setting}'.")
    if setting == "0":
        return None, "switched off at build time by FASTLLM_CUDA=0"
    home = os.environ.get("CUDA_HOME")
    nvcc = shutil.which("nvcc", path=f"{home}/bin" if home else None) or shutil.which(
        "nvcc", path="/usr/local/cuda/bin"
    )
    if torch.version.cuda is None:
        reason = f"torch {torch.__version__} is a CPU build"
    elif nvcc is None:
        reason = "nvcc was not found on PATH or under CUDA_HOME"
    elif (release := nvcc_release(nvcc)).split(".")[0] != torch.version.cuda.split(".")[0]:
        reason = f"nvcc is of CUDA {release}, torch of CUDA {torch.version.cuda}: their major versions must be the same"
    else:
        return nvcc, f"built with {nvcc} for torch's CUDA {torch.version.cuda}"
    if setting == "1":
        fail(f"FASTLLM_CUDA=1 asks for the CUDA kernels, but {reason}.")
    return None, reason


def nvcc_release(nvcc):
    """Return the toolkit's version, such as 13.0."""
    said = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    return said.split("release ", 1)[-1].split(",")[0]


def cuda_toolkit(nvcc):
    """Return the toolkit's folder, as nvcc itself tells it: the nvcc on PATH may be a link or a script."""
    said = subprocess.run([nvcc, "--dryrun", "-c", "x.cu"], capture_output=True, text=True, check=False).stderr
    top = next((line.split("TOP=", 1)[1] for line in said.splitlines() if "TOP=" in line), None)
    return Path(top).resolve() if top else Path(nvcc).resolve().parent.parent


def cuda_arch_flags(torch):
    """Return nvcc's -gencode flags: FASTLLM_CUDA_ARCHS, else the GPU that is there, else sm_80 and sm_90 with PTX."""
    setting = os.environ.get("FASTLLM_CUDA_ARCHS", "").replace(",", " ").replace(".", "").split()
    if not setting and torch.cuda.is_available():
        setting = ["{}{}".format(*torch.cuda.get_device_capability())]
    archs = setting or ["80", "90"]
    for arch in archs:
        if not arch.rstrip("a").isdigit():
            fail(f"FASTLLM_CUDA_ARCHS: expected targets such as '80 90', got '{arch}'.")
    flags = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs]
    return [*flags, f"-gencode=arch=compute_{archs[-1]},code=compute_{archs[-1]}"]


class BuildNative(build_ext):
    """Writes build.ninja for all the extension modules and runs it once."""

    def build_extensions(self):
        """Compile what changed, link every module and put each where setuptools expects it."""
        torch, pybind11, ninja, compiler = require_tools()
        # Not self.build_temp: pip builds an editable install in a folder that it throws away, and with it all objects.
        build = ROOT / "build" / f"native-{sys.implementation.cache_tag}-torch{torch.__version__}"
        build.mkdir(parents=True, exist_ok=True)
        outputs = {ext.name.rsplit("_C_", 1)[1]: Path(self.get_ext_fullpath(ext.name)) for ext in self.extensions}
        plan = NinjaPlan(build, torch, pybind11, compiler, version=self.distribution.get_version())
        (build / "build.ninja").write_text(plan.text(list(outputs)))
        jobs = ["-j", os.environ["MAX_JOBS"]] if "MAX_JOBS" in os.environ else []  # as torch's own builder reads it
        if subprocess.run([str(ninja), "-C", str(build), *jobs], check=False).returncode:
            fail(f"the extension did not compile: see the first error above (compiler: {compiler}).")
        for capability, output in outputs.items():
            output.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(build / module_name(capability), output)


def module_name(capability):
    """Return the file name of one capability's module."""
    return f"_C_{capability}{sysconfig.get_config_var('EXT_SUFFIX')}"


def rule(name, command, compiles=True):
    """Return a ninja rule; one that compiles tracks the headers it read."""
    depfile = "\n  depfile = $out.d\n  deps = gcc" if compiles else ""
    return f"rule {name}\n  description = {name} $out\n  command = {command}{depfile}"


class NinjaPlan:
    """What to compile with which flags, as the text of a build.ninja."""

    def __init__(self, build, torch, pybind11, compiler, version):
        self.build, self.torch, self.version = build, torch, version
        self.csrc = ROOT / "csrc"
        self.nvcc, self.cuda_reason = choose_cuda(torch)
        banner = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
        self.precompiles = "clang" not in banner.lower()  # g++ finds a .gch by itself; clang would need other flags
        self.lines = self.rules(compiler, pybind11)

    def rules(self, compiler, pybind11):
        """Return the compile and link rules."""
        from torch.utils import cpp_extension

        includes = cpp_extension.include_paths("cpu")
        if self.nvcc:
            includes.append(str(cuda_toolkit(self.nvcc) / "include"))
        system = " ".join(
            f"-isystem {path}" for path in (*includes, pybind11.get_include(), sysconfig.get_path("include"))
        )
        flags = f"-std=c++20 -O3 -fPIC -fopenmp -fvisibility=hidden -Wall -Wno-unknown-pragmas -I{self.csrc}"
        if self.precompiles:
            # g++ 12 takes its own AVX-512 intrinsics for uses of uninitialised variables.
            flags = f"-I{self.build}/pch {flags} -Wno-maybe-uninitialized"
        compile_one = f"{compiler} -MMD -MF $out.d {flags}"
        rules = [
            rule("cxx", f"{compile_one} {system} $defines -c $in -o $out"),
            rule("kernel", f"{compile_one} -isystem {includes[0]} $capability -c $in -o $out"),
            rule("precompile", f"{compile_one} {system} $defines -w -x c++-header $in -o $out"),
            rule("link", f"{compiler} -shared $in -o $out {self.libraries()}", compiles=False),
        ]
        if self.nvcc:
            archs = " ".join(cuda_arch_flags(self.torch))
            rules.append(
                rule("nvcc", f"{self.nvcc} -std=c++17 -O3 -Xcompiler -fPIC,-fvisibility=hidden -I{self.csrc} {archs} "
                     "-MD -MF $out.d -c $in -o $out")
            )  # fmt: skip
        return rules

    def libraries(self):
        """Return the linker's flags."""
        torch_lib = Path(self.torch.__file__).parent / "lib"
        # One OpenMP runtime in the process: torch's own, where it bundles one. Two would each keep a pool of threads
        # spinning on the same cores.
        bundled = sorted(torch_lib.glob("libgomp*.so*"))
        flags = f"-L{torch_lib} -ltorch -ltorch_cpu -lc10 {bundled[0] if bundled else '-lgomp'}"
        if self.nvcc:
            toolkit = cuda_toolkit(self.nvcc)
            flags += f" -ltorch_cuda -lc10_cuda -L{toolkit}/lib64 -L{toolkit}/lib -lcudart"
        return flags

    def compile_all(self, folder, rule_name, suffix="", pattern="*.cpp", after="", **variables):
        """Plan every source of a folder; return the objects."""
        objects = []
        for source in sorted((self.csrc / folder).glob(pattern)):
            objects.append(str(self.build / f"{folder.replace('/', '_')}_{source.stem}{suffix}.o"))
            self.add(objects[-1], rule_name, f"{source}{after}", **variables)
        return objects

    @functools.cache  # noqa: B019, a plan lives as long as the build
    def kernels(self, capability):
        """Plan the CPU kernels of a capability, once; return the objects."""
        base, patterns = EXTENDS.get(capability, (None, ("*.cpp",)))
        objects = []
        for pattern in patterns:
            objects += self.compile_all("cpu", "kernel", f".{capability}", pattern, capability=CAPABILITIES[capability])
        if base:
            own = {Path(item).name.removesuffix(f".{capability}.o") for item in objects}
            objects += [item for item in self.kernels(base) if Path(item).name.removesuffix(f".{base}.o") not in own]
        return objects

    def add(self, target, rule_name, inputs, **variables):
        """Plan one target."""
        settings = "".join(f"\n  {name} = {value}" for name, value in variables.items())
        self.lines.append(f"build {target}: {rule_name} {inputs}{settings}")

    def text(self, capabilities):
        """Return the whole build.ninja for these capabilities."""
        header = f"{self.build}/pch/ops/op.h.gch"
        if self.precompiles:
            self.add(header, "precompile", self.csrc / "ops" / "op.h")
        after = f" | {header}" if self.precompiles else ""
        shared = self.compile_all("ops", "cxx", after=after)
        shared += self.compile_all("common", "cxx")
        if self.nvcc:
            shared += self.compile_all("ops/cuda", "cxx", after=after)
            shared += self.compile_all("cuda", "nvcc", ".cuda", "*.cu")
        (self.build / "build_facts.h").write_text(self.facts())
        for capability in capabilities:
            objects = [*self.kernels(capability), f"{self.build}/bindings.{capability}.o"]
            defines = f"-I{self.build} -DFASTLLM_MODULE=_C_{capability} -DFASTLLM_CAPABILITY={capability}"
            if self.nvcc:
                defines += " -DFASTLLM_WITH_CUDA"
            self.add(objects[-1], "cxx", self.csrc / "bindings.cpp", defines=defines)
            self.add(self.build / module_name(capability), "link", " ".join([*shared, *objects]))
        return "\n".join(self.lines) + "\n"

    def facts(self):
        """Return a header of what bindings.cpp tells about this build; on a command line, shells eat the quotes."""
        facts = {"VERSION": self.version, "TORCH_VERSION": self.torch.__version__, "CUDA_REASON": self.cuda_reason}
        return "".join(f"#define FASTLLM_{name} {json.dumps(text)}\n" for name, text in facts.items())


if "dist_info" in sys.argv:  # pip asks for this first, and would download torch before it builds
    require_tools()

setup(
    ext_modules=[Extension(f"fastllm._C_{capability}", sources=[]) for capability in choose_capabilities()],
    cmdclass={"build_ext": BuildNative},
)
