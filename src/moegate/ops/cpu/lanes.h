// Sixteen numbers at a time, with the same bits on every instruction set: each operation rounds once, and no two are
// fused. Narrow elements widen exactly and round to nearest even on the way back, as PyTorch's do; NaN stays NaN.
#pragma once

#include <cstdint>
#include <cstring>

#if !MOEGATE_ISA_scalar
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized" // GCC's own headers start from undefined values
#include <immintrin.h>
#pragma GCC diagnostic pop
#endif

namespace moegate::MOEGATE_ISA {

constexpr int64_t kLanes = 16;

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

inline float from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline uint32_t to_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

// --- one element ----------------------------------------------------------------------------------------------------

inline float widened(float value) { return value; }
inline double widened(double value) { return value; }
inline float widened(BFloat16 value) { return from_bits(static_cast<uint32_t>(value.bits) << 16); }

inline float widened(Float16 value) {
  const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000u) << 16;
  const uint32_t magnitude = value.bits & 0x7fffu;
  // 2^112 moves the exponent from one bias to the other, subnormals included.
  const uint32_t finite = to_bits(from_bits(magnitude << 13) * 0x1p112f);
  const uint32_t quiet = magnitude > 0x7c00u ? 0x400000u : 0u;
  return from_bits(sign | (magnitude >= 0x7c00u ? 0x7f800000u | (magnitude << 13) | quiet : finite));
}

inline void narrow(float value, float& out) { out = value; }
inline void narrow(double value, double& out) { out = value; }

inline void narrow(float value, BFloat16& out) {
  const uint32_t bits = to_bits(value);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  out.bits = static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
}

inline void narrow(float value, Float16& out) {
  const uint32_t bits = to_bits(value);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  uint32_t result;
  if (magnitude > 0x7f800000u) {
    result = 0x7e00u | ((magnitude >> 13) & 0x3ffu);
  } else if (magnitude >= 0x477ff000u) {
    result = 0x7c00u; // 65520 and more round to infinity
  } else if (magnitude < 0x38800000u) {
    // A subnormal result: adding 0.5 rounds to its grid, and leaves its bits at the end.
    result = to_bits(from_bits(magnitude) + 0.5f) - 0x3f000000u;
  } else {
    result = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  }
  out.bits = static_cast<uint16_t>(sign | result);
}

// --- sixteen elements -------------------------------------------------------------------------------------------------

// Plain C++: float64 everywhere, and float32 where there are no vectors.
template <class Real>
struct Array16 {
  Real value[kLanes];
};

template <class Real>
inline Array16<Real> operator+(const Array16<Real>& a, const Array16<Real>& b) {
  Array16<Real> out;
  for (int64_t i = 0; i < kLanes; ++i) out.value[i] = a.value[i] + b.value[i];
  return out;
}

template <class Real>
inline Array16<Real> operator*(const Array16<Real>& a, const Array16<Real>& b) {
  Array16<Real> out;
  for (int64_t i = 0; i < kLanes; ++i) out.value[i] = a.value[i] * b.value[i];
  return out;
}

template <class Real>
inline void spread(Real value, Array16<Real>& out) {
  for (int64_t i = 0; i < kLanes; ++i) out.value[i] = value;
}

template <class Element, class Real>
inline void load(const Element* from, Array16<Real>& out) {
  for (int64_t i = 0; i < kLanes; ++i) out.value[i] = widened(from[i]);
}

template <class Element, class Real>
inline void store(const Array16<Real>& values, Element* to) {
  for (int64_t i = 0; i < kLanes; ++i) narrow(values.value[i], to[i]);
}

template <class Real>
inline void to_array(const Array16<Real>& values, Real* out) {
  for (int64_t i = 0; i < kLanes; ++i) out[i] = values.value[i];
}

#if MOEGATE_ISA_scalar

using FloatLanes = Array16<float>;

#elif MOEGATE_ISA_avx2

struct FloatLanes {
  __m256 low, high;
};

inline FloatLanes operator+(FloatLanes a, FloatLanes b) {
  return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)};
}
inline FloatLanes operator*(FloatLanes a, FloatLanes b) {
  return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)};
}
inline void spread(float value, FloatLanes& out) { out = {_mm256_set1_ps(value), _mm256_set1_ps(value)}; }

inline void load(const float* from, FloatLanes& out) { out = {_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)}; }
inline void store(FloatLanes values, float* to) {
  _mm256_storeu_ps(to, values.low);
  _mm256_storeu_ps(to + 8, values.high);
}

inline __m128i load_eight(const void* from) { return _mm_loadu_si128(static_cast<const __m128i*>(from)); }
inline void store_eight(__m128i values, void* to) { _mm_storeu_si128(static_cast<__m128i*>(to), values); }

inline __m256 widened_eight(__m128i bits) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}
inline void load(const BFloat16* from, FloatLanes& out) {
  out = {widened_eight(load_eight(from)), widened_eight(load_eight(from + 8))};
}
inline __m256i rounded_eight(__m256 values) {
  const __m256i bits = _mm256_castps_si256(values);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i up = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256 unordered = _mm256_cmp_ps(values, values, _CMP_UNORD_Q);
  return _mm256_blendv_epi8(_mm256_srli_epi32(up, 16), _mm256_set1_epi32(0x7fc0), _mm256_castps_si256(unordered));
}
inline void store(FloatLanes values, BFloat16* to) {
  // Packing works within halves of 128 bits, and the permutation puts them in order.
  const __m256i packed = _mm256_packus_epi32(rounded_eight(values.low), rounded_eight(values.high));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_permute4x64_epi64(packed, 0xd8));
}

inline void load(const Float16* from, FloatLanes& out) {
  out = {_mm256_cvtph_ps(load_eight(from)), _mm256_cvtph_ps(load_eight(from + 8))};
}
inline void store(FloatLanes values, Float16* to) {
  store_eight(_mm256_cvtps_ph(values.low, _MM_FROUND_TO_NEAREST_INT), to);
  store_eight(_mm256_cvtps_ph(values.high, _MM_FROUND_TO_NEAREST_INT), to + 8);
}

inline void to_array(FloatLanes values, float* out) { store(values, out); }

#else // AVX-512

struct FloatLanes {
  __m512 all;
};

inline FloatLanes operator+(FloatLanes a, FloatLanes b) { return {_mm512_add_ps(a.all, b.all)}; }
inline FloatLanes operator*(FloatLanes a, FloatLanes b) { return {_mm512_mul_ps(a.all, b.all)}; }
inline void spread(float value, FloatLanes& out) { out = {_mm512_set1_ps(value)}; }

inline void load(const float* from, FloatLanes& out) { out = {_mm512_loadu_ps(from)}; }
inline void store(FloatLanes values, float* to) { _mm512_storeu_ps(to, values.all); }

inline __m256i load_sixteen(const void* from) { return _mm256_loadu_si256(static_cast<const __m256i*>(from)); }
inline void store_sixteen(__m256i values, void* to) { _mm256_storeu_si256(static_cast<__m256i*>(to), values); }

inline void load(const BFloat16* from, FloatLanes& out) {
  out = {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(load_sixteen(from)), 16))};
}
// Not vcvtneps2bf16, which takes subnormals for zero.
inline void store(FloatLanes values, BFloat16* to) {
  const __m512i bits = _mm512_castps_si512(values.all);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i up = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __mmask16 unordered = _mm512_cmp_ps_mask(values.all, values.all, _CMP_UNORD_Q);
  const __m512i rounded = _mm512_mask_mov_epi32(_mm512_srli_epi32(up, 16), unordered, _mm512_set1_epi32(0x7fc0));
  store_sixteen(_mm512_cvtepi32_epi16(rounded), to);
}

inline void load(const Float16* from, FloatLanes& out) { out = {_mm512_cvtph_ps(load_sixteen(from))}; }
inline void store(FloatLanes values, Float16* to) {
  store_sixteen(_mm512_cvtps_ph(values.all, _MM_FROUND_TO_NEAREST_INT), to);
}

inline void to_array(FloatLanes values, float* out) { store(values, out); }

#endif

// --- what an element computes in --------------------------------------------------------------------------------------

template <class Element>
struct Wide {
  using Real = float;
  using Lanes = FloatLanes;
};
template <>
struct Wide<double> {
  using Real = double;
  using Lanes = Array16<double>;
};

// The last, fewer than sixteen elements of a row; the lanes behind them are 0.
template <class Element, class Lanes>
inline void load_part(const Element* from, int64_t count, Lanes& out) {
  Element part[kLanes] = {};
  for (int64_t i = 0; i < count; ++i) part[i] = from[i];
  load(part, out);
}

template <class Element, class Lanes>
inline void store_part(const Lanes& values, Element* to, int64_t count) {
  Element part[kLanes];
  store(values, part);
  for (int64_t i = 0; i < count; ++i) to[i] = part[i];
}

// Always in the same order.
template <class Real, class Lanes>
inline Real sum(const Lanes& values) {
  Real part[kLanes];
  to_array(values, part);
  for (int64_t width = kLanes / 2; width > 0; width /= 2) {
    for (int64_t i = 0; i < width; ++i) part[i] = part[i] + part[i + width];
  }
  return part[0];
}

} // namespace moegate::MOEGATE_ISA
