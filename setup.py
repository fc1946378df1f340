"""Builds fastllm's extension with ninja, without torch's build isolation or its per-file overhead.

What is built: the op files (csrc/ops, csrc/common) once, the CPU kernels (csrc/cpu) once per CPU capability, the CUDA
kernels (csrc/cuda) if torch has CUDA and nvcc is there. Then one extension module per capability links the op objects
with that capability's kernels, and fastllm imports the best one the machine can run.

Environment: FASTLLM_CUDA=0|1 forces CUDA off or on, FASTLLM_CUDA_ARCHS="80 90" picks its targets,
FASTLLM_CAPABILITIES="default avx2 avx512" limits the CPU builds ("native": the host's best alone), CXX picks the compiler.
"""

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
    "-mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx2 -mfma -mf16c",
}


def fail(sentence):
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
    compiler = shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++")
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
        return ["avx512" if "avx512dq" in flags else "avx2" if "avx2" in flags else "default"]
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
    else:
        return nvcc, f"built with {nvcc} for torch's CUDA {torch.version.cuda}"
    if setting == "1":
        fail(f"FASTLLM_CUDA=1 asks for the CUDA kernels, but {reason}.")
    return None, reason


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
    return flags + [f"-gencode=arch=compute_{archs[-1]},code=compute_{archs[-1]}"]


class BuildNative(build_ext):
    """Writes build.ninja for all the extension modules and runs it once."""

    def build_extensions(self):
        torch, pybind11, ninja, compiler = require_tools()
        build = Path(self.build_temp).resolve()
        build.mkdir(parents=True, exist_ok=True)
        outputs = {ext.name.rsplit("_C_", 1)[1]: Path(self.get_ext_fullpath(ext.name)) for ext in self.extensions}
        (build / "build.ninja").write_text(ninja_file(build, outputs, torch, pybind11, compiler))
        result = subprocess.run([str(ninja), "-C", str(build), *self.job_flags()], check=False)
        if result.returncode:
            fail(f"the extension did not compile: see the first error above (compiler: {compiler}).")
        for capability, output in outputs.items():
            output.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(build / module_name(capability), output)

    def job_flags(self):
        """MAX_JOBS, as torch's own extension builder reads it."""
        return ["-j", os.environ["MAX_JOBS"]] if "MAX_JOBS" in os.environ else []


def module_name(capability):
    return f"_C_{capability}{sysconfig.get_config_var('EXT_SUFFIX')}"


def cpp_string(text):
    """Quote a text as a C++ string literal inside a ninja command line."""
    return '\\"' + text.replace(" ", "\\ ") + '\\"'


def ninja_file(build, outputs, torch, pybind11, compiler):
    """Return the text of build.ninja."""
    from torch.utils import cpp_extension

    nvcc, cuda_reason = choose_cuda(torch)
    torch_includes = cpp_extension.include_paths("cuda" if nvcc else "cpu")
    system = [*torch_includes, pybind11.get_include(), sysconfig.get_path("include")]
    torch_lib = Path(torch.__file__).parent / "lib"
    # One OpenMP runtime in the process: torch's own, where it bundles one. Two would each keep a pool of threads
    # spinning on the same cores.
    bundled = sorted(torch_lib.glob("libgomp*.so*"))
    openmp = str(bundled[0]) if bundled else "-lgomp"
    libraries = f"-L{torch_lib} -ltorch -ltorch_cpu -ltorch_python -lc10 {openmp}"
    if nvcc:
        libraries += f" -lc10_cuda -ltorch_cuda -L{Path(nvcc).parent.parent / 'lib64'} -lcudart"
    version = next(
        line.split('"')[1] for line in (ROOT / "pyproject.toml").read_text().splitlines() if "version =" in line
    )
    is_gcc = "clang" not in subprocess.run([compiler, "--version"], capture_output=True, text=True).stdout.lower()
    cxx = "-std=c++20 -O3 -fPIC -fopenmp -fvisibility=hidden -Wall -Wno-unknown-pragmas"
    # g++ 12 takes its own AVX-512 intrinsics for uses of uninitialised variables.
    cxx += " -Wno-maybe-uninitialized" if is_gcc else ""
    precompiled = f"-I{build / 'pch'}" if is_gcc else ""

    lines = [
        f"cxx = {compiler}",
        f"flags = {cxx} {precompiled} -I{ROOT / 'csrc'} {' '.join(f'-isystem {path}' for path in system)}",
        f"kernel_flags = {cxx} -I{ROOT / 'csrc'} -isystem {torch_includes[0]}",
        "rule cxx\n  command = $cxx -MMD -MF $out.d $flags $defines -c $in -o $out\n  description = compile $out\n"
        "  depfile = $out.d\n  deps = gcc",
        "rule kernel\n  command = $cxx -MMD -MF $out.d $kernel_flags $capability -c $in -o $out\n"
        "  depfile = $out.d\n  deps = gcc",
        "rule pch\n  command = $cxx -MMD -MF $out.d $flags -x c++-header $in -o $out\n  depfile = $out.d\n  deps = gcc",
        f"rule link\n  command = $cxx -shared $in -o $out {libraries}",
    ]
    header = build / "pch" / "ops" / "op.h.gch"
    if is_gcc:
        lines.append(f"build {header}: pch {ROOT / 'csrc' / 'ops' / 'op.h'}")

    def compile_all(folder, rule, suffix, pattern="*.cpp", variables="", after=""):
        objects = []
        for source in sorted((ROOT / "csrc" / folder).glob(pattern)):
            target = build / f"{folder}_{source.stem}{suffix}.o"
            lines.append(f"build {target}: {rule} {source}{after}{variables}")
            objects.append(str(target))
        return objects

    defines = f"\n  defines = {'-DFASTLLM_WITH_CUDA' if nvcc else ''}"
    after_header = f" | {header}" if is_gcc else ""
    shared = compile_all("ops", "cxx", "", variables=defines, after=after_header)
    shared += compile_all("common", "cxx", "", variables=defines)
    if nvcc:
        archs = " ".join(cuda_arch_flags(torch))
        lines.append(
            f"rule nvcc\n  command = {nvcc} -std=c++17 -O3 -Xcompiler -fPIC,-fvisibility=hidden --expt-relaxed-constexpr "
            f"-I{ROOT / 'csrc'} {archs} -MD -MF $out.d -c $in -o $out\n  depfile = $out.d\n  deps = gcc"
        )
        shared += compile_all("cuda", "nvcc", ".cuda", "*.cu")
    for capability in outputs:
        kernels = compile_all(
            "cpu", "kernel", f".{capability}", variables=f"\n  capability = {CAPABILITIES[capability]}"
        )
        facts = {
            "MODULE": f"_C_{capability}",
            "VERSION": cpp_string(version),
            "CAPABILITY": cpp_string(capability),
            "TORCH_VERSION": cpp_string(torch.__version__),
            "CUDA_REASON": cpp_string(cuda_reason),
        }
        defines = " ".join(f"-DFASTLLM_{name}={value}" for name, value in facts.items())
        defines += " -DFASTLLM_WITH_CUDA" if nvcc else ""
        bindings = build / f"bindings.{capability}.o"
        lines.append(f"build {bindings}: cxx {ROOT / 'csrc' / 'bindings.cpp'}\n  defines = {defines}")
        lines.append(f"build {build / module_name(capability)}: link {' '.join([*shared, *kernels, str(bindings)])}")
    return "\n".join(lines) + "\n"


setup(
    ext_modules=[Extension(f"fastllm._C_{capability}", sources=[]) for capability in choose_capabilities()],
    cmdclass={"build_ext": BuildNative},
)
