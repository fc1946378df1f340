// C is computed in blocks of 2 x 2 tiles (cpu/amx.h), each summed along a block of the depth in tile registers. Both
// operands are copied to panels, a pair of tiles wide, that are read front to back: an operand's own rows are many
// lines apart, and what lies past its edges must count as zero, whatever is there.
//
// K is cut into blocks of at most kDepth; C's sums stand in float32 between them. So an element of C is a chain of sums
// of 32 products over K in order: no edge, task or thread changes it.
#include "cpu/bfloat16_gemm.h"

#include <atomic>
#include <stdexcept>

#include "common/parallel.h"

#ifdef FASTLLM_AMX
#include "cpu/amx.h"
#include "cpu/simd.h"
#endif

namespace fastllm {

#ifndef FASTLLM_AMX

bool has_bfloat16_gemm() {
  return false;
}

template <typename Out>
void gemm(int64_t, int64_t, int64_t, BFloat16Operand, BFloat16Operand, Out*, int64_t, const BFloat16GemmOptions&) {
  throw std::logic_error("fastllm: this build has no products of bfloat16");
}

#else

namespace {

constexpr int64_t kSide = amx::kSide;

// Twice what would keep a panel in L1 (64 KiB of 48): reading both from L2 costs less than C's sums, which go to memory
// and back once more for each block of the depth. On an Emerald Rapids 925 GFLOP/s against 775 with half of it.
constexpr int64_t kDepth = 1024;

// A task computes at most {rows, columns} of C: the first cut that gives kTasks of them, else the last. Packing B costs
// as much as about 64 rows of C in it, packing A as 25 columns; 1024 rows of a block of A are 1 MiB, half of L2.
constexpr int64_t kCuts[][2] = {{1024, 128}, {1024, 64}, {512, 64}, {256, 64}, {128, 64}, {64, 64}};
constexpr int64_t kTasks = 6;

// Packed elements of A that a thread keeps at most: 8 MiB.
constexpr int64_t kHeldElements = 4 * 1024 * 1024;

// Rows of C that are written beside each step of the product that follows.
constexpr int64_t kRowsAside = 4;

constexpr int kSumsSlot = 2;
constexpr int kPackedSlot = 3;

// Cuts `total` into the fewest blocks of at most `limit`, as even as multiples of `unit` allow; returns their size.
int64_t even_block(int64_t total, int64_t limit, int64_t unit) {
  const int64_t blocks = std::max<int64_t>(1, ceil_div(total, limit));
  return std::max(unit, round_up(ceil_div(total, blocks), unit));
}

// ---------------------------------------------------------------------------------------------------------------------
// Packing
// ---------------------------------------------------------------------------------------------------------------------

void pack_a(const BFloat16Operand& a, int64_t i0, int64_t rows, int64_t k0, int64_t depth, c10::BFloat16* out) {
  a.transposed ? amx::pack<amx::Runs::kAcross, amx::Side::kA>(a.data + k0 * a.stride + i0, a.stride, rows, depth, out)
               : amx::pack<amx::Runs::kAlong, amx::Side::kA>(a.data + i0 * a.stride + k0, a.stride, rows, depth, out);
}

void pack_b(const BFloat16Operand& b, int64_t j0, int64_t columns, int64_t k0, int64_t depth, c10::BFloat16* out) {
  b.transposed
      ? amx::pack<amx::Runs::kAlong, amx::Side::kB>(b.data + j0 * b.stride + k0, b.stride, columns, depth, out)
      : amx::pack<amx::Runs::kAcross, amx::Side::kB>(b.data + k0 * b.stride + j0, b.stride, columns, depth, out);
}

// sums[i] (+)= the sum over k of `rows` rows of a transposed A.
void add_row_sums(const BFloat16Operand& a, int64_t i0, int64_t rows, int64_t k0, int64_t depth, bool add,
                  float* sums) {
  for_each_vec<float>(rows, [&](int64_t i, auto load, auto store) {
    Vec<float> total = add ? load(sums + i) : Vec<float>(0.0f);
    const int64_t lanes = std::min(rows - i, kLanes<float>);
    const c10::BFloat16* from = a.data + k0 * a.stride + i0 + i;
    for (int64_t k = 0; k < depth; ++k, from += a.stride)
      total = total + (lanes == kLanes<float> ? vload(from) : vload_part(from, lanes));
    store(sums + i, total);
  });
}

// ---------------------------------------------------------------------------------------------------------------------
// Blocks of C
// ---------------------------------------------------------------------------------------------------------------------

template <typename Out>
struct Product {
  int64_t m, n, k;
  BFloat16Operand a, b;
  Out* c;
  int64_t c_stride;
  BFloat16GemmOptions options;
};

// A block of C whose sums, kSide x kSide, are to be written.
struct Pending {
  const float* sums = nullptr;
  int64_t i = 0, rows = 0, j = 0;
  __mmask32 columns = 0;
};

// Rows [r0, r1) of a block to C. Every instruction counts: they compete with those that load tiles.
template <typename Out>
C10_ALWAYS_INLINE void write_rows(const Product<Out>& product, const Pending& block, int64_t r0, int64_t r1) {
  const BFloat16GemmOptions& options = product.options;
  const __mmask16 lanes[2] = {static_cast<__mmask16>(block.columns), static_cast<__mmask16>(block.columns >> 16)};
  Out* to = product.c + (block.i + r0) * product.c_stride + block.j;
  for (int64_t r = r0; r < std::min(r1, block.rows); ++r, to += product.c_stride) {
    __m512 values[2];
    unroll<2>([&](auto v) { values[v] = _mm512_load_ps(block.sums + r * kSide + v * amx::kPairs); });
    const auto add = [&](auto load) { unroll<2>([&](auto v) { values[v] = _mm512_add_ps(values[v], load(v)); }); };
    if (options.bias) add([&](auto v) { return amx::widen(lanes[v], options.bias + block.j + v * amx::kPairs); });
    if constexpr (std::is_same_v<Out, float>) {
      if (options.accumulate) add([&](auto v) { return _mm512_maskz_loadu_ps(lanes[v], to + v * amx::kPairs); });
      unroll<2>([&](auto v) { _mm512_mask_storeu_ps(to + v * amx::kPairs, lanes[v], values[v]); });
    } else {
      if (options.accumulate) add([&](auto v) { return amx::widen(lanes[v], to + v * amx::kPairs); });
      const __m512bh rounded = _mm512_cvtne2ps_pbh(values[1], values[0]);
      _mm512_mask_storeu_epi16(to, block.columns, reinterpret_cast<__m512i>(rounded));
    }
  }
}

// Packed rows of A that a thread keeps from task to task: which product they are of, and their first row.
struct Held {
  uint64_t pass = 0;
  int64_t row = 0;
};

// Rows [i0, i1) and columns [j0, j1) of C.
template <typename Out>
void multiply_block(const Product<Out>& product, uint64_t pass, int64_t i0, int64_t i1, int64_t j0, int64_t j1) {
  static thread_local Held held;
  const int64_t rows = i1 - i0, columns = j1 - j0, block = even_block(product.k, kDepth, amx::kDepth);
  const int64_t panels = ceil_div(rows, kSide), column_panels = ceil_div(columns, kSide);
  const int64_t a_size = panels * kSide * block, blocks = std::max<int64_t>(1, ceil_div(product.k, block));
  const bool holds = blocks * a_size <= kHeldElements;
  const bool ready = holds && held.pass == pass && held.row == i0;
  c10::BFloat16* packed_a =
      scratch<c10::BFloat16>((holds ? blocks : 1) * a_size + column_panels * kSide * block, kPackedSlot);
  c10::BFloat16* packed_b = packed_a + (holds ? blocks : 1) * a_size;
  float* sums = scratch<float>((blocks == 1 ? 2 : panels * column_panels) * kSide * kSide, kSumsSlot);
  held = {holds ? pass : 0, i0};
  const amx::Tiles tiles;
  for (int64_t index = 0; index < blocks; ++index) {
    const int64_t k = index * block, depth = std::min(block, product.k - k), steps = ceil_div(depth, amx::kDepth);
    c10::BFloat16* a = packed_a + (holds ? index * a_size : 0);
    if (!ready) pack_a(product.a, i0, rows, k, depth, a);
    pack_b(product.b, j0, columns, k, depth, packed_b);
    if (product.options.row_sums && j0 == 0)
      add_row_sums(product.a, i0, rows, k, depth, k > 0 || product.options.accumulate, product.options.row_sums + i0);
    Pending pending;
    // Columns inside: C is written along its rows, where a core fetches ahead what it will write.
    for (int64_t p = 0; p < panels; ++p)
      for (int64_t q = 0; q < column_panels; ++q) {
        const int64_t at = q * panels + p;
        float* own = sums + (blocks == 1 ? at % 2 : at) * kSide * kSide;
        const int64_t block_columns = std::min(kSide, columns - q * kSide);
        const Pending next{own, i0 + p * kSide, std::min(kSide, rows - p * kSide), j0 + q * kSide,
                           amx::first(block_columns)};
        amx::with_tiles(next.rows > amx::kRows, block_columns > amx::kPairs, [&]<int kA, int kB>() {
          k == 0 ? amx::zero_sums<kA, kB>() : amx::load_sums<kA, kB>(own, kSide);
          const c10::BFloat16* panel_a = a + p * kSide * steps * amx::kDepth;
          const c10::BFloat16* panel_b = packed_b + q * kSide * steps * amx::kDepth;
          // The block before is written in the first steps.
          int64_t step = 0;
          for (; step < std::min(steps, kSide / kRowsAside); ++step) {
            amx::multiply<kA, kB>(1, panel_a + step * amx::kStep, panel_b + step * amx::kStep);
            write_rows(product, pending, step * kRowsAside, (step + 1) * kRowsAside);
          }
          amx::multiply<kA, kB>(steps - step, panel_a + step * amx::kStep, panel_b + step * amx::kStep);
          if (step < kSide / kRowsAside) write_rows(product, pending, step * kRowsAside, kSide);
          amx::store_sums<kA, kB>(own, kSide);
        });
        if (index == blocks - 1) pending = next;
      }
    write_rows(product, pending, 0, kSide);
  }
}

}  // namespace

bool has_bfloat16_gemm() {
  return true;
}

template <typename Out>
void gemm(int64_t m, int64_t n, int64_t k, BFloat16Operand a, BFloat16Operand b, Out* c, int64_t c_stride,
          const BFloat16GemmOptions& options) {
  if (options.row_sums && !a.transposed) throw std::invalid_argument("fastllm: gemm sums the rows of a transposed A");
  static std::atomic<uint64_t> passes{0};
  const uint64_t pass = ++passes;
  const Product<Out> product{m, n, k, a, b, c, c_stride, options};
  int64_t rows = 0, columns = 0;
  for (const auto& [most_rows, most_columns] : kCuts) {
    rows = even_block(m, most_rows, kSide);
    columns = even_block(n, most_columns, kSide);
    if (ceil_div(m, rows) * ceil_div(n, columns) >= kTasks) break;
  }
  const int64_t column_tasks = std::max<int64_t>(1, ceil_div(n, columns));
  parallel_for(ceil_div(m, rows) * column_tasks, [&](int64_t task) {
    const int64_t i0 = task / column_tasks * rows, j0 = task % column_tasks * columns;
    multiply_block(product, pass, i0, std::min(m, i0 + rows), j0, std::min(n, j0 + columns));
  });
}

#endif

#define INSTANTIATE(Out)                                                                         \
  template void gemm(int64_t, int64_t, int64_t, BFloat16Operand, BFloat16Operand, Out*, int64_t, \
                     const BFloat16GemmOptions&);
INSTANTIATE(float)
INSTANTIATE(c10::BFloat16)
#undef INSTANTIATE

}  // namespace fastllm
