"""Loads the compiled extension: picks the build for this machine's CPU, so that torch.ops.fastllm.* exist.

One extension module per CPU capability is built from the same sources. The best one that both the CPU and the build
have is imported; FASTLLM_CPU_CAPABILITY=default|avx2|avx512|amx forces one.
"""

import importlib
import importlib.util
import os
from types import ModuleType

import torch

from fastllm.errors import UserImportError

CAPABILITIES = ("amx", "avx512", "avx2", "default")  # best first
VARIABLE = "FASTLLM_CPU_CAPABILITY"


def _supported() -> tuple[str, ...]:
    """Return the capabilities this CPU can run, best first."""
    # Not torch.backends.cpu.get_cpu_capability(): that obeys ATEN_CPU_CAPABILITY, which is about torch's own kernels.
    # The kernel must be asked for AMX's tiles, once a process: _init_amx does, and tells what it answered.
    if torch.cpu._is_amx_tile_supported() and torch.cpu._is_avx512_bf16_supported() and torch.cpu._init_amx():
        return CAPABILITIES
    if torch.cpu._is_avx512_supported():
        return CAPABILITIES[1:]
    if torch.cpu._is_avx2_supported():
        return CAPABILITIES[2:]
    return CAPABILITIES[3:]


def _built() -> tuple[str, ...]:
    """Return the capabilities that were compiled, best first."""
    return tuple(c for c in CAPABILITIES if importlib.util.find_spec(f"fastllm._C_{c}") is not None)


def _choose() -> tuple[str, str]:
    """Return the capability to load and why."""
    built, supported = _built(), _supported()
    if not built:
        raise UserImportError(
            "fastllm's compiled extension is missing: in a source checkout run `make setup` or "
            "`pip install --no-build-isolation -e .`"
        )
    forced = os.environ.get(VARIABLE)
    if forced is None:
        for capability in supported:
            if capability in built:
                return capability, f"the best of what this CPU runs ({', '.join(supported)}) and the build has"
        raise UserImportError(
            f"fastllm was built for {', '.join(built)}, which this CPU does not run (it runs {', '.join(supported)}): "
            "build it again on this machine"
        )
    if forced not in CAPABILITIES:
        raise UserImportError(f"{VARIABLE}: expected one of {', '.join(CAPABILITIES)}, got '{forced}'")
    if forced not in built:
        raise UserImportError(f"{VARIABLE}={forced}, but the extension was built for {', '.join(built)} only")
    if forced not in supported:
        raise UserImportError(f"{VARIABLE}={forced}, but this CPU only runs {', '.join(supported)}")
    return forced, f"forced by {VARIABLE}"


def _load() -> tuple[ModuleType, str]:
    capability, why = _choose()
    try:
        module = importlib.import_module(f"fastllm._C_{capability}")
    except ImportError as error:
        raise UserImportError(
            f"fastllm's extension does not load with torch {torch.__version__}; it was probably built for another "
            f"torch. Build it again: pip install --no-build-isolation --force-reinstall --no-deps <fastllm> ({error})"
        ) from error
    return module, why


extension, capability_reason = _load()
