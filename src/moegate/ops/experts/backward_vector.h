// A vector of float32 for each instruction set, with the few operations that matrix products need, and the sizes of
// the register block: kTileRows x (kTileVectors * Vector::size) accumulators fill the registers.
#pragma once

#include <cstdint>
#include <cstring>

#if !MOEGATE_ISA_scalar
#include <immintrin.h>
#endif

namespace moegate::MOEGATE_ISA {
namespace {

#if MOEGATE_ISA_avx512 || MOEGATE_ISA_avx512_bf16

struct Vector {
  static constexpr int64_t size = 16;
  __m512 value;
  static Vector zero() { return {_mm512_setzero_ps()}; }
  static Vector load(const void* from) { return {_mm512_loadu_ps(from)}; }
  static Vector same(const float* from) { return {_mm512_set1_ps(*from)}; }
  void store(float* to) const { _mm512_storeu_ps(to, value); }
  void stream(float* to) const { _mm512_stream_ps(to, value); } // past the caches; to a multiple of 64 bytes
  void add_product(Vector left, Vector right) { value = _mm512_fmadd_ps(left.value, right.value, value); }
};
constexpr int kTileRows = 6;
constexpr int kTileVectors = 4;

#elif MOEGATE_ISA_avx2

struct Vector {
  static constexpr int64_t size = 8;
  __m256 value;
  static Vector zero() { return {_mm256_setzero_ps()}; }
  static Vector load(const void* from) { return {_mm256_loadu_ps(static_cast<const float*>(from))}; }
  static Vector same(const float* from) { return {_mm256_broadcast_ss(from)}; }
  void store(float* to) const { _mm256_storeu_ps(to, value); }
  void stream(float* to) const { _mm256_stream_ps(to, value); } // past the caches; to a multiple of 32 bytes
  void add_product(Vector left, Vector right) { value = _mm256_fmadd_ps(left.value, right.value, value); }
};
constexpr int kTileRows = 6;
constexpr int kTileVectors = 2;

#else

struct Vector {
  static constexpr int64_t size = 4;
  float value[4];
  static Vector zero() { return {}; }
  static Vector load(const void* from) {
    Vector loaded;
    std::memcpy(loaded.value, from, sizeof loaded.value);
    return loaded;
  }
  static Vector same(const float* from) { return {{*from, *from, *from, *from}}; }
  void store(float* to) const { std::memcpy(to, value, sizeof value); }
  void stream(float* to) const { store(to); }
  void add_product(Vector left, Vector right) {
    for (int lane = 0; lane < 4; ++lane) value[lane] += left.value[lane] * right.value[lane];
  }
};
constexpr int kTileRows = 4;
constexpr int kTileVectors = 2;

#endif

// After the last streamed value of a task, so that other threads see all of them.
inline void finish_streams() {
#if !MOEGATE_ISA_scalar
  _mm_sfence();
#endif
}

constexpr int64_t kTileColumns = kTileVectors * Vector::size;

// Along the reduction, operands are taken in units: single float32 values, or pairs of bfloat16 neighbours, which one
// instruction multiplies and adds to a float32.
struct Singles {
  using Unit = float;
  static constexpr int64_t values = 1;
  static constexpr bool narrows = false; // whether results can leave the registers as bfloat16
  static Vector same(const char* from) { return Vector::same(reinterpret_cast<const float*>(from)); }
  static void add_product(Vector& sum, Vector left, Vector right) { sum.add_product(left, right); }
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
    return {_mm512_castsi512_ps(_mm512_set1_epi32(pair))};
  }
  static void add_product(Vector& sum, Vector left, Vector right) {
    sum.value = _mm512_dpbf16_ps(
        sum.value, reinterpret_cast<__m512bh>(left.value), reinterpret_cast<__m512bh>(right.value));
  }
  static void store(const Vector& sum, uint16_t* to) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(sum.value)));
  }
  static void store(const Vector& first, const Vector& second, uint16_t* to, bool stream) {
    const __m512i halves = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(second.value, first.value));
    stream ? _mm512_stream_si512(reinterpret_cast<__m512i*>(to), halves) : _mm512_storeu_si512(to, halves);
  }
};
#endif

} // namespace
} // namespace moegate::MOEGATE_ISA
