// The register block: dot products of a few rows with a few columns of weights, both contiguous along the reduction.
//
// Every output is one sum in a fixed order: lane by lane along the reduction, then the lanes as a tree. It does not
// depend on how many rows or columns share the block, so a row gives the same bits in every batch.
#pragma once

#include "experts/cpu_kernel.h"
#include "experts/cpu_vector.h"

namespace moegate::MOEGATE_ISA {
namespace {

constexpr int64_t kBlockColumns = 4;

// A few rows times a panel of columns, along a chunk of the reduction.
template <class Type>
struct Panel {
  const typename Type::Element* rows;
  const typename Type::Element* weights;
  typename Type::Element* copy; // where the chunk's weights are copied to, kChunk apart
  const char* ahead;            // what to fetch into the cache meanwhile
  int64_t row_stride, column_stride;
  int64_t columns, length, ahead_lines;
  float* sums; // [rows, sums_stride]; whole blocks are written whatever `columns` is
  int64_t sums_stride;
  bool add; // to what is there
};

constexpr int64_t kLineBytes = 64;

// Not the intrinsic: GCC 12 takes a function that only prefetches for one without effects, and drops the call.
static inline void fetch(const void* address) {
#if defined(__x86_64__)
  asm volatile("prefetcht0 (%0)" : : "r"(address));
#endif
}

#if defined(MOEGATE_ISA_avx512) || defined(MOEGATE_ISA_avx512_bf16)

// The sums of the lanes of 16 vectors, in the order of the vectors.
static inline __m512 sum_lanes(const Vector (&v)[16]) {
  __m512 halves[8], quarters[4], pairs[2];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    halves[i] = _mm512_add_ps(
        _mm512_shuffle_f32x4(v[2 * i], v[2 * i + 1], 0x44), _mm512_shuffle_f32x4(v[2 * i], v[2 * i + 1], 0xee));
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    quarters[i] = _mm512_add_ps(
        _mm512_shuffle_f32x4(halves[2 * i], halves[2 * i + 1], 0x88),
        _mm512_shuffle_f32x4(halves[2 * i], halves[2 * i + 1], 0xdd));
  }
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    const __m512d left = _mm512_castps_pd(quarters[2 * i]), right = _mm512_castps_pd(quarters[2 * i + 1]);
    pairs[i] = _mm512_add_ps(
        _mm512_castpd_ps(_mm512_unpacklo_pd(left, right)), _mm512_castpd_ps(_mm512_unpackhi_pd(left, right)));
  }
  return _mm512_add_ps(_mm512_shuffle_ps(pairs[0], pairs[1], 0x88), _mm512_shuffle_ps(pairs[0], pairs[1], 0xdd));
}

static inline void store_row(float* to, __m128 values, bool add) {
  _mm_storeu_ps(to, add ? _mm_add_ps(_mm_loadu_ps(to), values) : values);
}

template <int Rows>
static inline void store_sums(float* to, int64_t stride, bool add, const Vector (&sums)[Rows][kBlockColumns]) {
  // The quarters of the result hold the rows when the vectors come by columns.
  Vector ordered[16] = {};
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) {
    if (i % 4 < Rows) ordered[i] = sums[i % 4][i / 4];
  }
  const __m512 result = sum_lanes(ordered);
  store_row(to, _mm512_castps512_ps128(result), add);
  if constexpr (Rows > 1) store_row(to + stride, _mm512_extractf32x4_ps(result, 1), add);
  if constexpr (Rows > 2) store_row(to + 2 * stride, _mm512_extractf32x4_ps(result, 2), add);
  if constexpr (Rows > 3) store_row(to + 3 * stride, _mm512_extractf32x4_ps(result, 3), add);
}

#else

static inline float sum_lanes(Vector v) {
  float lanes[kLanes];
  store_vector(lanes, v);
  for (int64_t width = kLanes / 2; width > 0; width /= 2) {
    for (int64_t i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  }
  return lanes[0];
}

template <int Rows>
static inline void store_sums(float* to, int64_t stride, bool add, const Vector (&sums)[Rows][kBlockColumns]) {
  for (int64_t i = 0; i < Rows; ++i) {
    for (int64_t j = 0; j < kBlockColumns; ++j) {
      const float sum = sum_lanes(sums[i][j]);
      to[i * stride + j] = add ? to[i * stride + j] + sum : sum;
    }
  }
}

#endif

// What a register block does besides: every step fetches kLines lines of what comes after the panel, in order
// (the processor's own prefetcher follows one long stream better than several short ones), and kRowLines lines of the
// rows that follow; and it copies the weights that it reads.
template <int Lines, int RowLines, bool Copies>
struct Besides {
  static constexpr int kLines = Lines;
  static constexpr int kRowLines = RowLines;
  static constexpr bool kCopies = Copies;
};

// A register block: the sums of Rows rows and kBlockColumns columns.
template <class Type, int Rows, class Does>
static inline __attribute__((always_inline)) void multiply_block(
    const Panel<Type>& panel, int64_t column, const char* ahead) {
  using Element = typename Type::Element;
  const Element* const rows = panel.rows;
  const int64_t row_stride = panel.row_stride, column_stride = panel.column_stride, length = panel.length;
  // The columns that are missing repeat the last one: computed, and not used.
  const int64_t last = panel.columns - 1 - column;
  const Element* const weights = panel.weights + column * column_stride;
  const Element* const weights_of[kBlockColumns] = {
      weights, weights + (last < 1 ? last : 1) * column_stride, weights + (last < 2 ? last : 2) * column_stride,
      weights + (last < 3 ? last : 3) * column_stride};
  const Element* const next_rows = rows + (Rows + column / kBlockColumns * Does::kRowLines) * row_stride;
  Element* const copy = Does::kCopies ? panel.copy + column * Type::kChunk : nullptr;
  Vector sums[Rows][kBlockColumns] = {};
  const auto step = [&](auto load, int64_t k, int64_t count) __attribute__((always_inline)) {
    typename Type::Operand left[Rows];
#pragma GCC unroll 4
    for (int i = 0; i < Rows; ++i) {
      left[i] = load(rows + i * row_stride + k);
      Type::pin(left[i]);
    }
#pragma GCC unroll 4
    for (int j = 0; j < kBlockColumns; ++j) {
      auto right = load(weights_of[j] + k);
      Type::pin(right);
      // Not the operand: that may be wider than the elements it was made of.
      if constexpr (Does::kCopies) {
        std::memcpy(copy + j * Type::kChunk + k, weights_of[j] + k, static_cast<size_t>(count) * sizeof(Element));
      }
#pragma GCC unroll 4
      for (int i = 0; i < Rows; ++i) sums[i][j] = Type::multiply_add(left[i], right, sums[i][j]);
    }
  };
  const auto whole_step = [&](int64_t k) __attribute__((always_inline)) {
#pragma GCC unroll 4
    for (int line = 0; line < Does::kLines; ++line) fetch(ahead + line * kLineBytes);
    ahead += Does::kLines * kLineBytes;
#pragma GCC unroll 4
    for (int row = 0; row < Does::kRowLines; ++row) fetch(next_rows + row * row_stride + k);
    step([](const Element* from) __attribute__((always_inline)) { return Type::load(from); }, k, Type::kStep);
  };
  int64_t k = 0;
  if constexpr (Does::kLines > 1) { // where the memory sets the pace, fewer jumps let more loads begin early
    for (; k + 4 * Type::kStep <= length; k += 4 * Type::kStep) {
#pragma GCC unroll 4
      for (int64_t part = 0; part < 4; ++part) whole_step(k + part * Type::kStep);
    }
  }
  for (; k + Type::kStep <= length; k += Type::kStep) whole_step(k);
  if (k < length) {
    const int64_t left = length - k;
    step([&](const Element* from) __attribute__((always_inline)) { return Type::load_part(from, left); }, k, left);
  }
  store_sums<Rows>(panel.sums + column, panel.sums_stride, panel.add, sums);
}

template <class Type, int Rows, class Does>
__attribute__((noinline)) static void multiply_panel(const Panel<Type>& panel) {
  using WithoutLines = Besides<0, Does::kRowLines, Does::kCopies>;
  const int64_t fetched_by_block = panel.length / Type::kStep * Does::kLines;
  int64_t column = 0, fetched = 0;
  for (; column < panel.columns && fetched < panel.ahead_lines; column += kBlockColumns) {
    multiply_block<Type, Rows, Does>(panel, column, panel.ahead + fetched * kLineBytes);
    fetched += fetched_by_block;
  }
  for (; column < panel.columns; column += kBlockColumns) {
    multiply_block<Type, Rows, WithoutLines>(panel, column, nullptr);
  }
}

} // namespace
} // namespace moegate::MOEGATE_ISA
