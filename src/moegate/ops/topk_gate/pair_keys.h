// Keys as an array of structures, each beside its place: what the gate would read without a structure of arrays.
#pragma once

#include "cpu/selection.h"

namespace moegate::MOEGATE_ISA {
namespace {

struct Pair {
  int32_t key;
  int32_t place;
};

// Stands where an int32_t* to keys may stand.
struct PairKeys {
  Pair* pairs;
  int64_t first;

  PairKeys operator+(int64_t step) const { return {pairs, first + step}; }
  int32_t operator[](int64_t i) const { return pairs[first + i].key; }
};

// Every second of 32 integers, in two halves of registers where there are registers.
inline Ints load(PairKeys from) {
  const Pair* pairs = from.pairs + from.first;
#if MOEGATE_ISA_scalar
  return each_lane<kLanes>([&](int64_t lane) { return pairs[lane].key; });
#elif MOEGATE_ISA_avx2
  const auto eight_keys = [](const Pair* eight) {
    const __m256 low = _mm256_loadu_ps(&reinterpret_cast<const float*>(eight)[0]);
    const __m256 high = _mm256_loadu_ps(&reinterpret_cast<const float*>(eight)[8]);
    const __m256i mixed = _mm256_castps_si256(_mm256_shuffle_ps(low, high, 0x88));
    return _mm256_permute4x64_epi64(mixed, 0xd8);
  };
  return {eight_keys(pairs), eight_keys(pairs + 8)};
#else
  const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  return {_mm512_permutex2var_epi32(_mm512_loadu_si512(pairs), even, _mm512_loadu_si512(pairs + kHalfLanes))};
#endif
}

inline void store(PairKeys to, Ints keys) {
  int32_t lanes[kLanes];
  store(lanes, keys);
  for (int64_t lane = 0; lane < kLanes; ++lane) {
    to.pairs[to.first + lane] = {lanes[lane], static_cast<int32_t>(to.first + lane)};
  }
}

} // namespace
} // namespace moegate::MOEGATE_ISA
