// Included by cpu/vector.h: a vector is one 512-bit register.
#pragma once

#include "cpu/intrinsics.h"

namespace moegate::MOEGATE_ISA {
namespace {

struct Floats {
  __m512 v;
};
struct Ints {
  __m512i v;
};
struct Doubles {
  __m512d v;
};
struct Longs {
  __m512i v;
};
struct Mask {
  __mmask16 v;
};
struct HalfMask {
  __mmask8 v;
};

MOEGATE_INLINE Floats load(const float* from) { return {_mm512_loadu_ps(from)}; }
MOEGATE_INLINE Ints load(const int32_t* from) { return {_mm512_loadu_si512(from)}; }
MOEGATE_INLINE Doubles load(const double* from) { return {_mm512_loadu_pd(from)}; }
MOEGATE_INLINE Longs load(const int64_t* from) { return {_mm512_loadu_si512(from)}; }
MOEGATE_INLINE void store(float* to, Floats a) { _mm512_storeu_ps(to, a.v); }
MOEGATE_INLINE void store(int32_t* to, Ints a) { _mm512_storeu_si512(to, a.v); }
MOEGATE_INLINE void store(double* to, Doubles a) { _mm512_storeu_pd(to, a.v); }
MOEGATE_INLINE void store(int64_t* to, Longs a) { _mm512_storeu_si512(to, a.v); }

MOEGATE_INLINE Floats floats(float value) { return {_mm512_set1_ps(value)}; }
MOEGATE_INLINE Ints ints(int32_t value) { return {_mm512_set1_epi32(value)}; }
MOEGATE_INLINE Doubles doubles(double value) { return {_mm512_set1_pd(value)}; }
MOEGATE_INLINE Longs longs(int64_t value) { return {_mm512_set1_epi64(value)}; }
MOEGATE_INLINE Ints lane_numbers() { return {_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)}; }

MOEGATE_INLINE Mask first_lanes(int64_t count) { return {static_cast<__mmask16>((1u << count) - 1u)}; }
MOEGATE_INLINE HalfMask first_half_lanes(int64_t count) { return {static_cast<__mmask8>((1u << count) - 1u)}; }
MOEGATE_INLINE Mask operator|(Mask a, Mask b) { return {static_cast<__mmask16>(a.v | b.v)}; }
MOEGATE_INLINE Mask operator&(Mask a, Mask b) { return {static_cast<__mmask16>(a.v & b.v)}; }
MOEGATE_INLINE Mask no_lanes() { return {0}; }
MOEGATE_INLINE bool any(Mask a) { return a.v != 0; }
MOEGATE_INLINE int64_t count_lanes(Mask a) { return _mm_popcnt_u32(a.v); }

MOEGATE_INLINE Floats operator+(Floats a, Floats b) { return {_mm512_add_ps(a.v, b.v)}; }
MOEGATE_INLINE Floats operator-(Floats a, Floats b) { return {_mm512_sub_ps(a.v, b.v)}; }
MOEGATE_INLINE Floats operator*(Floats a, Floats b) { return {_mm512_mul_ps(a.v, b.v)}; }
MOEGATE_INLINE Floats operator/(Floats a, Floats b) { return {_mm512_div_ps(a.v, b.v)}; }
MOEGATE_INLINE Floats maximum(Floats a, Floats b) { return {_mm512_max_ps(a.v, b.v)}; }
MOEGATE_INLINE Floats minimum(Floats a, Floats b) { return {_mm512_min_ps(a.v, b.v)}; }
MOEGATE_INLINE Floats square_root(Floats a) { return {_mm512_sqrt_ps(a.v)}; }
MOEGATE_INLINE Floats negative_magnitude(Floats a) { return {_mm512_or_ps(a.v, _mm512_set1_ps(-0.0f))}; }
MOEGATE_INLINE Mask either_is_nan(Floats a, Floats b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_UNORD_Q)}; }
MOEGATE_INLINE Mask is_nan(Floats a) { return either_is_nan(a, a); }
MOEGATE_INLINE Mask less(Floats a, Floats b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ)}; }
MOEGATE_INLINE Mask at_least(Floats a, Floats b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_GE_OQ)}; }
MOEGATE_INLINE Floats select(Mask mask, Floats a, Floats b) { return {_mm512_mask_mov_ps(b.v, mask.v, a.v)}; }
MOEGATE_INLINE float greatest(Floats a) { return _mm512_reduce_max_ps(a.v); }

// mantissa · 2^exponent for whole exponents, rounded once.
MOEGATE_INLINE Floats times_power_of_two(Floats mantissa, Floats exponent) {
  return {_mm512_scalef_ps(mantissa.v, exponent.v)};
}

MOEGATE_INLINE Ints maximum(Ints a, Ints b) { return {_mm512_max_epi32(a.v, b.v)}; }
MOEGATE_INLINE Ints minimum(Ints a, Ints b) { return {_mm512_min_epi32(a.v, b.v)}; }
MOEGATE_INLINE Ints operator+(Ints a, Ints b) { return {_mm512_add_epi32(a.v, b.v)}; }
MOEGATE_INLINE Mask greater(Ints a, Ints b) { return {_mm512_cmpgt_epi32_mask(a.v, b.v)}; }
MOEGATE_INLINE Mask at_least(Ints a, Ints b) { return {_mm512_cmpge_epi32_mask(a.v, b.v)}; }
MOEGATE_INLINE Mask equal(Ints a, Ints b) { return {_mm512_cmpeq_epi32_mask(a.v, b.v)}; }
MOEGATE_INLINE Ints select(Mask mask, Ints a, Ints b) { return {_mm512_mask_mov_epi32(b.v, mask.v, a.v)}; }
MOEGATE_INLINE Ints count_at_least(Ints counts, Ints a, Ints b) {
  return {_mm512_mask_add_epi32(counts.v, at_least(a, b).v, counts.v, _mm512_set1_epi32(1))};
}
MOEGATE_INLINE Ints count_greater(Ints counts, Ints a, Ints b) {
  return {_mm512_mask_add_epi32(counts.v, greater(a, b).v, counts.v, _mm512_set1_epi32(1))};
}
MOEGATE_INLINE int32_t greatest(Ints a) { return _mm512_reduce_max_epi32(a.v); }
MOEGATE_INLINE int32_t least(Ints a) { return _mm512_reduce_min_epi32(a.v); }

// Flips all bits but the sign of negative numbers. Its own inverse.
MOEGATE_INLINE Ints flip_negative(Ints a) {
  const __m512i sign = _mm512_srai_epi32(a.v, 31);
  return {_mm512_ternarylogic_epi32(a.v, sign, _mm512_set1_epi32(0x7fffffff), 0x78)}; // a ^ (sign & 0x7fffffff)
}
MOEGATE_INLINE Ints as_ints(Floats a) { return {_mm512_castps_si512(a.v)}; }
MOEGATE_INLINE Floats as_floats(Ints a) { return {_mm512_castsi512_ps(a.v)}; }

// Two vectors that hold every lane of `a` and of `b` once, arranged so that combining them lane by lane, level after
// level, reduces sixteen vectors to one: a first step of level 0 for each neighbouring pair, then of level 1, 2 and 3.
struct PairOfInts {
  Ints first, second;
};
template <int level>
MOEGATE_INLINE PairOfInts interleaved(Ints a, Ints b) {
  if constexpr (level == 0) return {{_mm512_shuffle_i64x2(a.v, b.v, 0x44)}, {_mm512_shuffle_i64x2(a.v, b.v, 0xee)}};
  if constexpr (level == 1) return {{_mm512_shuffle_i64x2(a.v, b.v, 0x88)}, {_mm512_shuffle_i64x2(a.v, b.v, 0xdd)}};
  if constexpr (level == 2) return {{_mm512_unpacklo_epi64(a.v, b.v)}, {_mm512_unpackhi_epi64(a.v, b.v)}};
  const __m512 x = _mm512_castsi512_ps(a.v), y = _mm512_castsi512_ps(b.v);
  return {
      {_mm512_castps_si512(_mm512_shuffle_ps(x, y, 0x88))}, {_mm512_castps_si512(_mm512_shuffle_ps(x, y, 0xdd))}};
}
// Puts the lanes of the last step in the order of the sixteen vectors: a transposition of four by four.
MOEGATE_INLINE Ints in_order_of_vectors(Ints a) {
  const __m512i from = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  return {_mm512_permutexvar_epi32(from, a.v)};
}

// Writes the marked lanes of `a` one after another; up to 16 elements behind them are overwritten too.
MOEGATE_INLINE int64_t append(int32_t* to, Mask mask, Ints a) {
  _mm512_storeu_si512(to, _mm512_maskz_compress_epi32(mask.v, a.v));
  return count_lanes(mask);
}

MOEGATE_INLINE Longs count_greater(Longs counts, Longs a, Longs b) {
  return {_mm512_mask_add_epi64(counts.v, _mm512_cmpgt_epi64_mask(a.v, b.v), counts.v, _mm512_set1_epi64(1))};
}
MOEGATE_INLINE Longs maximum(Longs a, Longs b) { return {_mm512_max_epi64(a.v, b.v)}; }
MOEGATE_INLINE Longs minimum(Longs a, Longs b) { return {_mm512_min_epi64(a.v, b.v)}; }

MOEGATE_INLINE Doubles operator+(Doubles a, Doubles b) { return {_mm512_add_pd(a.v, b.v)}; }
MOEGATE_INLINE Doubles operator-(Doubles a, Doubles b) { return {_mm512_sub_pd(a.v, b.v)}; }
MOEGATE_INLINE Doubles operator*(Doubles a, Doubles b) { return {_mm512_mul_pd(a.v, b.v)}; }
MOEGATE_INLINE Doubles operator/(Doubles a, Doubles b) { return {_mm512_div_pd(a.v, b.v)}; }
MOEGATE_INLINE Doubles maximum(Doubles a, Doubles b) { return {_mm512_max_pd(a.v, b.v)}; }
MOEGATE_INLINE Doubles square_root(Doubles a) { return {_mm512_sqrt_pd(a.v)}; }
MOEGATE_INLINE Doubles negative_magnitude(Doubles a) { return {_mm512_or_pd(a.v, _mm512_set1_pd(-0.0))}; }
MOEGATE_INLINE HalfMask less(Doubles a, Doubles b) { return {_mm512_cmp_pd_mask(a.v, b.v, _CMP_LT_OQ)}; }
MOEGATE_INLINE HalfMask at_least(Doubles a, Doubles b) { return {_mm512_cmp_pd_mask(a.v, b.v, _CMP_GE_OQ)}; }
MOEGATE_INLINE Doubles select(HalfMask mask, Doubles a, Doubles b) { return {_mm512_mask_mov_pd(b.v, mask.v, a.v)}; }

// 2^(n / 16), where the lowest bits of `a` hold n; see precise.h for the table.
MOEGATE_INLINE Doubles power_of_sixteenths(Doubles a, const uint64_t* powers) {
  const __m512i n = _mm512_castpd_si512(a.v);
  const __m512i power = _mm512_permutex2var_epi64(_mm512_load_si512(powers), n, _mm512_load_si512(powers + 8));
  return {_mm512_castsi512_pd(_mm512_add_epi64(power, _mm512_slli_epi64(n, 48)))};
}

MOEGATE_INLINE Doubles lower_half(Floats a) { return {_mm512_cvtps_pd(_mm512_castps512_ps256(a.v))}; }
MOEGATE_INLINE Doubles upper_half(Floats a) { return {_mm512_cvtps_pd(_mm512_extractf32x8_ps(a.v, 1))}; }
MOEGATE_INLINE Floats narrowed(Doubles lower, Doubles upper) {
  const __m512 low = _mm512_castps256_ps512(_mm512_cvtpd_ps(lower.v));
  return {_mm512_insertf32x8(low, _mm512_cvtpd_ps(upper.v), 1)};
}
MOEGATE_INLINE void store_narrowed(float* to, Doubles a) { _mm256_storeu_ps(to, _mm512_cvtpd_ps(a.v)); }

MOEGATE_INLINE Doubles widened(__m256 a) { return {_mm512_cvtps_pd(a)}; }
MOEGATE_INLINE Doubles load_widened(const float* from) { return widened(_mm256_loadu_ps(from)); }
// The first `count` of eight; the lanes behind them are 0.
MOEGATE_INLINE Doubles load_widened(const float* from, int64_t count) {
  return count >= kHalfLanes ? load_widened(from) : widened(_mm256_maskz_loadu_ps(first_half_lanes(count).v, from));
}

MOEGATE_INLINE Floats load_as_floats(const float* from) { return load(from); }
MOEGATE_INLINE Floats load_as_floats(const BFloat16* from) {
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16))};
}
MOEGATE_INLINE Floats load_as_floats(const Half* from) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)))};
}
MOEGATE_INLINE Floats load_as_floats(const float* from, int64_t count) {
  return {_mm512_maskz_loadu_ps(first_lanes(count).v, from)};
}
MOEGATE_INLINE Floats load_as_floats(const BFloat16* from, int64_t count) {
  const __m256i bits = _mm256_maskz_loadu_epi16(first_lanes(count).v, from);
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16))};
}
MOEGATE_INLINE Floats load_as_floats(const Half* from, int64_t count) {
  return {_mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first_lanes(count).v, from))};
}

MOEGATE_INLINE void store_as_elements(BFloat16* to, Floats a) {
  const __m512i bits = _mm512_castps_si512(a.v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
  const __m512i high = _mm512_srli_epi32(rounded, 16);
  const __m512i kept = _mm512_mask_mov_epi32(high, is_nan(a).v, _mm512_set1_epi32(0x7fc0));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtepi32_epi16(kept));
}
MOEGATE_INLINE void store_as_elements(Half* to, Floats a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT));
}

} // namespace
} // namespace moegate::MOEGATE_ISA
