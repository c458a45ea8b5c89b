// The innermost product: a block of the result in registers, one step of the reduction after the other. Every element
// of a result is one chain of fused additions in the order of the reduction, however the work is cut into blocks, so
// the cut never shows in the bits.
#pragma once

#include "experts/backward_vector.h"

namespace moegate::MOEGATE_ISA {
namespace {

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// result[row][column] (+)= sum over steps of left(row, step) * right[step][column]
struct Product {
  const char* left;
  int64_t left_row;  // bytes from a row's unit to the next row's
  int64_t left_step; // bytes from a step's unit to the next step's
  const char* right;
  int64_t right_step; // bytes likewise
  int64_t steps;
  float* result;
  int64_t result_row; // elements
  bool fresh;         // nothing is there yet to add to
  uint16_t* halves;   // where complete results go as bfloat16 instead, or null
  int64_t halves_row;
  bool cold;   // the left operand lies in memory row by row, and was not read yet
  bool stream; // complete results go past the caches
};

template <class Mode, int vectors>
inline void store_row(const Vector* sums, const Product& product, int row) {
  if constexpr (Mode::narrows) {
    if (product.halves != nullptr) {
      uint16_t* to = product.halves + row * product.halves_row;
#pragma GCC unroll 8
      for (int vector = 0; vector + 1 < vectors; vector += 2) {
        Mode::store(sums[vector], sums[vector + 1], to + vector * kLanes, product.stream);
      }
      if (vectors % 2 == 1) Mode::store(sums[vectors - 1], to + (vectors - 1) * kLanes);
      return;
    }
  }
  float* to = product.result + row * product.result_row;
#pragma GCC unroll 8
  for (int vector = 0; vector < vectors; ++vector) {
    const Vector sum = sums[vector];
    product.stream ? stream_vector(to + vector * kLanes, sum) : store_vector(to + vector * kLanes, sum);
  }
}

template <class Mode, int rows, int vectors>
inline void multiply_tile(const Product& product) {
  Vector sums[rows][vectors];
#pragma GCC unroll 8
  for (int row = 0; row < rows; ++row) {
#pragma GCC unroll 8
    for (int vector = 0; vector < vectors; ++vector) {
      sums[row][vector] = product.fresh
          ? Vector{}
          : load_vector(product.result + row * product.result_row + vector * kLanes);
    }
  }
  const char* left = product.left;
  const char* right = product.right;
  const int64_t left_row = product.left_row;
  for (int64_t step = 0; step < product.steps; ++step) {
    Vector factors[vectors];
#pragma GCC unroll 8
    for (int vector = 0; vector < vectors; ++vector) {
      factors[vector] = load_vector(reinterpret_cast<const float*>(right) + vector * kLanes);
    }
#pragma GCC unroll 8
    for (int row = 0; row < rows; ++row) {
      const Vector factor = Mode::same(left + row * left_row);
#pragma GCC unroll 8
      for (int vector = 0; vector < vectors; ++vector) Mode::add_product(sums[row][vector], factor, factors[vector]);
    }
    left += product.left_step;
    right += product.right_step;
  }
#pragma GCC unroll 8
  for (int row = 0; row < rows; ++row) store_row<Mode, vectors>(sums[row], product, row);
}

template <class Mode, int vectors>
inline void multiply_rows(const Product& product, int64_t rows) {
  switch (rows) {
    case 1: return multiply_tile<Mode, 1, vectors>(product);
    case 2: return multiply_tile<Mode, 2, vectors>(product);
    case 3: return multiply_tile<Mode, 3, vectors>(product);
#if MOEGATE_ISA_scalar
    default: return multiply_tile<Mode, 4, vectors>(product);
#else
    case 4: return multiply_tile<Mode, 4, vectors>(product);
    case 5: return multiply_tile<Mode, 5, vectors>(product);
    default: return multiply_tile<Mode, 6, vectors>(product);
#endif
  }
}

// Asks for the rows of the left operand that come after the next `kRegisterRows`.
inline void prefetch_left(const Product& product, int64_t rows) {
  const char* next = product.left + kRegisterRows * product.left_row;
  for (int64_t row = 0; row < smaller(kRegisterRows, rows); ++row) {
    for (int64_t byte = 0; byte < 4 * product.steps; byte += 64) __builtin_prefetch(next + byte);
    next += product.left_row;
  }
}

// Any number of rows, by at most kRegisterColumns columns, rounded up to whole vectors.
template <class Mode>
inline void multiply_panel(Product product, int64_t rows, int64_t columns) {
  const int64_t vectors = (columns + kLanes - 1) / kLanes;
  for (int64_t row = 0; row < rows; row += kRegisterRows) {
    if (product.cold) prefetch_left(product, rows - row - kRegisterRows);
    const int64_t left = rows - row < kRegisterRows ? rows - row : kRegisterRows;
    switch (vectors) {
      case 1: multiply_rows<Mode, 1>(product, left); break;
#if MOEGATE_ISA_avx512 || MOEGATE_ISA_avx512_bf16
      case 2: multiply_rows<Mode, 2>(product, left); break;
      case 3: multiply_rows<Mode, 3>(product, left); break;
#endif
      default: multiply_rows<Mode, kRegisterVectors>(product, left); break;
    }
    product.left += kRegisterRows * product.left_row;
    product.result += kRegisterRows * product.result_row;
    if (product.halves != nullptr) product.halves += kRegisterRows * product.halves_row;
  }
}

} // namespace
} // namespace moegate::MOEGATE_ISA
