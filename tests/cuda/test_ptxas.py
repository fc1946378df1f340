"""What nvcc makes of the kernels: each .cu compiles alone, spills no register and keeps to its number of instances.

Needs nvcc, no GPU. A file is compiled once for every state of csrc; the reports lie under build/ptxas.
"""

import hashlib
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest

CSRC = Path(__file__).parents[2] / "csrc"
REPORTS = CSRC.parent / "build" / "ptxas"
NVCC = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
COMPILE = (str(NVCC), "-std=c++17", "-O3", f"-I{CSRC}")
ARCHITECTURES = ("80", "90")
MAX_INSTANCES = 12  # kernels of a file: each dtype, width or direction more makes every build longer
# Resident threads of a multiprocessor share 65,536 registers. Kernels that wait for memory want half of the 2,048
# threads there at least: 64 registers each. A kernel that takes more stands here, with its reason.
MAX_REGISTERS = 64
MORE_REGISTERS: dict[str, tuple[int, str]] = {
    "20norm_backward_kernel": (128, "sums of three parameters, 16 columns each; it has 512 threads at most"),
    # Arithmetic bounds these: sums of whole tiles in registers, two blocks of 128 threads a multiprocessor.
    "attention_forward_kernel": (255, "its rows' output and scores"),
    "attention_backward_queries_kernel": (255, "its rows' gradient, scores and their gradients"),
    "attention_backward_keys_kernel": (255, "two gradients, scores and their gradients"),
    "attention_backward_mask_kernel": (200, "scores, their gradients and their sum"),
    "25norm_backward_long_kernel": (128, "the next row on its way beside the one at hand; it has 512 threads"),
    "12split_kernel": (128, "sums of 4 queries, 8 columns each, and 128 bytes of keys and values under way a thread"),
}
STORE_OF_A_WORD = r"st\.global\.(?:[bfu]32|v2\.[bu]16)\s+\[(%rd\d+)(?:\+(\d+))?\]"
# Of memory that is global or shared, whichever: slower than either, and waits for both.
GENERIC_ACCESS = r"\b(?:ld|st)\.(?:volatile\.)?(?:v[24]\.)?[bfsu]\d+\s"
MAX_STATIC_SHARED = 0  # kernels use dynamic shared memory alone: csrc/cuda/shared.h

pytestmark = pytest.mark.skipif(NVCC is None, reason="nvcc was not found on PATH or under /usr/local/cuda")


@dataclass
class Kernel:
    """One template instance as ptxas reports it for one architecture."""

    name: str
    registers: int
    spilled_bytes: int
    shared_bytes: int


def compiled(source: Path) -> tuple[str, str]:
    """Return ptxas' report on one file for all architectures, and the PTX of the last one."""
    headers = sorted([*CSRC.glob("cuda/*.h"), *CSRC.glob("common/*.h")])
    state = hashlib.sha256(b"".join(path.read_bytes() for path in [source, *headers])).hexdigest()[:16]
    report, code = (REPORTS / f"{source.stem}-{state}.{kind}" for kind in ("txt", "ptx"))
    if not (report.exists() and code.exists()):
        targets = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in ARCHITECTURES]
        with tempfile.TemporaryDirectory() as folder:  # what nvcc makes on the way is kept there: the PTX is
            options = ["-Xptxas=-v", "-Werror=all-warnings", "--threads=0", "--keep", f"--keep-dir={folder}"]
            run = subprocess.run(
                [*COMPILE, *targets, *options, "-c", str(source), "-o", f"{folder}/kernels.o"],
                capture_output=True, text=True, check=False,
            )  # fmt: skip
            assert run.returncode == 0, run.stderr
            REPORTS.mkdir(parents=True, exist_ok=True)
            shutil.copy(f"{folder}/{source.stem}.compute_{ARCHITECTURES[-1]}.ptx", code)
        report.write_text(run.stdout + run.stderr, encoding="utf-8")
    return report.read_text(encoding="utf-8"), code.read_text(encoding="utf-8")


def split_stores(code: str) -> list[str]:
    """Return the kernels that store four words one after another to global memory where one store would do."""
    found = []
    for kernel in re.split(r"(?=\.entry )", code)[1:]:
        offsets: dict[str, set[int]] = {}
        for register, offset in re.findall(STORE_OF_A_WORD, kernel):
            offsets.setdefault(register, set()).add(int(offset or 0))
        if any({0, 4, 8, 12} <= set_of for set_of in offsets.values()):
            found.append(kernel.split("(")[0])
    return found


def kernels(report: str) -> dict[str, list[Kernel]]:
    """Return the kernels of a report by architecture."""
    found: dict[str, list[Kernel]] = {}
    entry = re.compile(
        r"Compiling entry function '(\w+)' for 'sm_(\w+)'(.*?)(?=Compiling entry function|\Z)", re.DOTALL
    )
    for name, arch, text in entry.findall(report):
        spills = sum(int(n) for n in re.findall(r"(\d+) bytes spill (?:stores|loads)", text))
        (registers,) = re.findall(r"Used (\d+) registers", text)
        shared = re.findall(r"(\d+) bytes smem", text)
        found.setdefault(arch, []).append(Kernel(name, int(registers), spills, int(shared[0]) if shared else 0))
    return found


def check_report(report: str) -> None:
    """Assert the bounds of instances, registers and shared memory, and that nothing is spilled."""
    found = kernels(report)
    assert set(found) == set(ARCHITECTURES)
    for arch, instances in found.items():
        assert 1 <= len(instances) <= MAX_INSTANCES, f"sm_{arch}: {len(instances)} instances"
        for kernel in instances:
            allowed = next((n for part, (n, _) in MORE_REGISTERS.items() if part in kernel.name), MAX_REGISTERS)
            assert kernel.spilled_bytes == 0, f"sm_{arch}: {kernel}"
            assert kernel.registers <= allowed, f"sm_{arch}: {kernel}"
            assert kernel.shared_bytes <= MAX_STATIC_SHARED, f"sm_{arch}: {kernel}"


# One test a file, so that of several processes only one compiles it.
@pytest.mark.parametrize("source", sorted(CSRC.glob("cuda/*.cu")), ids=lambda path: path.stem)
def test_registers_stores_and_memory(source):
    report, code = compiled(source)
    check_report(report)
    assert ".entry " in code
    assert split_stores(code) == []
    assert re.findall(GENERIC_ACCESS, code) == []


def test_split_stores_are_found():
    store = "st.global.f32 \t[%rd1{}], %f1;\n"
    whole = ".entry whole(.param)\nst.global.v4.b32 [%rd1], {%r1, %r2, %r3, %r4};\n"
    split = ".entry split(.param)\n" + "".join(store.format(o) for o in ("", "+4", "+8", "+12"))
    assert split_stores(whole + split) == [".entry split"]


def test_generic_accesses_are_found():
    code = "ld.global.f32 %f1, [%rd1];\nst.shared.v4.f32 [%r1], {%f1};\nld.f32 %f1, [%rd1];\nst.v2.b32 [%rd1], {%r1};\n"
    assert re.findall(GENERIC_ACCESS, code) == ["ld.f32 ", "st.v2.b32 "]


def test_a_report_is_read_right():
    report = """
ptxas info    : Compiling entry function '_Z1av' for 'sm_80'
ptxas info    : Function properties for _Z1av
    8 bytes stack frame, 12 bytes spill stores, 4 bytes spill loads
ptxas info    : Used 70 registers, used 1 barriers, 1024 bytes smem
ptxas info    : Compiling entry function '_Z1bv' for 'sm_90'
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 19 registers, used 0 barriers
"""
    assert kernels(report) == {"80": [Kernel("_Z1av", 70, 16, 1024)], "90": [Kernel("_Z1bv", 19, 0, 0)]}
