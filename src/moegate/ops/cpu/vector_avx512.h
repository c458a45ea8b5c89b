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

inline Floats load(const float* from) { return {_mm512_loadu_ps(from)}; }
inline Ints load(const int32_t* from) { return {_mm512_loadu_si512(from)}; }
inline Doubles load(const double* from) { return {_mm512_loadu_pd(from)}; }
inline Longs load(const int64_t* from) { return {_mm512_loadu_si512(from)}; }
inline void store(float* to, Floats a) { _mm512_storeu_ps(to, a.v); }
inline void store(int32_t* to, Ints a) { _mm512_storeu_si512(to, a.v); }
inline void store(double* to, Doubles a) { _mm512_storeu_pd(to, a.v); }
inline void store(int64_t* to, Longs a) { _mm512_storeu_si512(to, a.v); }

inline Floats floats(float value) { return {_mm512_set1_ps(value)}; }
inline Ints ints(int32_t value) { return {_mm512_set1_epi32(value)}; }
inline Doubles doubles(double value) { return {_mm512_set1_pd(value)}; }
inline Longs longs(int64_t value) { return {_mm512_set1_epi64(value)}; }
inline Ints lane_numbers() { return {_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)}; }

inline Mask first_lanes(int64_t count) { return {static_cast<__mmask16>((1u << count) - 1u)}; }
inline HalfMask first_half_lanes(int64_t count) { return {static_cast<__mmask8>((1u << count) - 1u)}; }
inline Mask operator|(Mask a, Mask b) { return {static_cast<__mmask16>(a.v | b.v)}; }
inline Mask operator&(Mask a, Mask b) { return {static_cast<__mmask16>(a.v & b.v)}; }
inline Mask no_lanes() { return {0}; }
inline bool any(Mask a) { return a.v != 0; }
inline int64_t count_lanes(Mask a) { return _mm_popcnt_u32(a.v); }

inline Floats operator+(Floats a, Floats b) { return {_mm512_add_ps(a.v, b.v)}; }
inline Floats operator-(Floats a, Floats b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline Floats operator*(Floats a, Floats b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline Floats operator/(Floats a, Floats b) { return {_mm512_div_ps(a.v, b.v)}; }
inline Floats maximum(Floats a, Floats b) { return {_mm512_max_ps(a.v, b.v)}; }
inline Floats minimum(Floats a, Floats b) { return {_mm512_min_ps(a.v, b.v)}; }
inline Floats square_root(Floats a) { return {_mm512_sqrt_ps(a.v)}; }
inline Floats negative_magnitude(Floats a) { return {_mm512_or_ps(a.v, _mm512_set1_ps(-0.0f))}; }
inline Mask is_nan(Floats a) { return {_mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q)}; }
inline Mask less(Floats a, Floats b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ)}; }
inline Mask at_least(Floats a, Floats b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_GE_OQ)}; }
inline Floats select(Mask mask, Floats a, Floats b) { return {_mm512_mask_mov_ps(b.v, mask.v, a.v)}; }
inline float greatest(Floats a) { return _mm512_reduce_max_ps(a.v); }

// mantissa · 2^exponent for whole exponents, rounded once.
inline Floats times_power_of_two(Floats mantissa, Floats exponent) {
  return {_mm512_scalef_ps(mantissa.v, exponent.v)};
}

inline Ints maximum(Ints a, Ints b) { return {_mm512_max_epi32(a.v, b.v)}; }
inline Ints minimum(Ints a, Ints b) { return {_mm512_min_epi32(a.v, b.v)}; }
inline Ints operator+(Ints a, Ints b) { return {_mm512_add_epi32(a.v, b.v)}; }
inline Mask greater(Ints a, Ints b) { return {_mm512_cmpgt_epi32_mask(a.v, b.v)}; }
inline Mask at_least(Ints a, Ints b) { return {_mm512_cmpge_epi32_mask(a.v, b.v)}; }
inline Mask equal(Ints a, Ints b) { return {_mm512_cmpeq_epi32_mask(a.v, b.v)}; }
inline Ints select(Mask mask, Ints a, Ints b) { return {_mm512_mask_mov_epi32(b.v, mask.v, a.v)}; }
inline Ints count_at_least(Ints counts, Ints a, Ints b) {
  return {_mm512_mask_add_epi32(counts.v, at_least(a, b).v, counts.v, _mm512_set1_epi32(1))};
}
inline Ints count_greater(Ints counts, Ints a, Ints b) {
  return {_mm512_mask_add_epi32(counts.v, greater(a, b).v, counts.v, _mm512_set1_epi32(1))};
}
inline int32_t greatest(Ints a) { return _mm512_reduce_max_epi32(a.v); }
inline int32_t least(Ints a) { return _mm512_reduce_min_epi32(a.v); }

// Flips all bits but the sign of negative numbers. Its own inverse.
inline Ints flip_negative(Ints a) {
  const __m512i sign = _mm512_srai_epi32(a.v, 31);
  return {_mm512_ternarylogic_epi32(a.v, sign, _mm512_set1_epi32(0x7fffffff), 0x78)}; // a ^ (sign & 0x7fffffff)
}
inline Ints as_ints(Floats a) { return {_mm512_castps_si512(a.v)}; }
inline Floats as_floats(Ints a) { return {_mm512_castsi512_ps(a.v)}; }

// Two vectors that hold every lane of `a` and of `b` once, arranged so that combining them lane by lane, level after
// level, reduces sixteen vectors to one: a first step of level 0 for each neighbouring pair, then of level 1, 2 and 3.
struct PairOfInts {
  Ints first, second;
};
template <int level>
inline PairOfInts interleaved(Ints a, Ints b) {
  if constexpr (level == 0) return {{_mm512_shuffle_i64x2(a.v, b.v, 0x44)}, {_mm512_shuffle_i64x2(a.v, b.v, 0xee)}};
  if constexpr (level == 1) return {{_mm512_shuffle_i64x2(a.v, b.v, 0x88)}, {_mm512_shuffle_i64x2(a.v, b.v, 0xdd)}};
  if constexpr (level == 2) return {{_mm512_unpacklo_epi64(a.v, b.v)}, {_mm512_unpackhi_epi64(a.v, b.v)}};
  const __m512 x = _mm512_castsi512_ps(a.v), y = _mm512_castsi512_ps(b.v);
  return {
      {_mm512_castps_si512(_mm512_shuffle_ps(x, y, 0x88))}, {_mm512_castps_si512(_mm512_shuffle_ps(x, y, 0xdd))}};
}
// Puts the lanes of the last step in the order of the sixteen vectors: a transposition of four by four.
inline Ints in_order_of_vectors(Ints a) {
  const __m512i from = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  return {_mm512_permutexvar_epi32(from, a.v)};
}

// Writes the marked lanes of `a` one after another; up to 16 elements behind them are overwritten too.
inline int64_t append(int32_t* to, Mask mask, Ints a) {
  _mm512_storeu_si512(to, _mm512_maskz_compress_epi32(mask.v, a.v));
  return count_lanes(mask);
}

inline Longs count_greater(Longs counts, Longs a, Longs b) {
  return {_mm512_mask_add_epi64(counts.v, _mm512_cmpgt_epi64_mask(a.v, b.v), counts.v, _mm512_set1_epi64(1))};
}
inline Longs maximum(Longs a, Longs b) { return {_mm512_max_epi64(a.v, b.v)}; }
inline Longs minimum(Longs a, Longs b) { return {_mm512_min_epi64(a.v, b.v)}; }

inline Doubles operator+(Doubles a, Doubles b) { return {_mm512_add_pd(a.v, b.v)}; }
inline Doubles operator-(Doubles a, Doubles b) { return {_mm512_sub_pd(a.v, b.v)}; }
inline Doubles operator*(Doubles a, Doubles b) { return {_mm512_mul_pd(a.v, b.v)}; }
inline Doubles operator/(Doubles a, Doubles b) { return {_mm512_div_pd(a.v, b.v)}; }
inline Doubles maximum(Doubles a, Doubles b) { return {_mm512_max_pd(a.v, b.v)}; }
inline Doubles square_root(Doubles a) { return {_mm512_sqrt_pd(a.v)}; }
inline Doubles negative_magnitude(Doubles a) { return {_mm512_or_pd(a.v, _mm512_set1_pd(-0.0))}; }
inline HalfMask less(Doubles a, Doubles b) { return {_mm512_cmp_pd_mask(a.v, b.v, _CMP_LT_OQ)}; }
inline HalfMask at_least(Doubles a, Doubles b) { return {_mm512_cmp_pd_mask(a.v, b.v, _CMP_GE_OQ)}; }
inline Doubles select(HalfMask mask, Doubles a, Doubles b) { return {_mm512_mask_mov_pd(b.v, mask.v, a.v)}; }

// 2^n, where the lowest bits of `a` hold n + 1023.
inline Doubles power_of_two_in_low_bits(Doubles a) {
  return {_mm512_castsi512_pd(_mm512_slli_epi64(_mm512_castpd_si512(a.v), 52))};
}

inline Doubles lower_half(Floats a) { return {_mm512_cvtps_pd(_mm512_castps512_ps256(a.v))}; }
inline Doubles upper_half(Floats a) { return {_mm512_cvtps_pd(_mm512_extractf32x8_ps(a.v, 1))}; }
inline Floats narrowed(Doubles lower, Doubles upper) {
  const __m512 low = _mm512_castps256_ps512(_mm512_cvtpd_ps(lower.v));
  return {_mm512_insertf32x8(low, _mm512_cvtpd_ps(upper.v), 1)};
}
inline void store_narrowed(float* to, Doubles a) { _mm256_storeu_ps(to, _mm512_cvtpd_ps(a.v)); }

inline Doubles widened(__m256 a) { return {_mm512_cvtps_pd(a)}; }
inline Doubles load_widened(const float* from) { return widened(_mm256_loadu_ps(from)); }
inline int32_t first_lane(Ints a) { return _mm_cvtsi128_si32(_mm512_castsi512_si128(a.v)); }

inline Floats load_as_floats(const float* from) { return load(from); }
inline Floats load_as_floats(const BFloat16* from) {
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16))};
}
inline Floats load_as_floats(const Half* from) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)))};
}
inline Floats load_as_floats(const float* from, int64_t count) {
  return {_mm512_maskz_loadu_ps(first_lanes(count).v, from)};
}
inline Floats load_as_floats(const BFloat16* from, int64_t count) {
  const __m256i bits = _mm256_maskz_loadu_epi16(first_lanes(count).v, from);
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16))};
}
inline Floats load_as_floats(const Half* from, int64_t count) {
  return {_mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first_lanes(count).v, from))};
}

inline void store_as_elements(BFloat16* to, Floats a) {
  const __m512i bits = _mm512_castps_si512(a.v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
  const __m512i high = _mm512_srli_epi32(rounded, 16);
  const __m512i kept = _mm512_mask_mov_epi32(high, is_nan(a).v, _mm512_set1_epi32(0x7fc0));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtepi32_epi16(kept));
}
inline void store_as_elements(Half* to, Floats a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT));
}

} // namespace
} // namespace moegate::MOEGATE_ISA
