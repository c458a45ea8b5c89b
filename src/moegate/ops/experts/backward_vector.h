// The units in which the backward's products take their operands, and the size of the register block:
// kRegisterRows x (kRegisterVectors * kLanes) accumulators fill the registers.
#pragma once

#include "experts/cpu_vector.h"

namespace moegate::MOEGATE_ISA {
namespace {

#if MOEGATE_ISA_avx512 || MOEGATE_ISA_avx512_bf16
constexpr int kRegisterRows = 6;
constexpr int kRegisterVectors = 4;
#elif MOEGATE_ISA_avx2
constexpr int kRegisterRows = 6;
constexpr int kRegisterVectors = 2;
#else
constexpr int kRegisterRows = 4;
constexpr int kRegisterVectors = 2;
#endif

// Past the caches; to a multiple of the vector's size.
inline void stream_vector(float* to, Vector values) {
#if MOEGATE_ISA_avx512 || MOEGATE_ISA_avx512_bf16
  _mm512_stream_ps(to, values);
#elif MOEGATE_ISA_avx2
  _mm256_stream_ps(to, values);
#else
  store_vector(to, values);
#endif
}

// After the last streamed value of a task, so that other threads see all of them.
inline void finish_streams() {
#if !MOEGATE_ISA_scalar
  _mm_sfence();
#endif
}

constexpr int64_t kRegisterColumns = kRegisterVectors * kLanes;

// Along the reduction, operands are taken in units: single float32 values, or pairs of bfloat16 neighbours, which one
// instruction multiplies and adds to a float32.
struct Singles {
  using Unit = float;
  static constexpr int64_t values = 1;
  static constexpr bool narrows = false; // whether results can leave the registers as bfloat16
  static Vector same(const char* from) {
    float value;
    std::memcpy(&value, from, sizeof value);
    return broadcast(value);
  }
  static void add_product(Vector& sum, Vector left, Vector right) { sum = multiply_add(left, right, sum); }
};

#if MOEGATE_ISA_avx512_bf16
// The instruction takes subnormal numbers as zero.
struct Pairs {
  using Unit = uint32_t;
  static constexpr int64_t values = 2;
  static constexpr bool narrows = true;
  static Vector same(const char* from) {
    int pair;
    std::memcpy(&pair, from, sizeof pair);
    return _mm512_castsi512_ps(_mm512_set1_epi32(pair));
  }
  static void add_product(Vector& sum, Vector left, Vector right) {
    sum = _mm512_dpbf16_ps(sum, (__m512bh)left, (__m512bh)right);
  }
  static void store(const Vector& sum, uint16_t* to) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(sum)));
  }
  static void store(const Vector& first, const Vector& second, uint16_t* to, bool stream) {
    const __m512i halves = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(second, first));
    stream ? _mm512_stream_si512(reinterpret_cast<__m512i*>(to), halves) : _mm512_storeu_si512(to, halves);
  }
};
#endif

} // namespace
} // namespace moegate::MOEGATE_ISA
