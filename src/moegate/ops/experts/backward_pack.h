// Blocks of operands, copied into scratch memory in the form the innermost product reads: [units][columns], columns
// filled up with zeros to whole vectors. And the way back from float32 to the dtype of a result.
#pragma once

#include "experts/backward_vector.h"

namespace moegate::MOEGATE_ISA {
namespace {

inline int64_t whole_vectors(int64_t columns) { return (columns + kLanes - 1) / kLanes * kLanes; }

inline float widen(uint16_t half) {
  const uint32_t bits = static_cast<uint32_t>(half) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// To the nearest bfloat16, ties to even; NaN stays NaN.
inline uint16_t narrow(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const uint32_t rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
  return static_cast<uint16_t>(value == value ? rounded : 0x7FC0);
}

inline void widen(const uint16_t* from, float* to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = widen(from[i]);
}

inline void narrow(const float* from, uint16_t* to, int64_t count) {
  int64_t i = 0;
#if MOEGATE_ISA_avx512_bf16
  for (; i + 16 <= count; i += 16) {
    const __m256bh halves = _mm512_cvtneps_pbh(_mm512_loadu_ps(from + i));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + i), reinterpret_cast<__m256i>(halves));
  }
#endif
  for (; i < count; ++i) to[i] = narrow(from[i]);
}

constexpr int64_t kRowsAhead = 32;

// The pieces of a panel lie a whole row apart, where no hardware prefetcher looks: asks for the piece some rows below.
inline void prefetch_below(const void* from, int64_t row_bytes, int64_t bytes) {
  const char* below = static_cast<const char*>(from) + kRowsAhead * row_bytes;
  for (int64_t line = 0; line < bytes; line += 64) __builtin_prefetch(below + line, 0, 2);
}

inline void fill_up(float* to, int64_t columns) {
  for (int64_t column = columns; column < whole_vectors(columns); ++column) to[column] = 0.0f;
}

inline void pack(
    Singles, const float* from, int64_t from_row, int64_t rows, int64_t columns, float* to, int64_t to_row) {
  for (int64_t row = 0; row < rows; ++row) {
    prefetch_below(from, from_row * 4, columns * 4);
    int64_t column = 0;
    for (; column + kLanes <= columns; column += kLanes) store_vector(to + column, load_vector(from + column));
    for (; column < columns; ++column) to[column] = from[column];
    fill_up(to, columns);
    from += from_row;
    to += to_row;
  }
}

inline void pack(
    Singles, const uint16_t* from, int64_t from_row, int64_t rows, int64_t columns, float* to, int64_t to_row) {
  for (int64_t row = 0; row < rows; ++row) {
    prefetch_below(from, from_row * 2, columns * 2);
    widen(from, to, columns);
    fill_up(to, columns);
    from += from_row;
    to += to_row;
  }
}

#if MOEGATE_ISA_avx512_bf16

// Up to 32 columns of two rows become 32 pairs.
inline void pack_pairs(const uint16_t* first, const uint16_t* second, int64_t columns, uint32_t* to) {
  const __mmask32 mask = columns < 32 ? (1u << columns) - 1u : 0xFFFFFFFFu;
  const __m512i even = _mm512_maskz_loadu_epi16(mask, first);
  const __m512i odd = second == nullptr ? _mm512_setzero_si512() : _mm512_maskz_loadu_epi16(mask, second);
  const __m512i low = _mm512_set_epi16(
      47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6, 37, 5, 36, 4, 35, 3, 34, 2, 33, 1,
      32, 0);
  const __m512i high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
  _mm512_storeu_si512(to, _mm512_permutex2var_epi16(even, low, odd));
  if (columns > 16) _mm512_storeu_si512(to + 16, _mm512_permutex2var_epi16(even, high, odd));
}

inline void pack(
    Pairs, const uint16_t* from, int64_t from_row, int64_t rows, int64_t columns, uint32_t* to, int64_t to_row) {
  for (int64_t row = 0; row < rows; row += 2) {
    const uint16_t* next = row + 1 < rows ? from + from_row : nullptr;
    prefetch_below(from, from_row * 2, columns * 2);
    prefetch_below(from + from_row, from_row * 2, columns * 2);
    for (int64_t column = 0; column < columns; column += 32) {
      pack_pairs(from + column, next == nullptr ? nullptr : next + column, columns - column, to + column);
    }
    from += 2 * from_row;
    to += to_row;
  }
}

#endif

} // namespace
} // namespace moegate::MOEGATE_ISA
