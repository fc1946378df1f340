"""Faults of what runs on CPUs with AMX alone."""

from tests.mutants.mutant import Mutant

MUTANTS = [
    Mutant("bfloat16 gemm: blocks of K overwrite instead of adding", "csrc/cpu/bfloat16_gemm.cpp",
           "k == 0 ? amx::zero_sums<kA, kB>()", "true ? amx::zero_sums<kA, kB>()", "ops/test_linear.py"),
    Mutant("bfloat16 gemm: the bias is forgotten", "csrc/cpu/bfloat16_gemm.cpp",
           "if (options.bias) add", "if (false) add", "ops/test_linear.py"),
    Mutant("bfloat16 gemm: row sums forget earlier blocks", "csrc/cpu/bfloat16_gemm.cpp",
           "k > 0 || product.options.accumulate,", "product.options.accumulate,", "ops/test_linear.py"),
    Mutant("bfloat16 gemm: packed rows of another block are taken for held ones", "csrc/cpu/bfloat16_gemm.cpp",
           "held.pass == pass && held.row == i0", "held.pass == pass", "ops/test_linear.py"),
    Mutant("amx: what stands beside a row is read as a part of it", "csrc/cpu/amx.h",
           "i < rows ? _mm512_maskz_loadu_epi16(mask,", "i < rows ? _mm512_maskz_loadu_epi16(~0u,",
           "ops/test_linear.py"),
    Mutant("bfloat16 attention: scores are not scaled", "csrc/cpu/bfloat16_attention.cpp",
           "const V factor(scale);", "const V factor(1.0f);", "ops/test_attention.py"),
    Mutant("bfloat16 attention: keys' gradient misses the scale", "csrc/cpu/bfloat16_attention.cpp",
           "store_transposed(w.dkt, a.d, rows, a.scale,", "store_transposed(w.dkt, a.d, rows, 1.0f,",
           "ops/test_attention.py"),
    Mutant("bfloat16 attention: columns that a strip skips keep what was there", "csrc/cpu/bfloat16_attention.cpp",
           "const bool computed = strip.columns.begin <= j && j < strip.columns.end;", "const bool computed = true;",
           "ops/test_attention.py"),
]  # fmt: skip
