// Included by cpu/vector.h: a vector is two 256-bit registers.
#pragma once

#include "cpu/intrinsics.h"

namespace moegate::MOEGATE_ISA {
namespace {

struct Floats {
  __m256 a, b;
};
struct Ints {
  __m256i a, b;
};
struct Doubles {
  __m256d a, b;
};
struct Longs {
  __m256i a, b;
};
// A lane is all ones or all zeros.
struct Mask {
  __m256i a, b;
};
struct HalfMask {
  __m256d a, b;
};

MOEGATE_INLINE __m256i load_256(const void* from) { return _mm256_loadu_si256(static_cast<const __m256i*>(from)); }
MOEGATE_INLINE void store_256(void* to, __m256i a) { _mm256_storeu_si256(static_cast<__m256i*>(to), a); }

MOEGATE_INLINE Floats load(const float* from) { return {_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)}; }
MOEGATE_INLINE Ints load(const int32_t* from) { return {load_256(from), load_256(from + 8)}; }
MOEGATE_INLINE Doubles load(const double* from) { return {_mm256_loadu_pd(from), _mm256_loadu_pd(from + 4)}; }
MOEGATE_INLINE Longs load(const int64_t* from) { return {load_256(from), load_256(from + 4)}; }
MOEGATE_INLINE void store(float* to, Floats x) {
  _mm256_storeu_ps(to, x.a);
  _mm256_storeu_ps(to + 8, x.b);
}
MOEGATE_INLINE void store(int32_t* to, Ints x) {
  store_256(to, x.a);
  store_256(to + 8, x.b);
}
MOEGATE_INLINE void store(double* to, Doubles x) {
  _mm256_storeu_pd(to, x.a);
  _mm256_storeu_pd(to + 4, x.b);
}
MOEGATE_INLINE void store(int64_t* to, Longs x) {
  store_256(to, x.a);
  store_256(to + 4, x.b);
}

MOEGATE_INLINE Floats floats(float value) { return {_mm256_set1_ps(value), _mm256_set1_ps(value)}; }
MOEGATE_INLINE Ints ints(int32_t value) { return {_mm256_set1_epi32(value), _mm256_set1_epi32(value)}; }
MOEGATE_INLINE Doubles doubles(double value) { return {_mm256_set1_pd(value), _mm256_set1_pd(value)}; }
MOEGATE_INLINE Longs longs(int64_t value) { return {_mm256_set1_epi64x(value), _mm256_set1_epi64x(value)}; }
MOEGATE_INLINE Ints lane_numbers() {
  return {_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), _mm256_setr_epi32(8, 9, 10, 11, 12, 13, 14, 15)};
}

MOEGATE_INLINE uint32_t bits_of_lanes(Mask x) {
  const uint32_t low = static_cast<uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(x.a)));
  const uint32_t high = static_cast<uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(x.b)));
  return low | (high << 8);
}
MOEGATE_INLINE Mask greater(Ints x, Ints y) { return {_mm256_cmpgt_epi32(x.a, y.a), _mm256_cmpgt_epi32(x.b, y.b)}; }
MOEGATE_INLINE Mask equal(Ints x, Ints y) { return {_mm256_cmpeq_epi32(x.a, y.a), _mm256_cmpeq_epi32(x.b, y.b)}; }
MOEGATE_INLINE Mask first_lanes(int64_t count) { return greater(ints(static_cast<int32_t>(count)), lane_numbers()); }
MOEGATE_INLINE HalfMask first_half_lanes(int64_t count) {
  const __m256i number = _mm256_set1_epi64x(count);
  return {
      _mm256_castsi256_pd(_mm256_cmpgt_epi64(number, _mm256_setr_epi64x(0, 1, 2, 3))),
      _mm256_castsi256_pd(_mm256_cmpgt_epi64(number, _mm256_setr_epi64x(4, 5, 6, 7)))};
}
MOEGATE_INLINE Mask operator|(Mask x, Mask y) { return {_mm256_or_si256(x.a, y.a), _mm256_or_si256(x.b, y.b)}; }
MOEGATE_INLINE Mask operator&(Mask x, Mask y) { return {_mm256_and_si256(x.a, y.a), _mm256_and_si256(x.b, y.b)}; }
MOEGATE_INLINE Mask no_lanes() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
MOEGATE_INLINE bool any(Mask x) { return !_mm256_testz_si256(_mm256_or_si256(x.a, x.b), _mm256_set1_epi32(-1)); }
MOEGATE_INLINE int64_t count_lanes(Mask x) { return _mm_popcnt_u32(bits_of_lanes(x)); }

MOEGATE_INLINE Floats operator+(Floats x, Floats y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
MOEGATE_INLINE Floats operator-(Floats x, Floats y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
MOEGATE_INLINE Floats operator*(Floats x, Floats y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
MOEGATE_INLINE Floats operator/(Floats x, Floats y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
MOEGATE_INLINE Floats maximum(Floats x, Floats y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
MOEGATE_INLINE Floats minimum(Floats x, Floats y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
MOEGATE_INLINE Floats square_root(Floats x) { return {_mm256_sqrt_ps(x.a), _mm256_sqrt_ps(x.b)}; }
MOEGATE_INLINE Floats negative_magnitude(Floats x) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  return {_mm256_or_ps(x.a, sign), _mm256_or_ps(x.b, sign)};
}
template <int predicate>
MOEGATE_INLINE Mask compared(Floats x, Floats y) {
  return {
      _mm256_castps_si256(_mm256_cmp_ps(x.a, y.a, predicate)),
      _mm256_castps_si256(_mm256_cmp_ps(x.b, y.b, predicate))};
}
MOEGATE_INLINE Mask either_is_nan(Floats x, Floats y) { return compared<_CMP_UNORD_Q>(x, y); }
MOEGATE_INLINE Mask is_nan(Floats x) { return either_is_nan(x, x); }
MOEGATE_INLINE Mask less(Floats x, Floats y) { return compared<_CMP_LT_OQ>(x, y); }
MOEGATE_INLINE Mask at_least(Floats x, Floats y) { return compared<_CMP_GE_OQ>(x, y); }
MOEGATE_INLINE Floats select(Mask mask, Floats x, Floats y) {
  return {
      _mm256_blendv_ps(y.a, x.a, _mm256_castsi256_ps(mask.a)),
      _mm256_blendv_ps(y.b, x.b, _mm256_castsi256_ps(mask.b))};
}
MOEGATE_INLINE float greatest(Floats x) {
  const __m256 eight = _mm256_max_ps(x.a, x.b);
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

// mantissa · 2^exponent for whole exponents, rounded once: two factors, since 2^exponent itself may not be normal.
MOEGATE_INLINE __m256 times_power_of_two(__m256 mantissa, __m256 exponent) {
  const __m256i whole = _mm256_cvtps_epi32(exponent);
  const __m256i half = _mm256_srai_epi32(whole, 1);
  const __m256i bias = _mm256_set1_epi32(127);
  const __m256i first = _mm256_slli_epi32(_mm256_add_epi32(half, bias), 23);
  const __m256i second = _mm256_slli_epi32(_mm256_add_epi32(_mm256_sub_epi32(whole, half), bias), 23);
  return _mm256_mul_ps(_mm256_mul_ps(mantissa, _mm256_castsi256_ps(first)), _mm256_castsi256_ps(second));
}
MOEGATE_INLINE Floats times_power_of_two(Floats mantissa, Floats exponent) {
  return {times_power_of_two(mantissa.a, exponent.a), times_power_of_two(mantissa.b, exponent.b)};
}

MOEGATE_INLINE Ints maximum(Ints x, Ints y) { return {_mm256_max_epi32(x.a, y.a), _mm256_max_epi32(x.b, y.b)}; }
MOEGATE_INLINE Ints minimum(Ints x, Ints y) { return {_mm256_min_epi32(x.a, y.a), _mm256_min_epi32(x.b, y.b)}; }
MOEGATE_INLINE Ints operator+(Ints x, Ints y) { return {_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)}; }
MOEGATE_INLINE Mask at_least(Ints x, Ints y) { return equal(maximum(x, y), x); }
MOEGATE_INLINE Ints select(Mask mask, Ints x, Ints y) {
  return {_mm256_blendv_epi8(y.a, x.a, mask.a), _mm256_blendv_epi8(y.b, x.b, mask.b)};
}
MOEGATE_INLINE Ints count_at_least(Ints counts, Ints x, Ints y) {
  const Mask holds = at_least(x, y);
  return {_mm256_sub_epi32(counts.a, holds.a), _mm256_sub_epi32(counts.b, holds.b)};
}
MOEGATE_INLINE Ints count_greater(Ints counts, Ints x, Ints y) {
  const Mask holds = greater(x, y);
  return {_mm256_sub_epi32(counts.a, holds.a), _mm256_sub_epi32(counts.b, holds.b)};
}
MOEGATE_INLINE int32_t greatest(Ints x) {
  const __m256i eight = _mm256_max_epi32(x.a, x.b);
  const __m128i four = _mm_max_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
  const __m128i two = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0x4e));
  return _mm_cvtsi128_si32(_mm_max_epi32(two, _mm_shuffle_epi32(two, 0xb1)));
}
MOEGATE_INLINE int32_t least(Ints x) {
  const __m256i eight = _mm256_min_epi32(x.a, x.b);
  const __m128i four = _mm_min_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
  const __m128i two = _mm_min_epi32(four, _mm_shuffle_epi32(four, 0x4e));
  return _mm_cvtsi128_si32(_mm_min_epi32(two, _mm_shuffle_epi32(two, 0xb1)));
}

// Flips all bits but the sign of negative numbers. Its own inverse.
MOEGATE_INLINE __m256i flip_negative(__m256i x) {
  const __m256i all_but_sign = _mm256_and_si256(_mm256_srai_epi32(x, 31), _mm256_set1_epi32(0x7fffffff));
  return _mm256_xor_si256(x, all_but_sign);
}
MOEGATE_INLINE Ints flip_negative(Ints x) { return {flip_negative(x.a), flip_negative(x.b)}; }
MOEGATE_INLINE Ints as_ints(Floats x) { return {_mm256_castps_si256(x.a), _mm256_castps_si256(x.b)}; }
MOEGATE_INLINE Floats as_floats(Ints x) { return {_mm256_castsi256_ps(x.a), _mm256_castsi256_ps(x.b)}; }

// Two vectors that hold every lane of `x` and of `y` once, arranged so that combining them lane by lane, level after
// level, reduces sixteen vectors to one: a first step of level 0 for each neighbouring pair, then of level 1, 2 and 3.
struct PairOfInts {
  Ints first, second;
};
MOEGATE_INLINE __m256i shuffled_evens(__m256i x, __m256i y) {
  return _mm256_castps_si256(_mm256_shuffle_ps(_mm256_castsi256_ps(x), _mm256_castsi256_ps(y), 0x88));
}
MOEGATE_INLINE __m256i shuffled_odds(__m256i x, __m256i y) {
  return _mm256_castps_si256(_mm256_shuffle_ps(_mm256_castsi256_ps(x), _mm256_castsi256_ps(y), 0xdd));
}
template <int level>
MOEGATE_INLINE PairOfInts interleaved(Ints x, Ints y) {
  if constexpr (level == 0) return {{x.a, y.a}, {x.b, y.b}};
  if constexpr (level == 1) {
    return {
        {_mm256_permute2x128_si256(x.a, x.b, 0x20), _mm256_permute2x128_si256(y.a, y.b, 0x20)},
        {_mm256_permute2x128_si256(x.a, x.b, 0x31), _mm256_permute2x128_si256(y.a, y.b, 0x31)}};
  }
  if constexpr (level == 2) {
    return {
        {_mm256_unpacklo_epi64(x.a, y.a), _mm256_unpacklo_epi64(x.b, y.b)},
        {_mm256_unpackhi_epi64(x.a, y.a), _mm256_unpackhi_epi64(x.b, y.b)}};
  }
  return {
      {shuffled_evens(x.a, y.a), shuffled_evens(x.b, y.b)}, {shuffled_odds(x.a, y.a), shuffled_odds(x.b, y.b)}};
}
// Puts the lanes of the last step in the order of the sixteen vectors: a transposition of four by four.
MOEGATE_INLINE Ints in_order_of_vectors(Ints x) {
  // Rows 0, 1 lie in x.a and rows 2, 3 in x.b; columns 0, 1 go to the first half.
  const __m256i low = _mm256_unpacklo_epi32(x.a, x.b); // 0 2 | 1 3 of columns 0 and 1
  const __m256i high = _mm256_unpackhi_epi32(x.a, x.b);
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  return {_mm256_permutevar8x32_epi32(low, order), _mm256_permutevar8x32_epi32(high, order)};
}

// For each set of lanes, the numbers of those lanes in order: three bits each, the first lowest.
struct LaneLists {
  uint32_t packed[256];
};
constexpr LaneLists make_lane_lists() {
  LaneLists lists{};
  for (uint32_t lanes = 0; lanes < 256; ++lanes) {
    uint32_t place = 0;
    for (uint32_t lane = 0; lane < 8; ++lane) {
      if ((lanes >> lane) & 1u) lists.packed[lanes] |= lane << (3 * place++);
    }
  }
  return lists;
}
constexpr LaneLists kLaneLists = make_lane_lists();

MOEGATE_INLINE __m256i compressed(__m256i x, uint32_t lanes) {
  const __m256i packed = _mm256_set1_epi32(static_cast<int32_t>(kLaneLists.packed[lanes]));
  return _mm256_permutevar8x32_epi32(x, _mm256_srlv_epi32(packed, _mm256_setr_epi32(0, 3, 6, 9, 12, 15, 18, 21)));
}

// Writes the marked lanes of `x` one after another; up to 16 elements behind them are overwritten too.
MOEGATE_INLINE int64_t append(int32_t* to, Mask mask, Ints x) {
  const uint32_t lanes = bits_of_lanes(mask);
  const int64_t first = _mm_popcnt_u32(lanes & 255u);
  store_256(to, compressed(x.a, lanes & 255u));
  store_256(to + first, compressed(x.b, lanes >> 8));
  return _mm_popcnt_u32(lanes);
}

MOEGATE_INLINE Longs count_greater(Longs counts, Longs x, Longs y) {
  return {
      _mm256_sub_epi64(counts.a, _mm256_cmpgt_epi64(x.a, y.a)),
      _mm256_sub_epi64(counts.b, _mm256_cmpgt_epi64(x.b, y.b))};
}
MOEGATE_INLINE Longs maximum(Longs x, Longs y) {
  return {
      _mm256_blendv_epi8(y.a, x.a, _mm256_cmpgt_epi64(x.a, y.a)),
      _mm256_blendv_epi8(y.b, x.b, _mm256_cmpgt_epi64(x.b, y.b))};
}
MOEGATE_INLINE Longs minimum(Longs x, Longs y) {
  return {
      _mm256_blendv_epi8(x.a, y.a, _mm256_cmpgt_epi64(x.a, y.a)),
      _mm256_blendv_epi8(x.b, y.b, _mm256_cmpgt_epi64(x.b, y.b))};
}

MOEGATE_INLINE Doubles operator+(Doubles x, Doubles y) { return {_mm256_add_pd(x.a, y.a), _mm256_add_pd(x.b, y.b)}; }
MOEGATE_INLINE Doubles operator-(Doubles x, Doubles y) { return {_mm256_sub_pd(x.a, y.a), _mm256_sub_pd(x.b, y.b)}; }
MOEGATE_INLINE Doubles operator*(Doubles x, Doubles y) { return {_mm256_mul_pd(x.a, y.a), _mm256_mul_pd(x.b, y.b)}; }
MOEGATE_INLINE Doubles operator/(Doubles x, Doubles y) { return {_mm256_div_pd(x.a, y.a), _mm256_div_pd(x.b, y.b)}; }
MOEGATE_INLINE Doubles maximum(Doubles x, Doubles y) { return {_mm256_max_pd(x.a, y.a), _mm256_max_pd(x.b, y.b)}; }
MOEGATE_INLINE Doubles square_root(Doubles x) { return {_mm256_sqrt_pd(x.a), _mm256_sqrt_pd(x.b)}; }
MOEGATE_INLINE Doubles negative_magnitude(Doubles x) {
  const __m256d sign = _mm256_set1_pd(-0.0);
  return {_mm256_or_pd(x.a, sign), _mm256_or_pd(x.b, sign)};
}
MOEGATE_INLINE HalfMask less(Doubles x, Doubles y) {
  return {_mm256_cmp_pd(x.a, y.a, _CMP_LT_OQ), _mm256_cmp_pd(x.b, y.b, _CMP_LT_OQ)};
}
MOEGATE_INLINE HalfMask at_least(Doubles x, Doubles y) {
  return {_mm256_cmp_pd(x.a, y.a, _CMP_GE_OQ), _mm256_cmp_pd(x.b, y.b, _CMP_GE_OQ)};
}
MOEGATE_INLINE Doubles select(HalfMask mask, Doubles x, Doubles y) {
  return {_mm256_blendv_pd(y.a, x.a, mask.a), _mm256_blendv_pd(y.b, x.b, mask.b)};
}

// 2^(n / 16), where the lowest bits of `x` hold n; see precise.h for the table.
MOEGATE_INLINE __m256d power_of_sixteenths(__m256d x, const uint64_t* powers) {
  const __m256i n = _mm256_castpd_si256(x);
  const __m256i place = _mm256_and_si256(n, _mm256_set1_epi64x(15));
  const __m256i power = _mm256_i64gather_epi64(reinterpret_cast<const long long*>(powers), place, 8);
  return _mm256_castsi256_pd(_mm256_add_epi64(power, _mm256_slli_epi64(n, 48)));
}
MOEGATE_INLINE Doubles power_of_sixteenths(Doubles x, const uint64_t* powers) {
  return {power_of_sixteenths(x.a, powers), power_of_sixteenths(x.b, powers)};
}

MOEGATE_INLINE Doubles widened(__m256 x) {
  return {_mm256_cvtps_pd(_mm256_castps256_ps128(x)), _mm256_cvtps_pd(_mm256_extractf128_ps(x, 1))};
}
MOEGATE_INLINE Doubles lower_half(Floats x) { return widened(x.a); }
MOEGATE_INLINE Doubles upper_half(Floats x) { return widened(x.b); }
MOEGATE_INLINE __m256 narrowed(Doubles x) { return _mm256_set_m128(_mm256_cvtpd_ps(x.b), _mm256_cvtpd_ps(x.a)); }
MOEGATE_INLINE Floats narrowed(Doubles lower, Doubles upper) { return {narrowed(lower), narrowed(upper)}; }
MOEGATE_INLINE void store_narrowed(float* to, Doubles x) { _mm256_storeu_ps(to, narrowed(x)); }

MOEGATE_INLINE Doubles load_widened(const float* from) { return widened(_mm256_loadu_ps(from)); }
// The first `count` of eight; the lanes behind them are 0.
MOEGATE_INLINE Doubles load_widened(const float* from, int64_t count) {
  if (count >= kHalfLanes) return load_widened(from);
  return widened(_mm256_maskload_ps(from, first_lanes(count).a));
}

MOEGATE_INLINE Floats load_as_floats(const float* from) { return load(from); }
MOEGATE_INLINE Floats load_as_floats(const BFloat16* from) {
  const __m256i bits = load_256(from);
  const __m256i a = _mm256_cvtepu16_epi32(_mm256_castsi256_si128(bits));
  const __m256i b = _mm256_cvtepu16_epi32(_mm256_extracti128_si256(bits, 1));
  return {_mm256_castsi256_ps(_mm256_slli_epi32(a, 16)), _mm256_castsi256_ps(_mm256_slli_epi32(b, 16))};
}
MOEGATE_INLINE Floats load_as_floats(const Half* from) {
  const __m256i bits = load_256(from);
  return {_mm256_cvtph_ps(_mm256_castsi256_si128(bits)), _mm256_cvtph_ps(_mm256_extracti128_si256(bits, 1))};
}
template <class Element>
MOEGATE_INLINE Floats load_as_floats(const Element* from, int64_t count) {
  Element block[kLanes] = {};
  std::memcpy(block, from, count * sizeof(Element));
  return load_as_floats(block);
}

MOEGATE_INLINE __m256i rounded_to_bfloat16(__m256 x) {
  const __m256i bits = _mm256_castps_si256(x);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
  return _mm256_blendv_epi8(_mm256_srli_epi32(rounded, 16), _mm256_set1_epi32(0x7fc0), nan);
}
MOEGATE_INLINE void store_as_elements(BFloat16* to, Floats x) {
  const __m256i packed = _mm256_packus_epi32(rounded_to_bfloat16(x.a), rounded_to_bfloat16(x.b));
  store_256(to, _mm256_permute4x64_epi64(packed, 0xd8));
}
MOEGATE_INLINE void store_as_elements(Half* to, Floats x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_cvtps_ph(x.a, _MM_FROUND_TO_NEAREST_INT));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to + 8), _mm256_cvtps_ph(x.b, _MM_FROUND_TO_NEAREST_INT));
}

} // namespace
} // namespace moegate::MOEGATE_ISA
