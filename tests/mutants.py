"""Break each kernel on purpose and see its tests fail: python -m tests.mutants [NAME...] (make mutants).

A mutant is one wrong expression in a copy of the sources. The copy is rebuilt and the tests named beside the mutant are
run there; a mutant that they let pass is reported, and the exit status is 1. It takes a quarter of an hour.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
COPIED = ("setup.py", "pyproject.toml", "README.md", "LICENSE", "csrc", "fastllm", "tests")


@dataclass
class Mutant:
    """One fault: in `file`, `right` (which occurs once) becomes `wrong`; `tests` must notice."""

    name: str
    file: str
    right: str
    wrong: str
    tests: str


MUTANTS = [
    Mutant("gelu: derivative without its density", "csrc/cpu/gelu.cpp",
           "return fmadd(x, n.pdf, n.cdf);", "return n.cdf;", "ops/test_gelu.py"),
    Mutant("gelu: the last, partial vector is not stored", "csrc/cpu/simd.h",
           "for (int64_t i = 0; i < count; ++i) p[i] = static_cast<T>(lanes[i]);", "(void)p;", "ops/test_gelu.py"),
    Mutant("gemm: blocks of K overwrite instead of adding", "csrc/cpu/gemm.cpp",
           "const bool add = options.accumulate || k > 0;", "const bool add = options.accumulate;",
           "ops/test_linear.py"),
    Mutant("gemm: the bias is added with every block of K", "csrc/cpu/gemm.cpp",
           "k == 0 && options.bias ?", "options.bias ?", "ops/test_linear.py"),
    Mutant("gemm: row sums forget earlier blocks", "csrc/cpu/gemm.cpp",
           "add_sums ? sums[i0 + i + lane] + lanes[lane]", "false ? lanes[lane]", "ops/test_linear.py"),
    Mutant("layer_norm: no eps", "csrc/cpu/norm.cpp",
           "/ count + static_cast<C>(a.eps));", "/ count);", "ops/test_norm.py"),
    Mutant("layer_norm: the gradient misses its mean", "csrc/cpu/norm.cpp",
           "g - mean_g - xhat * mean_gx", "g - xhat * mean_gx", "ops/test_norm.py"),
    Mutant("dropout_add_layer_norm: backward forgets the mask", "csrc/cpu/norm.cpp",
           "if (keep) d = d * load(keep + c);", "", "ops/test_dropout.py ops/test_norm.py"),
    Mutant("sums over rows depend on the number of threads", "csrc/cpu/row_blocks.h",
           "ceil_div(rows, 64)});", "ceil_div(rows, 16 * max_threads())});", "ops/test_norm.py"),
    Mutant("softmax: the maximum is not subtracted", "csrc/cpu/softmax.cpp",
           "const Vec<T> maximum(max_lanes(lanes));", "const Vec<T> maximum(max_lanes(lanes) * 0);",
           "ops/test_softmax.py"),
    Mutant("softmax: backward without its mean", "csrc/cpu/softmax.cpp",
           "store(dx + c, load(out + c) * (load(grad + c) - mean));", "store(dx + c, load(out + c) * load(grad + c));",
           "ops/test_softmax.py"),
    Mutant("dropout: the threshold is off by one", "csrc/cpu/dropout_mask.h",
           "static_cast<int32_t>(bits[i]) >= threshold", "static_cast<int32_t>(bits[i]) > threshold",
           "ops/test_dropout.py"),
    Mutant("swiglu: the gate's slope is its sigmoid", "csrc/cpu/swiglu.cpp",
           "at::vec::fmadd(g, one - s, one));", "one);", "ops/test_swiglu.py"),
    Mutant("swiglu: rows of a view are taken to follow each other", "csrc/ops/rows.h",
           "if (stride && t.stride(dim) != expected) return std::nullopt;", "", "ops/test_swiglu.py"),
    Mutant("rotary_embedding: backward turns on instead of back", "csrc/ops/rotary_embedding.cpp",
           '!data["inverse"].toBool()', 'data["inverse"].toBool()', "ops/test_rotary_embedding.py"),
    Mutant("rotary_embedding: what does not turn is not copied", "csrc/cpu/rotary_embedding.cpp",
           "std::copy(in + 2 * r.pairs, in + r.head_dim, out + 2 * r.pairs);", "", "ops/test_rotary_embedding.py"),
    Mutant("rotary_embedding: positions are those of the first sequence", "csrc/common/rotary.h",
           "positions[b * position_strides[0] +", "positions[", "ops/test_rotary_embedding.py"),
    Mutant("elementwise on CUDA: the end of an odd array is left out", "csrc/cuda/strips.h",
           "return error != cudaSuccess || strips.count == count ? error", "return true ? error", "ops/test_gelu.py"),
    Mutant("elementwise on CUDA: sums are read before all are there", "csrc/cuda/strips.h",
           "      __syncthreads();\n      if (threadIdx.y < half) {", "      if (threadIdx.y < half) {",
           "ops/test_gelu.py"),
    Mutant("elementwise on CUDA: wide accesses to unaligned arrays", "csrc/cuda/strips.h",
           "&& (is_aligned(pointers) && ...)", "", "ops/test_gelu.py"),
    Mutant("dropout on CUDA: rows after the first are the first", "csrc/cuda/dropout_add.cu",
           "    packed_x = next_x;", "", "ops/test_dropout.py"),
    Mutant("swiglu on CUDA: strides are taken for even", "csrc/cuda/swiglu.cu",
           "p.cols | p.gate_stride | p.up_stride | p.grad_stride", "p.cols", "ops/test_swiglu.py"),
    Mutant("rotary_embedding on CUDA: the last heads are four", "csrc/cuda/rotary_embedding.cu",
           "heads - head < kHeads ? static_cast<int>(heads - head) : kHeads", "kHeads", "ops/test_rotary_embedding.py"),
    Mutant("philox: nine rounds", "csrc/common/philox.h", "kRounds = 10", "kRounds = 9", "ops/test_dropout.py"),
    Mutant("embedding: padding gets a gradient", "csrc/cpu/embedding.cpp",
           "if (v == padding || first[v] == first[v + 1])", "if (first[v] == first[v + 1])", "ops/test_embedding.py"),
    Mutant("embedding: the position's gradient ignores the offset", "csrc/cpu/embedding.cpp",
           "const int64_t t = p - offset;", "const int64_t t = p;", "ops/test_embedding.py"),
    Mutant("cross_entropy: an ignored row gets a gradient", "csrc/cpu/cross_entropy.cpp",
           "std::fill(out, out + in.classes, T(0));", "std::fill(out, out + in.classes, T(1));",
           "ops/test_cross_entropy.py"),
    Mutant("cross_entropy: smoothing over V - 1 classes", "csrc/cpu/cross_entropy.cpp",
           "const C uniform = in.label_smoothing / static_cast<C>(in.classes);\n  const C on_target",
           "const C uniform = in.label_smoothing / static_cast<C>(in.classes - 1);\n  const C on_target",
           "ops/test_cross_entropy.py"),
    Mutant("linear_cross_entropy: gradients wait for a float16 scaler in float16", "csrc/ops/linear_cross_entropy.cpp",
           "result.grad_input.to(kept),", "result.grad_input.to(input.scalar_type()).to(kept),",
           "ops/test_cross_entropy.py"),
    Mutant("linear_cross_entropy: chunks overwrite the weight's gradient", "csrc/ops/linear_cross_entropy.cpp",
           "options.accumulate = !first;", "options.accumulate = false;", "ops/test_cross_entropy.py"),
    Mutant("attention: a query sees one key too many", "csrc/cpu/attention_tile.h",
           "begin = position - a.left, end = position + rows + a.right;",
           "begin = position - a.left, end = position + rows + a.right + 1;",
           "ops/test_attention.py"),
    Mutant("attention: a new maximum does not correct the sum", "csrc/cpu/attention_forward.cpp",
           "sums[i] = sums[i] * correction + sum_lanes(sum);", "sums[i] = sums[i] + sum_lanes(sum);",
           "ops/test_attention.py"),
    Mutant("attention: backward forgets dropout", "csrc/cpu/attention_backward.cpp",
           "(probability * (V::loadu(ds + j) * multiplier - mean))", "(probability * (V::loadu(ds + j) - mean))",
           "ops/test_attention.py"),
    Mutant("attention: the learned mask's gradient is overwritten", "csrc/cpu/attention_backward.cpp",
           "mask[j * s[3]] += ds[j];", "mask[j * s[3]] = ds[j];", "ops/test_attention.py"),
    Mutant("attention: backward ignores the soft cap's slope", "csrc/cpu/attention_backward.cpp",
           "(V::loadu(ds + j) * V::loadu(slopes + j)).store(ds + j);", "(void)slopes;", "ops/test_attention.py"),
    Mutant("attention: ALiBi rewards distance", "csrc/cpu/attention_tile.h",
           "row[j] -= slope", "row[j] += slope", "ops/test_attention.py"),
    Mutant("attention: a row that sees nothing divides by zero", "csrc/cpu/attention_forward.cpp",
           "const bool empty = sums[i] == C(0);", "const bool empty = false;", "ops/test_attention.py"),
    Mutant("attention: split keys are added once too few", "csrc/cpu/attention_backward.cpp",
           "for (int64_t split = 1; split < splits; ++split)", "for (int64_t split = 2; split < splits; ++split)",
           "ops/test_attention.py"),
    Mutant("attention: keys before a segment are seen", "csrc/cpu/attention_tile.h",
           "begin = std::max(begin, runs[0].begin - at.key);", "", "ops/test_attention_segments.py"),
    Mutant("decode_attention: a query does not see itself", "csrc/cpu/decode_attention.cpp",
           "std::max<int64_t>(0, position + 1)};", "std::max<int64_t>(0, position)};", "ops/test_decode_attention.py"),
    Mutant("decode_attention: splits are added without their maxima", "csrc/cpu/decode_attention.cpp",
           "const C scaled = factor(partial);", "const C scaled = C(1);", "ops/test_decode_attention.py"),
    Mutant("AdamW: the second moment is not corrected", "csrc/cpu/adamw.cpp",
           "std::sqrt(1.0 - std::pow(o.beta2, t.step));", "1.0;", "test_optim.py"),
    Mutant("AdamW: clipping is ignored", "csrc/cpu/adamw.cpp",
           "o.maximize ? -o.gradient_scale : o.gradient_scale", "o.maximize ? -1.0 : 1.0", "test_optim.py"),
    Mutant("norms on CUDA: a long row's variance is its last chunk's", "csrc/cuda/norm_forward.cu",
           "if (group.chunks > 1) read_again(chunk);\n    group.for_each<kVectors>(chunk,",
           "group.for_each<kVectors>(chunk,", "ops/test_norm.py"),
    Mutant("norms on CUDA: partial results are overwritten while others read them", "csrc/cuda/norm_backward.cu",
           "row += step, turn ^= 1", "row += step, turn ^= 0", "ops/test_norm.py"),
    Mutant("norms on CUDA: a block's groups of rows are not added", "csrc/cuda/norm_backward.cu",
           "g < group.count(); ++g", "g < 1; ++g", "ops/test_norm.py"),
    Mutant("norms on CUDA: the input bias of long rows gets nothing", "csrc/cuda/norm_backward_long.cu",
           "add_to(sums[2], v * kWidth, gradient);", "", "ops/test_norm.py"),
    Mutant("softmax on CUDA: threads that see only -inf", "csrc/cuda/online_softmax.h",
           "value == -INFINITY ? 0.0f : expf", "expf", "ops/test_softmax.py"),
    Mutant("softmax on CUDA: columns take others' sums", "csrc/cuda/strided_softmax.cu",
           "first = warp() & ~(warps - 1);", "first = 0;", "ops/test_softmax.py"),
    Mutant("cuda embedding: a position too far", "csrc/cuda/embedding.cu",
           "(offset + (t + row) % length)", "(offset + (t + row + 1) % length)", "ops/test_embedding.py"),
    Mutant("cuda embedding: tokens outside the table read what is there", "csrc/cuda/embedding.cu",
           "if (token >= 0 && token < vocabulary) {", "if (token >= 0) {", "ops/test_embedding.py"),
    Mutant("cuda embedding: padding gets a gradient", "csrc/cuda/embedding.cu",
           " && token != p.padding;", ";", "ops/test_embedding.py"),
    Mutant("cuda embedding: a cut run's first part is taken for a whole one", "csrc/cuda/embedding_backward.cu",
           "if (begins_here && ends) {", "if (begins_here) {", "ops/test_embedding.py"),
    Mutant("cuda embedding: a run of several pieces forgets its later parts", "csrc/cuda/embedding_backward.cu",
           "i += kRows) {", "i += pieces) {", "ops/test_embedding.py"),
    Mutant("cuda embedding: each piece of a long run writes it", "csrc/cuda/embedding_backward.cu",
           "if (begin > 0 && p.keys[begin - 1] == key) return;", "", "ops/test_embedding.py"),
    Mutant("cuda embedding: rows of threads are not waited for", "csrc/cuda/embedding_backward.cu",
           "shared->sum[row][lane] = sum;\n  __syncthreads();", "shared->sum[row][lane] = sum;",
           "ops/test_embedding.py"),
    Mutant("cuda embedding: positions lose a warp", "csrc/cuda/position_backward.cu",
           "for (int w = 1; w < kWarps; ++w)", "for (int w = 1; w < kWarps - 1; ++w)", "ops/test_embedding.py"),
    Mutant("cuda cross_entropy: the sum keeps its old maximum", "csrc/cuda/cross_entropy.cu",
           "if (next != maximum) sum *= expf(maximum - shift);", "", "ops/test_cross_entropy.py"),
    Mutant("cuda cross_entropy: threads are not brought to one maximum", "csrc/cuda/cross_entropy.cu",
           "(sum * expf(maximum - shift));", "(sum);", "ops/test_cross_entropy.py"),
    Mutant("cuda cross_entropy: rows of -inf give NaN shifts", "csrc/cuda/cross_entropy.cu",
           "const float shift = next == -INFINITY ? 0.0f : next;", "const float shift = next;",
           "ops/test_cross_entropy.py"),
    Mutant("cuda cross_entropy: elements before the first border are left out", "csrc/cuda/cross_entropy.cu",
           "for (int i = thread; i < columns.head; i += kRowThreads) one(i);", "", "ops/test_cross_entropy.py"),
    Mutant("cuda cross_entropy: the gradient's borders are taken for the row's", "csrc/cuda/cross_entropy.cu",
           "const bool aligned = reinterpret_cast<uintptr_t>(row) % 16 == reinterpret_cast<uintptr_t>(to) % 16;",
           "const bool aligned = true;", "ops/test_cross_entropy.py"),
    Mutant("cuda cross_entropy: uniform smoothing forgets the class weights", "csrc/cuda/cross_entropy.cu",
           "dx[k] -= in.weight ? terms.uniform * in.weight[column + k] : terms.uniform;", "dx[k] -= terms.uniform;",
           "ops/test_cross_entropy.py"),
    Mutant("cuda cross_entropy: a wrong target counts as ignored", "csrc/cuda/cross_entropy.cu",
           "const float value = ignored ? 0.0f : NAN;", "const float value = 0.0f;", "ops/test_cross_entropy.py"),
    Mutant("cuda cross_entropy: a mean over all rows", "csrc/cuda/cross_entropy_reduce.cu",
           "if (target == p.ignore_index || target < 0", "if (target != p.ignore_index && target < 0",
           "ops/test_cross_entropy.py"),
    Mutant("cuda cross_entropy: the last piece of losses is left out", "csrc/cuda/cross_entropy_reduce.cu",
           "i < pieces; i += kThreads", "i < pieces - 1; i += kThreads", "ops/test_cross_entropy.py"),
    Mutant("cuda linear_cross_entropy: a chunk overwrites the weight's gradient",
           "csrc/ops/cuda/linear_cross_entropy.cpp", "first ? 0 : 1);", "0);", "ops/test_cross_entropy.py"),
    Mutant("cuda linear_cross_entropy: float16 scales before it can", "csrc/ops/cuda/linear_cross_entropy.cpp",
           "const bool scale_last = scale.defined() && input.scalar_type() == at::kHalf;",
           "const bool scale_last = false;", "ops/test_cross_entropy.py"),
    Mutant("cuda adamw: no bias correction of the second moment", "csrc/cuda/adamw.cu",
           "1.0f / sqrtf(-expm1f(step * o.log_beta2));", "1.0f;", "test_optim.py"),
    Mutant("cuda adamw: steps are not counted", "csrc/cuda/adamw.cu",
           "*list.step[threadIdx.x] += 1.0f;", ";", "test_optim.py"),
    Mutant("cuda adamw: every chunk is the first", "csrc/cuda/adamw.cu",
           "(blockIdx.x - list.blocks.first[tensor]) * kChunk;", "0 * kChunk;", "test_optim.py"),
    Mutant("cuda adamw: what fills no vector is left out", "csrc/cuda/adamw.cu",
           "for (int i = whole + threadIdx.x; i < count; i += kThreads) {",
           "for (int i = count + threadIdx.x; i < count; i += kThreads) {", "test_optim.py"),
    Mutant("cuda adamw: nothing is clipped", "csrc/cuda/adamw.cu",
           "scale = norm <= o.max_norm ? 1.0f : o.max_norm / norm;", "scale = 1.0f;", "test_optim.py"),
    Mutant("cuda grad_norm: a launch forgets the ones before", "csrc/cuda/adamw.cu",
           "float* own = partial + done;", "float* own = partial;", "test_optim.py"),
]  # fmt: skip


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
        built = build(copy)
        failed = built and not tests_pass(copy, mutant.tests)
    finally:
        path.write_text(right, encoding="utf-8")
    verdict = "noticed" if failed else "SURVIVED" if built else "NO BUILD"
    print(f"{verdict:9} {mutant.name}", flush=True)
    return failed


def build(copy: Path) -> bool:
    environment = {**os.environ, "FASTLLM_CUDA": "0", "FASTLLM_CAPABILITIES": "native"}
    command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
    return subprocess.run(command, cwd=copy, env=environment, capture_output=True, check=False).returncode == 0


def tests_pass(copy: Path, tests: str) -> bool:
    paths = [f"tests/{test}" for test in tests.split()]
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-m", "not slow", *paths]
    run = subprocess.run(command, cwd=copy, capture_output=True, text=True, check=False)
    if run.returncode not in (0, 1):  # 1: tests failed; anything else is no verdict
        sys.exit(f"mutants: {' '.join(paths)} could not run:\n{run.stdout}{run.stderr}")
    return run.returncode == 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
