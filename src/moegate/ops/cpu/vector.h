// Vectors with one interface on every instruction set: 16 lanes of 32 bits, 8 lanes of 64 bits.
//
// The number of lanes is the same everywhere, in one register or in several, so that one algorithm serves all, every
// sum has the same order, and every instruction set gives the same bits. Nothing here fuses a multiplication with an
// addition. maximum(a, b) and minimum(a, b) of floating point are b where either is NaN.
#pragma once

#include <cstdint>
#include <cstring>

#include "cpu/elements.h"

namespace moegate::MOEGATE_ISA {
namespace {

constexpr int64_t kLanes = 16;
constexpr int64_t kHalfLanes = 8;

MOEGATE_INLINE int64_t padded(int64_t size) { return (size + kLanes - 1) / kLanes * kLanes; }

} // namespace
} // namespace moegate::MOEGATE_ISA

#if MOEGATE_ISA_scalar
#include "cpu/vector_scalar.h"
#elif MOEGATE_ISA_avx2
#include "cpu/vector_avx2.h"
#else
#include "cpu/vector_avx512.h"
#endif

namespace moegate::MOEGATE_ISA {
namespace {

MOEGATE_INLINE void store_as_elements(float* to, Floats values) { store(to, values); }

// The first `count` lanes of a row's last block; the others are 0.
template <class Element>
MOEGATE_INLINE void store_as_elements(Element* to, Floats values, int64_t count) {
  Element block[kLanes];
  store_as_elements(block, values);
  std::memcpy(to, block, count * sizeof(Element));
}

// The elements of a row at `count` places, at most eight; the lanes past them repeat the first one.
template <class Element>
MOEGATE_INLINE Doubles gathered(const Element* row, const int32_t* places, int64_t count) {
  const auto at = [&](int64_t i) MOEGATE_INLINED { return to_float(row[places[i < count ? i : 0]]); };
#if MOEGATE_ISA_scalar
  return each_lane<kHalfLanes>([&](int64_t i) MOEGATE_INLINED { return static_cast<double>(at(i)); });
#else
  return widened(_mm256_setr_ps(at(0), at(1), at(2), at(3), at(4), at(5), at(6), at(7)));
#endif
}

// The lanes added in one fixed order.
MOEGATE_INLINE double sum_of_lanes(Doubles a) {
  double v[kHalfLanes];
  store(v, a);
  return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]));
}

} // namespace
} // namespace moegate::MOEGATE_ISA
